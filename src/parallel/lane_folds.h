// How the gradients of micro-batches meet in the lane tree (NUMERICS rules 3 and 4), as a pure value: which partial sum each
// micro-batch belongs to, in which association its sequences are added, and which partial sums meet after it. No buffers and no time:
// whoever emits a schedule gives each partial sum a buffer for as long as it lives.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "ir/schedule.h"

namespace orrery {

/// The lanes [first_lane, first_lane + num_lanes) of the global batch that one data-parallel rank holds, or that the `num_members` ranks of a
/// shard group hold in turns.
struct LaneShare {
  int64_t global_batch_size = 1;  // sequences
  int64_t lanes = 1;              // of the whole batch: a power of two that divides global_batch_size
  int64_t micro_batch_size = 1;   // sequences; a micro-batch never holds part of two lanes, so the last of a lane may be short
  int64_t first_lane = 0;
  int64_t num_lanes = 0;          // 0: all of them
  int64_t num_members = 0;        // 0: gradients are not sharded, the rank has all these lanes
  int64_t member = 0;
};

struct LaneFold {
  int32_t sum = 0;              // the partial sum it writes
  bool add_to_destination = false;
  std::vector<uint8_t> merges;  // GradFold::merges
  std::vector<std::pair<int32_t, int32_t>> carries;  // (into, from): after this micro-batch, in this order, `from` is added to `into`
};

/// A partial sum that is left at the end: one node of the lane tree.
struct FinishedSum {
  int64_t first_lane = 0;
  int64_t num_lanes = 0;
  int32_t sum = 0;
  bool operator==(const FinishedSum&) const = default;
};

struct LaneFolds {
  std::vector<MicroBatch> micro_batches;  // sequences counted from the share's first
  std::vector<LaneFold> folds;            // by micro-batch
  int32_t num_sums = 0;
  std::vector<FinishedSum> finished;      // by first lane; one, sum 0, when the share is the whole batch
  std::vector<ReductionRound> rounds;     // of a shard group: then a partial sum is a round's, and ends with it
  int32_t num_shard_sums = 0;
};

/// A micro-batch of at least one lane holds 2^k whole lanes, the largest power that fits and starts at a multiple of itself.
/// Of a shard group: in round j member r holds the lanes of block j * num_members + r, blocks of as many lanes as a micro-batch holds, or of
/// one lane in several micro-batches; so the members' sums meet in the tree before those of different rounds, and owners of shards keep few
/// sums. Blocks are only so long that no member has more lanes than it must. All members have the same rounds and micro-batches; in the last
/// round some may be without sequences.
/// Errors: kInvalidConfig when lanes is not a power of two or does not divide the batch.
LaneFolds lane_folds(const LaneShare& share);

}  // namespace orrery
