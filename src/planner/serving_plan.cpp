#include "planner/serving_plan.h"

#include "base/error.h"
#include "ir/schedule.h"
#include "ir/verify.h"
#include "model/decoder.h"
#include "parallel/fusion.h"

namespace orrery {

namespace {

// kLinear -> kLinearPacked: each weight gets a second value, its packed form, shared by all its readers.
void pack_weights(Stage& stage, const PackedBytes& packed_bytes) {
  std::vector<ValueId> packed_of(stage.parameters.size(), kNoValue);
  for (Op& op : stage.block(Phase::kForward).ops) {
    if (op.kind != OpKind::kLinear) continue;
    const Value weight = stage.value(op.inputs[1]);
    const ParameterSpec& spec = stage.parameters[static_cast<size_t>(weight.index)];
    ValueId& packed = packed_of[static_cast<size_t>(weight.index)];
    if (packed == kNoValue) {
      Value value;
      value.name = weight.name + ".packed";
      value.dtype = DType::kU8;
      value.shape = {{packed_bytes(stage.compute_dtype, spec.rows(), spec.columns())}};
      value.kind = ValueKind::kParameter;
      value.index = weight.index;
      value.sub = 1;
      packed = static_cast<ValueId>(stage.values.size());
      stage.values.push_back(std::move(value));
    }
    op.kind = OpKind::kLinearPacked;
    op.inputs[1] = packed;
    op.attributes = PackedLinearAttributes{spec.rows()};
  }
}

}  // namespace

ServingPlan make_serving_plan(const ServingPlanOptions& options, const WorkspaceBytes& workspace_bytes, const PackedBytes& packed_bytes) {
  ServingPlan plan;
  plan.options = options;
  if (plan.options.max_context == 0) plan.options.max_context = options.model.max_seq_len;
  if (plan.options.max_context > options.model.max_seq_len)
    throw Error(ErrorCode::kInvalidConfig, "a context of {} tokens was asked for, the model was made for at most {}; ask for no more, or leave --max-context out", plan.options.max_context, options.model.max_seq_len);
  if (plan.options.max_rows == 0) plan.options.max_rows = options.max_sequences;
  plan.blocks_per_sequence = (plan.options.max_context + options.block_tokens - 1) / options.block_tokens;
  if (plan.options.kv_blocks == 0) plan.options.kv_blocks = plan.blocks_per_sequence * options.max_sequences;
  plan.stage.compute_dtype = options.compute_dtype;
  ForwardOptions forward;
  forward.mode = ForwardMode::kServe;
  forward.max_tokens = options.max_tokens;
  forward.max_segments = options.max_sequences;
  forward.max_rows = plan.options.max_rows;
  forward.kv_blocks = plan.options.kv_blocks;
  forward.kv_block_tokens = options.block_tokens;
  forward.max_blocks_per_segment = plan.blocks_per_sequence;
  build_forward(options.model, forward, plan.stage, Phase::kForward);
  pack_weights(plan.stage, packed_bytes);
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
