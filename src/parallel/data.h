// Data parallelism: which rank owns which part of the gradients and of the optimizer's state, and the actions that reduce, update and
// spread them. ZeRO-0: every rank updates everything. ZeRO-1: each rank updates what it owns and the others gather it.
// Source  Rajbhandari et al. 2020, "ZeRO", arXiv:1910.02054. Differs: sums meet in the lane tree (NUMERICS rules 4 and 5).
#pragma once

#include <cstdint>
#include <vector>

#include "ir/block.h"
#include "ir/schedule.h"

namespace orrery {

struct DataParallel {
  int64_t size = 1;  // ranks
  int64_t rank = 0;
  int zero_stage = 0;
  bool operator==(const DataParallel&) const = default;
};

/// Parameters [first, first + count) with one accumulator each, reduced in one collective: a layer, or what stands before or after the
/// layers. Offsets are elements of a gradient buffer (gradient_layout in ir/memory_map.h).
struct ParameterUnit {
  int32_t first = 0, count = 0;
  int32_t accumulator = 0;
  std::vector<int64_t> cuts;  // size + 1: rank r owns [cuts[r], cuts[r + 1])
  bool operator==(const ParameterUnit&) const = default;
};

/// The units of a stage in the order in which its backward finishes them, second accumulators of tied matrices after those of their
/// first use. Cuts lie at the starts of norm blocks, 4,096 elements of a tensor's rows, as near to equal parts as those allow.
std::vector<ParameterUnit> parameter_units(const Stage& stage, int64_t num_ranks);

/// A range of one parameter's elements.
struct OwnedElements {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const OwnedElements&) const = default;
};
/// By parameter: what `rank` owns (of the first accumulator; the second is cut alike).
std::vector<OwnedElements> owned_elements(const Stage& stage, const std::vector<ParameterUnit>& units, int64_t rank);

/// Appends what follows the last backward: RS of each unit as soon as the last micro-batch has its gradients, NORM, XS, for ZeRO-0 GG of
/// the sums, OPT, for ZeRO-1 AG of the new weights. With one rank NORM OPT. `stage` has its backward block.
///   Bytes a rank sends, n ranks and P parameter bytes of f32: RS P (n-1)/n for each of its pieces; GG the same; AG in weight bytes.
void append_update(Schedule& schedule, const Stage& stage, const std::vector<ParameterUnit>& units, const DataParallel& data);

}  // namespace orrery
