#include "planner/serving_plan.h"

#include "base/error.h"
#include "ir/kv_format.h"
#include "ir/schedule.h"
#include "ir/verify.h"
#include "model/decoder.h"
#include "parallel/fusion.h"

namespace orrery {

namespace {

// The quantized segments of a parameter; empty when one of its tensors is not quantized.
std::vector<PackedSegment> quantized_segments(const ParameterSpec& spec, const ServingPlanOptions& options) {
  std::vector<PackedSegment> segments;
  for (const ParameterSegment& segment : spec.segments) {
    const auto found = options.weight_formats.find(segment.tensor);
    if (found == options.weight_formats.end() || spec.padding_rows > 0) return {};
    segments.push_back({found->second, segment.num_rows});
  }
  return segments;
}

// kLinear -> kLinearPacked: each weight gets a second value, its packed form, shared by all its readers. A quantized table is read in
// place too, kEmbedding -> kEmbeddingPacked, so that a tied table exists once.
void pack_weights(Stage& stage, const ServingPlanOptions& options, const PackedBytes& packed_bytes) {
  std::vector<ValueId> packed_of(stage.parameters.size(), kNoValue);
  for (Op& op : stage.block(Phase::kForward).ops) {
    if (op.kind != OpKind::kLinear && op.kind != OpKind::kEmbedding) continue;
    const Value weight = stage.value(op.inputs[1]);
    const ParameterSpec& spec = stage.parameters[static_cast<size_t>(weight.index)];
    PackedLinearAttributes attributes{spec.rows(), 0, quantized_segments(spec, options)};
    const bool quantized = !attributes.segments.empty();
    if (op.kind == OpKind::kEmbedding && !quantized) continue;
    ValueId& packed = packed_of[static_cast<size_t>(weight.index)];
    if (packed == kNoValue) {
      int64_t bytes = 0;
      for (const PackedSegment& segment : attributes.segments) bytes += quantized_weight_bytes(segment.format, segment.num_columns, spec.columns());
      Value value;
      value.name = weight.name + ".packed";
      value.dtype = DType::kU8;
      value.shape = {{quantized ? bytes : packed_bytes(stage.compute_dtype, spec.rows(), spec.columns())}};
      value.kind = ValueKind::kParameter;
      value.index = weight.index;
      value.sub = 1;
      packed = static_cast<ValueId>(stage.values.size());
      stage.values.push_back(std::move(value));
    }
    if (quantized) attributes.depth = spec.columns();
    op.kind = op.kind == OpKind::kEmbedding ? OpKind::kEmbeddingPacked : OpKind::kLinearPacked;
    op.inputs[1] = packed;
    op.attributes = std::move(attributes);
  }
}

}  // namespace

ServingPlan make_serving_plan(const ServingPlanOptions& options, const WorkspaceBytes& workspace_bytes, const PackedBytes& packed_bytes) {
  ServingPlan plan;
  plan.options = options;
  if (plan.options.max_context == 0) plan.options.max_context = options.model.max_seq_len;
  if (plan.options.max_context > options.model.max_seq_len)
    throw Error(ErrorCode::kInvalidConfig, "a context of {} tokens was asked for, the model was made for at most {}; ask for no more, or leave --max-context out", plan.options.max_context, options.model.max_seq_len);
  if (options.kv_int8 && options.model.head_dim > kKvInt8HeadMost)
    throw Error(ErrorCode::kUnsupported, "keys and values in 8 bits with heads of {}: at most {} numbers a head; leave --kv-dtype int8 out", options.model.head_dim, kKvInt8HeadMost);
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
  forward.kv_int8 = options.kv_int8;
  build_forward(options.model, forward, plan.stage, Phase::kForward);
  pack_weights(plan.stage, plan.options, packed_bytes);
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
