// What search.cpp shares with search_candidates.cpp, which prices and orders what the search has found.
#pragma once

#include <tuple>

#include "planner/search.h"

namespace orrery {

/// Steps of the run; 1 where the request names no tokens.
double num_steps(const SearchRequest& request);

/// What orders layouts whose objectives are equal, so that the winner does not depend on the order of visits.
inline auto layout_order(const JobLayout& l) {
  return std::tuple(l.tp, l.pp, l.cp, l.ep, l.virtual_stages, static_cast<int>(l.schedule), static_cast<int>(l.zero), l.shard_size, static_cast<int>(l.recompute), l.offload_optimizer,
                    -l.micro_batch, !l.sequence_parallel, l.pipeline_inside, l.dp);
}

/// Leaves only sets of devices that may still be on the front of time against money when their layouts are refined.
void drop_dear_sets(std::vector<Candidate>& points);

}  // namespace orrery
