// Gradient accumulation over one data-parallel rank's share of the lanes: which micro-batch writes which gradient buffer, and how partial sums
// meet, so that the result is the same bits for every micro-batch size and number of ranks (NUMERICS rules 3 and 4).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "ir/schedule.h"
#include "parallel/lane_folds.h"
#include "parallel/pipeline.h"

namespace orrery {

struct LaneSchedule {
  int64_t global_batch_size = 1;  // sequences
  int64_t lanes = 1;              // power of two, divides global_batch_size
  int64_t micro_batch_size = 1;   // sequences; a micro-batch never holds part of two lanes, so the last of a lane may be short
  int64_t num_ranks = 1;          // data-parallel ranks, at most `lanes`
  int64_t rank = 0;               // which share: lanes [rank * lanes / num_ranks, (rank + 1) * lanes / num_ranks)
  int64_t shard_group_size = 0;   // ranks that shard gradients: neighbours that hold the lanes of all their shares in turns; 0: none do
  PipelineKind pipeline = PipelineKind::k1F1B;
  std::vector<int32_t> pipeline_ranks = {0};  // the world ranks that share these micro-batches, by rank of the pipeline
  int32_t chunks_per_rank = 1;
  int32_t micro_batch_group_size = 0;  // as PipelineOptions
  bool carries = false;                // as PipelineOptions
  std::optional<PipelineOrder> order;  // of a schedule file, instead of the kind's
};

/// The rank's first lane; first_lane(options, num_ranks) is `lanes`.
int64_t first_lane_of(const LaneSchedule& options, int64_t rank);

/// What a rank trains on: lanes [first, first + count) alone, or, with gradients sharded, in turns with the others of its group.
LaneShare lane_share(const LaneSchedule& options);

/// By rank of the pipeline, one by default: F0 B0 F1 B1 ... with merges of gradient buffers as a binary counter over the lane index asks for,
/// without the update that follows (append_update in data.h). What remains at the end, the nodes of the lane tree that make up the share's
/// lanes, is named in piece_buffers, lowest lane first: one for a power of two of ranks, up to log2 otherwise ([2, 5) of 8 is [2, 4) and 4).
/// A micro-batch of at least one lane holds 2^k whole lanes, the largest node that fits; a smaller one holds part of a lane.
/// Gradient buffers used by one rank without a pipeline with L lanes and micro-batches of l whole lanes: max(1, log2(L / l)); smaller than a lane
/// log2(L) + 1; in general the peak of the binary counter.
/// With gradients sharded: rounds instead of pieces (lane_folds.h), one buffer, and no merges.
/// Errors: kInvalidConfig when lanes is not a power of two, does not divide the batch, or is less than the ranks; when the given order
/// has another number of ranks or micro-batches; as pipeline_order.
std::vector<Schedule> lane_schedules(const LaneSchedule& options);

}  // namespace orrery
