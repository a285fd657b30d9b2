// What to make again when a budget asks for memory: values of a layer in the order of bytes freed per second spent, by the costs of the op table. A
// pure function of the blocks; recompute.h does it.
#pragma once

#include <cstdint>
#include <vector>

#include "ir/block.h"

namespace orrery {

/// The time of an op that is made again: its bytes at the memory's rate and its operations at flops_per_byte times that.
struct RecomputeCosts {
  int64_t num_tokens = 0;     // of a micro-batch
  double mean_context = 0;    // keys a query
  double flops_per_byte = 0;
};

/// Values that are dropped together because each alone frees nothing: a product and what is cut from it.
struct RecomputeStep {
  std::vector<ValueId> values;
  double bytes_per_cost = 0;  // freed, per byte's time spent
};

/// All steps that free anything, best first; a step counts on those before it. `stage` is one chunk with its backward. Layers are looked at one
/// by one: what one layer hands to the next is kept.
std::vector<RecomputeStep> recompute_steps(const Stage& stage, const RecomputeCosts& costs);

}  // namespace orrery
