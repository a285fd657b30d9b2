#include "ir/op_table.h"

#include "base/error.h"

namespace orrery {
namespace {

using Types = std::vector<ValueType>;

const Dim& rows_of(const ValueType& type) { return type.shape[0]; }
int64_t width_of(const ValueType& type) { return type.shape.back().bound; }

ValueType f32_rows(const ValueType& like, int64_t width = 0) {
  Shape shape = {rows_of(like)};
  if (width) shape.push_back({width});
  return {DType::kF32, shape};
}

ValueType f32_like(const ValueType& type) { return {DType::kF32, type.shape}; }

// Statistics of a norm: one per group of the row.
ValueType norm_statistics(const ValueType& x, const Attributes& attributes) {
  const int64_t group = std::get<NormAttributes>(attributes).group_width;
  ORRERY_CHECK(group > 0 && width_of(x) % group == 0, "norm group {} of width {}", group, width_of(x));
  const int64_t groups = width_of(x) / group;
  return f32_rows(x, groups == 1 ? 0 : groups);
}

// `type` with rows that are counted otherwise.
ValueType with_rows(ValueType type, int64_t bound, DynamicDim dynamic) {
  type.shape[0] = {bound, dynamic};
  return type;
}

}  // namespace

GroupAttributes group_of(const Stage& stage, const Op& op) {
  if (const auto* group = std::get_if<GroupAttributes>(&op.attributes)) return *group;
  if (op.kind == OpKind::kVocabularyLoss) return {stage.parallel.tensor_size, stage.parallel.context_size};
  ORRERY_CHECK(op.kind == OpKind::kRingAttention || op.kind == OpKind::kRingAttentionGrad, "{} has no group", op_name(op.kind));
  return {stage.parallel.context_size, 1};
}

std::vector<ValueType> infer_types(OpKind kind, const Attributes& attributes, const Types& in, DType compute_dtype) {
  const auto matmul = [&](const ValueType& x, int64_t width) { return ValueType{compute_dtype, {rows_of(x), {width}}}; };
  switch (kind) {
    case OpKind::kEmbedding: return {{compute_dtype, {rows_of(in[0]), {width_of(in[1])}}}};
    case OpKind::kAdd:
    case OpKind::kMul:
      ORRERY_CHECK(in[0].shape == in[1].shape, "{} of {} and {}", op_name(kind), to_string(in[0].shape), to_string(in[1].shape));
      return {in[0]};
    case OpKind::kScale:
    case OpKind::kSilu:
    case OpKind::kGelu:
    case OpKind::kRope:
    case OpKind::kLocalIds:
    case OpKind::kAllReduce: return {in[0]};
    case OpKind::kVocabularyLoss: return {f32_rows(in[0]), f32_rows(in[0])};
    case OpKind::kTakeTokens: {
      const auto& share = std::get<TokenShareAttributes>(attributes);
      return {with_rows(in[0], rows_of(in[0]).bound / share.of * share.count, DynamicDim::kTokenShare)};
    }
    case OpKind::kGatherTokens: return {with_rows(in[0], rows_of(in[0]).bound * std::get<GroupAttributes>(attributes).size, DynamicDim::kTokens)};
    case OpKind::kReduceScatterTokens: return {with_rows(in[0], rows_of(in[0]).bound / std::get<GroupAttributes>(attributes).size, DynamicDim::kTokenShare)};
    case OpKind::kTokensToHeads: {
      const int64_t size = std::get<GroupAttributes>(attributes).size;
      return {{in[0].dtype, {{rows_of(in[0]).bound * size, DynamicDim::kAllTokens}, {width_of(in[0]) / size}}}};
    }
    case OpKind::kHeadsToTokens: {
      const int64_t size = std::get<GroupAttributes>(attributes).size;
      return {{in[0].dtype, {{rows_of(in[0]).bound / size, DynamicDim::kTokens}, {width_of(in[0]) * size}}}};
    }
    case OpKind::kSplit: {
      Types out;
      int64_t total = 0;
      for (int64_t width : std::get<SplitAttributes>(attributes).widths) {
        out.push_back(matmul(in[0], width));
        total += width;
      }
      ORRERY_CHECK(total == width_of(in[0]), "split of {} into {}", width_of(in[0]), total);
      return out;
    }
    case OpKind::kConcat: {
      int64_t total = 0;
      for (const ValueType& part : in) total += width_of(part);
      return {matmul(in[0], total)};
    }
    case OpKind::kRmsNorm: return {in[0], norm_statistics(in[0], attributes)};
    case OpKind::kLayerNorm: return {in[0], f32_rows(in[0]), f32_rows(in[0])};
    case OpKind::kAddRmsNorm: return {in[0], in[0], norm_statistics(in[0], attributes)};
    case OpKind::kAddLayerNorm: return {in[0], in[0], f32_rows(in[0]), f32_rows(in[0])};
    case OpKind::kLinear:
      ORRERY_CHECK(width_of(in[0]) == width_of(in[1]), "linear: x has {} columns, weight {}", width_of(in[0]), width_of(in[1]));
      return {matmul(in[0], in[1].shape[0].bound)};
    case OpKind::kLinearGelu: return {matmul(in[0], in[1].shape[0].bound), matmul(in[0], in[1].shape[0].bound)};
    case OpKind::kRingAttention:
    case OpKind::kAttention: {
      const auto& a = std::get<AttentionAttributes>(attributes);
      ORRERY_CHECK(width_of(in[0]) == a.num_heads * a.head_dim && width_of(in[1]) == a.num_kv_heads * a.head_dim, "attention widths");
      return {in[0], {DType::kF32, {{a.num_heads}, rows_of(in[0])}}};
    }
    case OpKind::kGatherRows: return {{compute_dtype, {rows_of(in[1]), {width_of(in[0])}}}};
    case OpKind::kLinearCrossEntropy: return {f32_rows(in[0]), f32_rows(in[0])};
    case OpKind::kEmbeddingGrad: return {};  // the table's accumulator: its height is not in the operands
    case OpKind::kSiluGrad:
    case OpKind::kGeluGrad: return {in[1]};
    case OpKind::kRmsNormGrad:
    case OpKind::kRmsNormGradAdd: return {in[1], f32_like(in[2])};
    case OpKind::kLayerNormGrad:
    case OpKind::kLayerNormGradAdd: return {in[1], f32_like(in[2]), f32_like(in[2])};
    case OpKind::kLinearGradInput: return {matmul(in[0], width_of(in[1]))};
    case OpKind::kLinearGradInputGelu: return {in[2]};
    case OpKind::kLinearGradWeight: return {{DType::kF32, {{width_of(in[0])}, {width_of(in[1])}}}};
    case OpKind::kBiasGrad: return {{DType::kF32, {{width_of(in[0])}}}};
    case OpKind::kRopeGrad: return {in[0]};
    case OpKind::kRingAttentionGrad:
    case OpKind::kAttentionGrad: return {in[1], in[2], in[3]};
    case OpKind::kLinearCrossEntropyGrad: return {in[0], f32_like(in[1])};
    case OpKind::kLinearCrossEntropyWithGrad: return {f32_rows(in[0]), in[0], f32_like(in[1])};
    case OpKind::kSwiGlu: return {matmul(in[0], width_of(in[0]) / 2)};
    case OpKind::kSwiGluGrad: return {in[1]};
    case OpKind::kSplitRope: {
      const auto& a = std::get<RopeAttributes>(attributes);
      ORRERY_CHECK(width_of(in[0]) == (a.num_heads + 2 * a.num_kv_heads) * a.head_dim, "split_rope of {}", width_of(in[0]));
      return {matmul(in[0], a.num_heads * a.head_dim), matmul(in[0], a.num_kv_heads * a.head_dim),
              matmul(in[0], a.num_kv_heads * a.head_dim)};
    }
    case OpKind::kSplitRopeGrad: return {matmul(in[0], width_of(in[0]) + width_of(in[1]) + width_of(in[2]))};
    case OpKind::kLinearPacked: return {matmul(in[0], std::get<PackedLinearAttributes>(attributes).num_columns)};
    case OpKind::kEmbeddingPacked: return {matmul(in[0], std::get<PackedLinearAttributes>(attributes).depth)};
    case OpKind::kPagedAttention: return {in[0]};
    case OpKind::kKvWrite:
    case OpKind::kAccumulate:
    case OpKind::kCopy:
    case OpKind::kZero:
    case OpKind::kSquaredSums:
    case OpKind::kOptimizerScale:
    case OpKind::kAdamW:
    case OpKind::kSgd:
    case OpKind::kLion: return {};  // their outputs are given: state, step fields, caches
    case OpKind::kCount: break;
  }
  ORRERY_CHECK(false, "no type rule for op {}", static_cast<int>(kind));
  return {};
}

bool has_gradient_output(OpKind kind) {
  switch (kind) {
    case OpKind::kEmbeddingGrad:
    case OpKind::kRmsNormGrad:
    case OpKind::kRmsNormGradAdd:
    case OpKind::kLayerNormGrad:
    case OpKind::kLayerNormGradAdd:
    case OpKind::kLinearGradWeight:
    case OpKind::kBiasGrad:
    case OpKind::kLinearCrossEntropyGrad:
    case OpKind::kLinearCrossEntropyWithGrad: return true;
    default: return false;
  }
}

namespace {

double elements_at(const Stage& stage, const Shape& shape, int64_t num_tokens) {
  double count = 1;
  for (const Dim& dim : shape) switch (dim.dynamic) {
      case DynamicDim::kTokens: count *= static_cast<double>(num_tokens); break;
      case DynamicDim::kTokenShare: count *= static_cast<double>(num_tokens / stage.parallel.tensor_size); break;
      case DynamicDim::kAllTokens: count *= static_cast<double>(num_tokens * stage.parallel.context_size); break;
      default: count *= static_cast<double>(dim.bound);
    }
  return count;
}

}  // namespace

OpCost op_cost(const Stage& stage, const Op& op, int64_t num_tokens, double mean_context) {
  OpCost cost;
  const auto bytes = [&](ValueId id) {
    const Value& value = stage.value(id);
    return elements_at(stage, value.shape, num_tokens) * static_cast<double>(dtype_bytes(value.dtype));
  };
  for (ValueId id : op.inputs) cost.bytes_read += bytes(id);
  for (ValueId id : op.outputs) cost.bytes_written += bytes(id);
  const double tokens = static_cast<double>(num_tokens);
  const auto product = [&](ValueId weight) { return 2.0 * tokens * static_cast<double>(num_elements(stage.value(weight).shape)); };
  switch (op.kind) {
    case OpKind::kEmbedding:
    case OpKind::kEmbeddingPacked:
      cost.bytes_read = 2 * cost.bytes_written;
      break;
    case OpKind::kLinear:
    case OpKind::kLinearGelu:
    case OpKind::kLinearGradInput:
    case OpKind::kLinearGradInputGelu:
    case OpKind::kLinearCrossEntropy: cost.flops = product(op.inputs[1]); break;
    case OpKind::kLinearPacked:
      cost.flops = 2.0 * tokens * static_cast<double>(std::get<PackedLinearAttributes>(op.attributes).num_columns * stage.value(op.inputs[0]).shape.back().bound);
      break;
    case OpKind::kLinearGradWeight: cost.flops = product(op.outputs[0]); break;
    case OpKind::kLinearCrossEntropyGrad:
    case OpKind::kLinearCrossEntropyWithGrad: cost.flops = 3 * product(op.inputs[1]); break;
    case OpKind::kAttention:
    case OpKind::kPagedAttention:
    case OpKind::kAttentionGrad:
    case OpKind::kRingAttention:
    case OpKind::kRingAttentionGrad: {
      const auto& a = std::get<AttentionAttributes>(op.attributes);
      const bool is_gradient = op.kind == OpKind::kAttentionGrad || op.kind == OpKind::kRingAttentionGrad;
      const double context = a.window > 0 && static_cast<double>(a.window) < mean_context ? static_cast<double>(a.window) : mean_context;
      const double forward = 4.0 * context * elements_at(stage, stage.value(op.inputs[is_gradient ? 1 : 0]).shape, num_tokens);
      cost.flops = is_gradient ? 2.5 * forward : forward;
      break;
    }
    // Changed in place: what is written was read before.
    case OpKind::kAccumulate:
    case OpKind::kAdamW:
    case OpKind::kSgd:
    case OpKind::kLion: cost.bytes_read += cost.bytes_written; break;
    default: break;
  }
  return cost;
}

}  // namespace orrery
