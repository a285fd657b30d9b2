#include "parallel/lanes.h"

#include "parallel/lower_pipeline.h"

namespace orrery {

Schedule lane_schedule(const LaneSchedule& options, bool needs_zero) {
  const LaneShare share{options.global_batch_size, options.lanes, options.micro_batch_size};
  PipelineOptions pipeline;
  pipeline.num_micro_batches = static_cast<int32_t>(lane_folds(share).micro_batches.size());
  return lower_pipeline(pipeline_order(pipeline), {.share = share, .needs_zero = needs_zero}).front();
}

}  // namespace orrery
