// Data parallelism: which rank owns which part of the gradients and of the optimizer's state, and the actions that reduce, update and
// spread them. ZeRO-0: every rank updates everything. ZeRO-1: each rank updates what it owns and the others gather it.
// Source  Rajbhandari et al. 2020, "ZeRO", arXiv:1910.02054. Differs: sums meet in the lane tree (NUMERICS rules 4 and 5).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "ir/block.h"
#include "ir/schedule.h"

namespace orrery {

struct DataParallel {
  int64_t size = 1;  // ranks
  int64_t rank = 0;
  int zero_stage = 0;
  bool fast_reduction = false;  // gradients are summed around a ring instead of in the lane tree: the bits depend on the number of ranks
  bool operator==(const DataParallel&) const = default;
};

/// Parameters [first, first + count) of a chunk with one accumulator each, reduced in one collective: a layer, what stands before or after
/// the layers, or a tied matrix. Offsets are elements of a gradient buffer of the chunk (gradient_layout in ir/memory_map.h).
struct ParameterUnit {
  int32_t first = 0, count = 0;
  int32_t accumulator = 0;
  int32_t chunk = 0;
  std::vector<int64_t> cuts;  // size + 1: rank r owns [cuts[r], cuts[r + 1])
  bool operator==(const ParameterUnit&) const = default;
};

/// The units of a rank in the order in which backwards finish them, last chunk first, second accumulators of tied matrices at the end. Cuts
/// lie at the starts of norm blocks, 4,096 elements of a tensor's rows, as near to equal parts as those allow; both uses of a tied matrix
/// are cut alike, also where they are on two ranks.
std::vector<ParameterUnit> parameter_units(const Stage& stage, int64_t num_ranks);

/// A range of one parameter's elements.
struct OwnedElements {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const OwnedElements&) const = default;
};
/// By parameter: what `rank` owns (of the first accumulator; the second is cut alike).
std::vector<OwnedElements> owned_elements(const Stage& stage, const std::vector<ParameterUnit>& units, int64_t rank);

/// A matrix whose second use, the tied head, is a stage of another rank: there its gradient is summed over the lanes, here the two sums meet
/// and the weight is updated, which then goes back.
struct SharedMatrix {
  int32_t parameter = 0;
  int32_t peer = 0;          // the world rank that holds the other use for the same sequences
  bool updated_here = false;  // this rank has the first use
};

struct UpdateOptions {
  DataParallel data;
  bool exchanges = false;  // there is more than one rank in the world
  std::optional<SharedMatrix> shared;
};

/// Appends what follows the last backward: RS of each unit as soon as the last action that adds to it has its gradients, NORM, XS, for
/// ZeRO-0 GG of the sums, OPT, for ZeRO-1 AG of the new weights; for a shared matrix SU and RU before NORM, SW and RW after OPT. With one
/// rank NORM OPT. `stage` has its backward blocks.
///   Bytes a rank sends, n ranks and P parameter bytes of f32: RS P (n-1)/n for each of its pieces; GG the same; AG in weight bytes; SU what
///   it owns of the shared matrix in f32, SW all of it in weight bytes.
void append_update(Schedule& schedule, const Stage& stage, const std::vector<ParameterUnit>& units, const UpdateOptions& options);

}  // namespace orrery
