// Data parallelism: which rank owns which part of the gradients and of the optimizer's state, and the actions that reduce, update and
// spread them. ZeRO-0: every rank updates everything. ZeRO-1: each rank updates what it owns and the others gather it. ZeRO-2 and 3 have the
// same update; what they keep in shards between is shard.h's.
// Source  Rajbhandari et al. 2020, "ZeRO", arXiv:1910.02054. Differs: sums meet in the lane tree (NUMERICS rules 4 and 5).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "ir/block.h"
#include "ir/parameter_unit.h"
#include "ir/schedule.h"

namespace orrery {

struct DataParallel {
  int64_t size = 1;  // ranks
  int64_t rank = 0;
  int zero_stage = 0;
  bool fast_reduction = false;  // gradients are summed around a ring instead of in the lane tree: the bits depend on the number of ranks
  int64_t shard_group_size = 0;  // HSDP: neighbouring ranks that together have all shards, each group a replica; 0: all ranks are one group
  bool reshard_after_forward = true;  // ZeRO-3: weights are gathered again when their slot was needed; false: they stay from their first use on
  int prefetch = 1;                   // ZeRO-3: layers that are gathered ahead

  int64_t num_shards() const { return shard_group_size > 0 ? shard_group_size : size; }
  int64_t shard() const { return rank % num_shards(); }
  int64_t num_replicas() const { return size / num_shards(); }
  int64_t replica() const { return rank / num_shards(); }
  bool shards_gradients() const { return zero_stage >= 2 && size > 1; }
  bool shards_weights() const { return zero_stage >= 3 && size > 1; }
  bool operator==(const DataParallel&) const = default;
};

/// The units of a rank in the order in which backwards finish them, last chunk first, second accumulators of tied matrices at the end. Cuts
/// lie at the starts of norm blocks, 4,096 elements of a tensor's rows, as near to equal parts as those allow; both uses of a tied matrix
/// are cut alike, also where they are on two ranks. `by_phase`: a unit's gradients are all written in the forward, or all in one half of the
/// backward, so that one action completes them.
std::vector<ParameterUnit> parameter_units(const Stage& stage, int64_t num_shards, bool by_phase);

/// A range of one parameter's elements.
struct OwnedElements {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const OwnedElements&) const = default;
};
/// By parameter: what is in `shard` (of the first accumulator; the second is cut alike).
std::vector<OwnedElements> owned_elements(const Stage& stage, const std::vector<ParameterUnit>& units, int64_t shard);

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

/// Appends what follows the last backward: RS of each unit as soon as the last action that adds to it has its gradients (ZeRO-2 and 3: they
/// are there), AR where shards have replicas, NORM, XS, for ZeRO-0 GG of the sums, OPT, for ZeRO-1 and 2 AG of the new weights; for a shared
/// matrix SU and RU before NORM, SW and RW after OPT. With one rank NORM OPT. `stage` has its backward blocks.
/// Where steps carry, the last action of the next step stands between NORM and OPT: what is exchanged hides behind it.
///   Bytes a rank sends, n ranks and P parameter bytes of f32: RS P (n-1)/n for each of its pieces; GG the same; AG in weight bytes; SU what
///   it owns of the shared matrix in f32, SW all of it in weight bytes (ZeRO-3: what it owns).
void append_update(Schedule& schedule, const Stage& stage, const std::vector<ParameterUnit>& units, const UpdateOptions& options);

}  // namespace orrery
