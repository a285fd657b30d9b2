#include "model/decoder_parts.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace orrery {

float init_std() { return 0.02f; }
float residual_init_std(int64_t num_layers) { return 0.02f / std::sqrt(2.0f * static_cast<float>(num_layers)); }

DecoderParts::DecoderParts(const ModelConfig& config, const ForwardOptions& options, Stage& stage, Phase phase)
    : config_(config), options_(options), phase_(phase), builder_(stage, phase), tensors_(logical_tensors(config)) {
  for (size_t i = 0; i < tensors_.size(); ++i) tensor_index_[tensors_[i].name] = static_cast<int32_t>(i);
}

ValueId DecoderParts::received() {
  ValueId& input = builder_.stage().boundaries.front().input;
  if (input != kNoValue) return input;
  Value value;
  value.name = "x.in";
  value.dtype = builder_.stage().compute_dtype;
  value.shape = {{options_.max_tokens, DynamicDim::kTokens}, {config_.hidden_size}};
  input = builder_.add_value(std::move(value));
  return input;
}

void DecoderParts::send(ValueId x) {
  ValueId& output = builder_.stage().boundaries.front().output;
  if (output == kNoValue) {
    output = x;
    return;
  }
  // A second phase leaves its result where the first does: what sends it knows one place.
  for (Op& op : builder_.stage().block(phase_).ops)
    for (std::vector<ValueId>* ids : {&op.inputs, &op.outputs}) std::replace(ids->begin(), ids->end(), x, output);
}

ValueId DecoderParts::ids() { return builder_.batch(BatchField::kIds, DType::kI32, {{options_.max_tokens, DynamicDim::kTokens}}); }

ValueId DecoderParts::positions() {
  return builder_.batch(BatchField::kPositions, DType::kI32, {{options_.max_tokens, DynamicDim::kTokens}});
}

ParameterSpec DecoderParts::spec_of(const std::string& name, const std::vector<std::string>& tensors) const {
  ParameterSpec spec;
  spec.name = name;
  int64_t rows = 0, columns = 0;
  for (const std::string& tensor_name : tensors) {
    const auto found = tensor_index_.find(tensor_name);
    ORRERY_CHECK(found != tensor_index_.end(), "the model has no tensor {}", tensor_name);
    const LogicalTensor& tensor = tensors_[static_cast<size_t>(found->second)];
    ParameterSegment segment;
    segment.tensor = tensor.name;
    segment.tensor_shape = tensor.shape;
    segment.transpose = tensor.conv1d;
    segment.row_begin = rows;
    segment.num_rows = tensor.conv1d ? tensor.shape[1] : tensor.shape[0];
    segment.tensor_index = found->second;
    rows += segment.num_rows;
    columns = tensor.shape.size() < 2 ? 0 : tensor.conv1d ? tensor.shape[0] : tensor.shape[1];
    spec.segments.push_back(std::move(segment));
  }
  spec.shape = columns ? std::vector<int64_t>{rows, columns} : std::vector<int64_t>{rows};
  return spec;
}

ValueId DecoderParts::matrix(const std::string& name, const std::vector<std::string>& tensors, float std, bool decay) {
  ParameterSpec spec = spec_of(name, tensors);
  spec.init = InitKind::kNormal;
  spec.init_std = std;
  spec.decay = decay;
  return builder_.parameter(std::move(spec));
}

ValueId DecoderParts::vector(const std::string& name, const std::vector<std::string>& tensors, InitKind init) {
  ParameterSpec spec = spec_of(name, tensors);
  spec.init = init;
  return builder_.parameter(std::move(spec));
}

ValueId DecoderParts::embedding_table(const std::string& tensor, bool tied) {
  ParameterSpec spec = spec_of("embedding", {tensor});
  spec.init = InitKind::kNormal;
  spec.init_std = init_std();
  spec.num_accumulators = tied ? 2 : 1;
  return builder_.parameter(std::move(spec));
}

ValueId DecoderParts::rms_norm(ValueId x, const std::string& name, const std::string& tensor, int64_t group_width) {
  const ValueId weight = vector(name, {tensor}, InitKind::kOnes);
  NormAttributes attributes;
  attributes.eps = static_cast<float>(config_.norm_eps);
  attributes.group_width = group_width;
  return builder_.emit(OpKind::kRmsNorm, {x, weight}, attributes, {}, name)[0];
}

