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

ParameterSpec DecoderParts::spec_of(const std::string& name, const std::vector<std::string>& tensors, Cut cut) const {
  ParameterSpec spec;
  spec.name = name;
  int64_t rows = 0, columns = 0;
  const int64_t rank = options_.parallel.tensor_rank;
  for (const std::string& tensor_name : tensors) {
    const auto found = tensor_index_.find(tensor_name);
    ORRERY_CHECK(found != tensor_index_.end(), "the model has no tensor {}", tensor_name);
    const LogicalTensor& tensor = tensors_[static_cast<size_t>(found->second)];
    const int64_t tensor_rows = tensor.conv1d ? tensor.shape[1] : tensor.shape[0];
    const int64_t tensor_columns = tensor.shape.size() < 2 ? 0 : tensor.conv1d ? tensor.shape[0] : tensor.shape[1];
    const int64_t group_rows = tensor_rows / cut.groups;
    for (int64_t group = 0; group < cut.groups; ++group) {
      const int64_t begin = cut.kind == Cut::kRows ? part_begin(group_rows, rank) : 0, end = cut.kind == Cut::kRows ? part_begin(group_rows, rank + 1) : group_rows;
      ParameterSegment segment;
      segment.tensor = tensor.name;
      segment.tensor_shape = tensor.shape;
      segment.transpose = tensor.conv1d;
      segment.tensor_row_begin = group * group_rows + begin;
      segment.tensor_column_begin = cut.kind == Cut::kColumns ? part_begin(tensor_columns, rank) : 0;
      segment.row_begin = rows;
      segment.num_rows = end - begin;
      segment.tensor_index = found->second;
      rows += segment.num_rows;
      columns = cut.kind == Cut::kColumns ? part_begin(tensor_columns, rank + 1) - segment.tensor_column_begin : tensor_columns;
      spec.segments.push_back(std::move(segment));
    }
  }
  spec.shape = columns ? std::vector<int64_t>{rows, columns} : std::vector<int64_t>{rows};
  return spec;
}

ValueId DecoderParts::matrix(const std::string& name, const std::vector<std::string>& tensors, float std, bool decay) {
  ParameterSpec spec = spec_of(name, tensors, {});
  spec.init = InitKind::kNormal;
  spec.init_std = std;
  spec.decay = decay;
  return builder_.parameter(std::move(spec));
}

ValueId DecoderParts::vector(const std::string& name, const std::vector<std::string>& tensors, InitKind init) {
  ParameterSpec spec = spec_of(name, tensors, {});
  spec.init = init;
  return builder_.parameter(std::move(spec));
}

ValueId DecoderParts::embedding_table(const std::string& tensor, bool tied) {
  ParameterSpec spec = spec_of("embedding", {tensor}, {cuts() ? Cut::kRows : Cut::kWhole});
  spec.init = InitKind::kNormal;
  spec.init_std = init_std();
  spec.num_accumulators = tied ? 2 : 1;
  return builder_.parameter(std::move(spec));
}

ValueId DecoderParts::head_matrix(const std::string& tensor) {
  ParameterSpec spec = spec_of("head", {tensor}, {cuts() ? Cut::kRows : Cut::kWhole});
  spec.init = InitKind::kNormal;
  spec.init_std = init_std();
  spec.decay = true;
  return builder_.parameter(std::move(spec));
}

ValueId DecoderParts::local_tokens(ValueId tokens) {
  const ParallelContext& parallel = options_.parallel;
  const int64_t first = part_begin(config_.vocab_size, parallel.tensor_rank);
  return builder_.emit_one(OpKind::kLocalIds, {tokens}, VocabularyAttributes{first, part_begin(config_.vocab_size, parallel.tensor_rank + 1) - first}, "local_ids");
}

ValueId DecoderParts::embed(ValueId tokens, ValueId table) {
  if (!cuts()) return builder_.emit_one(OpKind::kEmbedding, {tokens, table}, NoAttributes{}, "x");
  const ValueId part = builder_.emit_one(OpKind::kEmbedding, {local_tokens(tokens), table}, NoAttributes{}, "x.part");
  return builder_.emit_one(OpKind::kAllReduce, {part}, NoAttributes{}, "x");
}

