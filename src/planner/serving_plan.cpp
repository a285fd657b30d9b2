#include "planner/serving_plan.h"

#include "base/error.h"
#include "ir/schedule.h"
#include "ir/verify.h"
#include "model/decoder.h"
#include "parallel/fusion.h"

namespace orrery {

ServingPlan make_serving_plan(const ServingPlanOptions& options, const WorkspaceBytes& workspace_bytes) {
  ServingPlan plan;
  plan.options = options;
  if (plan.options.max_context == 0) plan.options.max_context = options.model.max_seq_len;
  if (plan.options.max_context > options.model.max_seq_len)
    throw Error(ErrorCode::kInvalidConfig, "a context of {} tokens was asked for, the model was made for at most {}", plan.options.max_context, options.model.max_seq_len);
  plan.blocks_per_sequence = (plan.options.max_context + options.block_tokens - 1) / options.block_tokens;
  plan.stage.compute_dtype = options.compute_dtype;
  ForwardOptions forward;
  forward.mode = ForwardMode::kServe;
  forward.max_tokens = options.max_tokens;
  forward.max_segments = forward.max_rows = options.max_sequences;
  forward.kv_blocks = plan.blocks_per_sequence * options.max_sequences;
  forward.kv_block_tokens = options.block_tokens;
  forward.max_blocks_per_segment = plan.blocks_per_sequence;
  build_forward(options.model, forward, plan.stage, Phase::kForward);
  fuse_forward(plan.stage, Phase::kForward);
  remove_copies(plan.stage);
  MemoryMapOptions memory;
  memory.batch_copies = 1;
  const Schedule schedule;
  plan.memory = build_memory_map(plan.stage, schedule, memory, workspace_bytes);
  const auto problems = verify_plan(plan.stage, schedule, plan.memory);
  ORRERY_CHECK(problems.empty(), "the serving plan does not verify: {}", problems.front());
  return plan;
}

}  // namespace orrery
