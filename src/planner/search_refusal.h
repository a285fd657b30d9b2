// Why a search found nothing, and what would do: a larger batch, other sizes, more devices, more time or money.
#pragma once

#include <limits>

#include "planner/search.h"
#include "planner/search_space.h"

namespace orrery {

/// What a search has seen of layouts that it did not keep.
struct SearchMisses {
  bool any_fits = false;  // within memory: these are the best that were too late or too dear
  struct Run {
    double seconds = 0, money = 0, kwh = 0;
  } fastest, cheapest, thriftiest;
  bool ends_never = false;  // some fit, but would be at faults and restarts all the time
  double best_goodput = 0;
  double least_missing_bytes = std::numeric_limits<double>::infinity();  // on the fullest rank of what does not fit
};

/// Throws kInvalidConfig.
[[noreturn]] void refuse_search(const SearchRequest& request, const SearchResult& result, const LayoutSpace& space, const SearchMisses& misses);

/// Whether some layout of all the devices fits, whatever it takes (search.cpp).
bool some_layout_fits(const SearchRequest& request);

}  // namespace orrery