ValueId DecoderParts::column_linear(ValueId x, const LinearNames& names, float std, const std::string& name, int64_t groups) {
  const Cut cut{cuts() ? Cut::kRows : Cut::kWhole, cuts() ? groups : 1};
  ParameterSpec weight = spec_of(names.weight, names.weight_tensors, cut);
  weight.init = InitKind::kNormal;
  weight.init_std = std;
  weight.decay = true;
  std::vector<ValueId> inputs = {x, builder_.parameter(std::move(weight))};
  if (!names.bias_tensors.empty()) inputs.push_back(builder_.parameter(spec_of(names.bias, names.bias_tensors, cut)));
  return builder_.emit_one(OpKind::kLinear, std::move(inputs), cuts() ? Attributes(LinearAttributes{true}) : NoAttributes{}, name);
}

ValueId DecoderParts::row_linear(ValueId x, const LinearNames& names, float std, const std::string& name) {
  ParameterSpec weight = spec_of(names.weight, names.weight_tensors, {cuts() ? Cut::kColumns : Cut::kWhole});
  weight.init = InitKind::kNormal;
  weight.init_std = std;
  weight.decay = true;
  std::vector<ValueId> inputs = {x, builder_.parameter(std::move(weight))};
  // One rank adds it, so that the sum has it once and its gradient is that of one rank.
  if (!names.bias_tensors.empty() && options_.parallel.tensor_rank == 0) inputs.push_back(builder_.parameter(spec_of(names.bias, names.bias_tensors, {})));
  const ValueId part = builder_.emit_one(OpKind::kLinear, std::move(inputs), NoAttributes{}, cuts() ? name + ".part" : name);
  return cuts() ? builder_.emit_one(OpKind::kAllReduce, {part}, NoAttributes{}, name) : part;
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
  attributes.num_heads = share(config_.num_heads);
  attributes.num_kv_heads = share(config_.num_kv_heads);
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
    if (!cuts()) {
      builder_.emit(OpKind::kLinearCrossEntropy, {x, weight, targets}, NoAttributes{}, {token_loss, kNoValue}, "loss");
      return;
    }
    const auto part = builder_.emit(OpKind::kLinearCrossEntropy, {x, weight, local_tokens(targets)}, NoAttributes{}, {}, "loss.part");
    const VocabularyAttributes ranks{0, config_.vocab_size, options_.parallel.tensor_size};
    builder_.emit(OpKind::kVocabularyLoss, {part[0], part[1], targets}, ranks, {token_loss, kNoValue}, "loss");
    return;
  }
  const ValueId rows = builder_.batch(BatchField::kRows, DType::kI32, {{options_.max_rows, DynamicDim::kRows}});
  const ValueId gathered = builder_.emit_one(OpKind::kGatherRows, {x, rows}, NoAttributes{}, "gathered");
  const ValueId logits =
      builder_.batch(BatchField::kLogits, DType::kF32, {{options_.max_rows, DynamicDim::kRows}, {config_.vocab_size}});
  builder_.emit(OpKind::kLinear, {gathered, weight}, NoAttributes{}, {logits});
}

void check_tensor_parallel(const ModelConfig& config, int64_t tensor_size) {
  if (tensor_size == 1) return;
  std::vector<int64_t> valid;
  const auto divides = [&](int64_t size) { return config.num_heads % size == 0 && config.num_kv_heads % size == 0 && config.intermediate_size % size == 0; };
  for (int64_t size = 1; size <= config.num_kv_heads; ++size)
    if (divides(size)) valid.push_back(size);
  for (const auto& [name, count] : {std::pair("num_heads", config.num_heads), std::pair("num_kv_heads", config.num_kv_heads), std::pair("intermediate_size", config.intermediate_size)})
    if (tensor_size < 1 || count % tensor_size != 0)
      throw Error(ErrorCode::kInvalidConfig, "parallel.tensor_parallel_size = {} does not divide model.{} = {}; use one of {}", tensor_size, name, count, fmt::join(valid, ", "));
  if (config.qk_norm) throw Error(ErrorCode::kUnsupported, "parallel.tensor_parallel_size = {}: models with q and k norms are not cut; use 1", tensor_size);
}

void build_forward(const ModelConfig& config, const ForwardOptions& options, Stage& stage, Phase phase) {
  validate(config, "model");
  check_tensor_parallel(config, options.parallel.tensor_size);
  DecoderParts parts(config, options, stage, phase);
  switch (config.family) {
    case ModelFamily::kGpt2: build_gpt2(parts); break;
    case ModelFamily::kLlama: build_llama(parts); break;
    case ModelFamily::kGemma3: build_gemma3(parts); break;
  }
}

}  // namespace orrery
