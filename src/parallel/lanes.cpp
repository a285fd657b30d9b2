#include "parallel/lanes.h"

#include <algorithm>

#include "base/error.h"
#include "parallel/lower_pipeline.h"

namespace orrery {

int64_t first_lane_of(const LaneSchedule& options, int64_t rank) { return rank * options.lanes / options.num_ranks; }

LaneShare lane_share(const LaneSchedule& options) {
  const int64_t members = std::max<int64_t>(1, options.shard_group_size), first_member = options.rank / members * members;
  LaneShare share{options.global_batch_size, options.lanes, options.micro_batch_size};
  share.first_lane = first_lane_of(options, first_member);
  share.num_lanes = first_lane_of(options, first_member + members) - share.first_lane;
  share.num_members = options.shard_group_size;
  share.member = options.rank - first_member;
  return share;
}

std::vector<Schedule> lane_schedules(const LaneSchedule& options) {
  if (options.num_ranks > options.lanes)
    throw Error(ErrorCode::kInvalidConfig,
                "parallel.data_parallel_size = {} is more than train.lanes = {}: each data-parallel rank holds at least one lane; use at most {} ranks, or set train.lanes to a "
                "larger power of two that divides train.global_batch_size = {}",
                options.num_ranks, options.lanes, options.lanes, options.global_batch_size);
  const LaneShare share = lane_share(options);
  PipelineOptions pipeline;
  pipeline.kind = options.pipeline;
  pipeline.num_ranks = static_cast<int32_t>(options.pipeline_ranks.size());
  pipeline.chunks_per_rank = options.chunks_per_rank;
  pipeline.micro_batch_group_size = options.micro_batch_group_size;
  pipeline.carries = options.carries;
  pipeline.num_micro_batches = static_cast<int32_t>(lane_folds(share).micro_batches.size());
  if (options.order && (options.order->num_micro_batches != pipeline.num_micro_batches || options.order->steps.size() != options.pipeline_ranks.size()))
    throw Error(ErrorCode::kInvalidConfig,
                "the schedule file has {} ranks and {} micro-batches; the pipeline has {} ranks and {} micro-batches of up to {} sequences; change the file, "
                "parallel.pipeline_parallel_size or train.micro_batch_size",
                options.order->steps.size(), options.order->num_micro_batches, pipeline.num_ranks, pipeline.num_micro_batches, options.micro_batch_size);
  std::vector<Schedule> schedules = lower_pipeline(options.order ? *options.order : pipeline_order(pipeline), {.share = share, .world_ranks = options.pipeline_ranks});
  for (Schedule& schedule : schedules) schedule.actions.pop_back();  // OPT: what comes before it between ranks is append_update's (data.h)
  return schedules;
}

}  // namespace orrery