ValueId DecoderParts::linear(ValueId x, ValueId weight, ValueId bias, const std::string& name) {
  std::vector<ValueId> inputs = {x, weight};
  if (bias != kNoValue) inputs.push_back(bias);
  return builder_.emit_one(OpKind::kLinear, std::move(inputs), NoAttributes{}, name);
}

ValueId DecoderParts::attention(ValueId q, ValueId k, ValueId v, int64_t layer) {
  AttentionAttributes attributes;
  attributes.num_heads = config_.num_heads;
  attributes.num_kv_heads = config_.num_kv_heads;
  attributes.head_dim = config_.head_dim;
  attributes.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  attributes.window = config_.window(layer);
  const ValueId cu_seqlens =
      builder_.batch(BatchField::kCuSeqlens, DType::kI32, {{options_.max_segments + 1, DynamicDim::kSegmentsPlusOne}});
  if (options_.mode == ForwardMode::kLoss) return builder_.emit(OpKind::kAttention, {q, k, v, cu_seqlens}, attributes, {}, "attention")[0];

  attributes.block_tokens = options_.kv_block_tokens;
  const ValueId slots = builder_.batch(BatchField::kSlots, DType::kI32, {{options_.max_tokens, DynamicDim::kTokens}});
  const ValueId block_table = builder_.batch(BatchField::kBlockTable, DType::kI32,
                                             {{options_.max_segments, DynamicDim::kSegments}, {options_.max_blocks_per_segment}});
  const ValueId context_lens = builder_.batch(BatchField::kContextLens, DType::kI32, {{options_.max_segments, DynamicDim::kSegments}});
  std::vector<ValueId> cache;
  for (int32_t part = 0; part < 2; ++part) {
    Value value;
    value.name = part == 0 ? "k_cache" : "v_cache";
    value.dtype = builder_.stage().compute_dtype;
    value.shape = {{options_.kv_blocks}, {options_.kv_block_tokens}, {config_.kv_size()}};
    value.kind = ValueKind::kKvCache;
    value.index = static_cast<int32_t>(layer);
    value.sub = part;
    cache.push_back(builder_.add_value(std::move(value)));
  }
  builder_.emit(OpKind::kKvWrite, {k, v, slots}, attributes, cache);
  return builder_.emit(OpKind::kPagedAttention, {q, cache[0], cache[1], block_table, context_lens, cu_seqlens}, attributes, {}, "attention")[0];
}

void DecoderParts::head(ValueId x, ValueId weight) {
  if (options_.mode == ForwardMode::kLoss) {
    const ValueId targets = builder_.batch(BatchField::kTargets, DType::kI32, {{options_.max_tokens, DynamicDim::kTokens}});
    const ValueId token_loss = builder_.batch(BatchField::kTokenLoss, DType::kF32, {{options_.max_tokens, DynamicDim::kTokens}});
    builder_.emit(OpKind::kLinearCrossEntropy, {x, weight, targets}, NoAttributes{}, {token_loss, kNoValue}, "loss");
    return;
  }
  const ValueId rows = builder_.batch(BatchField::kRows, DType::kI32, {{options_.max_rows, DynamicDim::kRows}});
  const ValueId gathered = builder_.emit_one(OpKind::kGatherRows, {x, rows}, NoAttributes{}, "gathered");
  const ValueId logits =
      builder_.batch(BatchField::kLogits, DType::kF32, {{options_.max_rows, DynamicDim::kRows}, {config_.vocab_size}});
  builder_.emit(OpKind::kLinear, {gathered, weight}, NoAttributes{}, {logits});
}

void build_forward(const ModelConfig& config, const ForwardOptions& options, Stage& stage, Phase phase) {
  validate(config, "model");
  DecoderParts parts(config, options, stage, phase);
  switch (config.family) {
    case ModelFamily::kGpt2: build_gpt2(parts); break;
    case ModelFamily::kLlama: build_llama(parts); break;
    case ModelFamily::kGemma3: build_gemma3(parts); break;
  }
}

}  // namespace orrery
