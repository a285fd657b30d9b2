#include "model/decoder_parts.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "ir/kv_format.h"

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
  value.shape = {shares_tokens() ? Dim{options_.max_tokens / options_.parallel.tensor_size, DynamicDim::kTokenShare} : Dim{options_.max_tokens, DynamicDim::kTokens}, {config_.hidden_size}};
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

ParameterSpec DecoderParts::spec_of(const std::string& name, const std::vector<std::string>& tensors, const Cut& cut) const {
  ParameterSpec spec;
  spec.name = name;
  int64_t rows = 0, columns = 0;
  const ParallelContext& parallel = options_.parallel;
  const int64_t rank = parallel.tensor_rank, size = parallel.tensor_size;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto found = tensor_index_.find(tensors[i]);
    ORRERY_CHECK(found != tensor_index_.end(), "the model has no tensor {}", tensors[i]);
    const LogicalTensor& tensor = tensors_[static_cast<size_t>(found->second)];
    const int64_t tensor_rows = tensor.conv1d ? tensor.shape[1] : tensor.shape[0];
    const int64_t tensor_columns = tensor.shape.size() < 2 ? 0 : tensor.conv1d ? tensor.shape[0] : tensor.shape[1];
    const int64_t group_rows = tensor_rows / cut.groups;
    // Tensor ranks that have the same rows: all, or those that share a head, each with its own queries.
    int64_t num_same = cut.kind == Cut::kWhole ? size : 1, begin = 0, end = group_rows;
    if (cut.kind == Cut::kRows && i < cut.heads.size() && cut.heads[i] < size) {
      num_same = size / cut.heads[i];
      begin = rank / num_same * (group_rows / cut.heads[i]), end = begin + group_rows / cut.heads[i];
    } else if (cut.kind == Cut::kRows) {
      begin = part_begin(group_rows, rank), end = part_begin(group_rows, rank + 1);
    }
    for (int64_t group = 0; group < cut.groups; ++group) {
      ParameterSegment segment;
      segment.tensor = tensor.name;
      segment.tensor_shape = tensor.shape;
      segment.transpose = tensor.conv1d;
      segment.tensor_row_begin = group * group_rows + begin;
      segment.tensor_column_begin = cut.kind == Cut::kColumns ? part_begin(tensor_columns, rank) : 0;
      segment.row_begin = rows;
      segment.num_rows = end - begin;
      segment.tensor_index = found->second;
      segment.num_holders = num_same * parallel.context_size;
      segment.holder = parallel.part() % segment.num_holders;
      segment.num_summands = cut.kind == Cut::kWhole && !cut.is_partial ? parallel.context_size : segment.num_holders;
      rows += segment.num_rows;
      columns = cut.kind == Cut::kColumns ? part_begin(tensor_columns, rank + 1) - segment.tensor_column_begin : tensor_columns;
      spec.segments.push_back(std::move(segment));
    }
  }
  spec.shape = columns ? std::vector<int64_t>{rows, columns} : std::vector<int64_t>{rows};
  return spec;
}

ValueId DecoderParts::matrix(const std::string& name, const std::vector<std::string>& tensors, float std, bool decay) {
  ParameterSpec spec = spec_of(name, tensors, {.is_partial = shares_tokens()});
  spec.init = InitKind::kNormal;
  spec.init_std = std;
  spec.decay = decay;
  return builder_.parameter(std::move(spec));
}

ValueId DecoderParts::vector(const std::string& name, const std::vector<std::string>& tensors, InitKind init, bool is_partial) {
  ParameterSpec spec = spec_of(name, tensors, {.is_partial = is_partial});
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

ValueId DecoderParts::token_share(ValueId tokens) {
  const ParallelContext& parallel = options_.parallel;
  const int64_t sequence = options_.sequence_tokens, count = sequence / parallel.tensor_size;
  return builder_.emit_one(OpKind::kTakeTokens, {tokens}, TokenShareAttributes{parallel.tensor_rank * count, count, sequence}, "token_share");
}

// All tokens for a product, where ranks share them.
ValueId DecoderParts::gathered(ValueId x) {
  return shares_tokens() ? builder_.emit_one(OpKind::kGatherTokens, {x}, tensor_group(), builder_.stage().value(x).name + ".all") : x;
}

// The sum of the tensor ranks' parts, of this rank's tokens.
ValueId DecoderParts::summed(ValueId part, const std::string& name) {
  return builder_.emit_one(shares_tokens() ? OpKind::kReduceScatterTokens : OpKind::kAllReduce, {part}, tensor_group(), name);
}

ValueId DecoderParts::embed(ValueId tokens, ValueId table) {
  if (!cuts()) return builder_.emit_one(OpKind::kEmbedding, {tokens, table}, NoAttributes{}, "x");
  return summed(builder_.emit_one(OpKind::kEmbedding, {local_tokens(tokens), table}, NoAttributes{}, "x.part"), "x");
}

ValueId DecoderParts::column_linear(ValueId x, const LinearNames& names, float std, const std::string& name, int64_t groups) {
  const Cut cut{cuts() ? Cut::kRows : Cut::kWhole, cuts() ? groups : 1, false, names.heads};
  ParameterSpec weight = spec_of(names.weight, names.weight_tensors, cut);
  weight.init = InitKind::kNormal;
  weight.init_std = std;
  weight.decay = true;
  std::vector<ValueId> inputs = {gathered(x), builder_.parameter(std::move(weight))};
  if (!names.bias_tensors.empty()) inputs.push_back(builder_.parameter(spec_of(names.bias, names.bias_tensors, cut)));
  return builder_.emit_one(OpKind::kLinear, std::move(inputs), cuts() && !shares_tokens() ? Attributes(LinearAttributes{.input_is_shared = true}) : NoAttributes{}, name);
}

ValueId DecoderParts::row_linear(ValueId x, const LinearNames& names, float std, const std::string& name) {
  ParameterSpec weight = spec_of(names.weight, names.weight_tensors, {cuts() ? Cut::kColumns : Cut::kWhole});
  weight.init = InitKind::kNormal;
  weight.init_std = std;
  weight.decay = true;
  std::vector<ValueId> inputs = {x, builder_.parameter(std::move(weight))};
  if (!names.bias_tensors.empty()) inputs.push_back(builder_.parameter(spec_of(names.bias, names.bias_tensors, {})));
  // One rank adds it, so that the sum has it once; its gradient is the same on all, being that of the sum.
  const bool adds_bias = options_.parallel.tensor_rank == 0;
  const ValueId part = builder_.emit_one(OpKind::kLinear, std::move(inputs), adds_bias ? Attributes(NoAttributes{}) : LinearAttributes{.adds_bias = false}, cuts() ? name + ".part" : name);
  return cuts() ? summed(part, name) : part;
}

ValueId DecoderParts::rms_norm(ValueId x, const std::string& name, const std::string& tensor) {
  const NormAttributes attributes{static_cast<float>(config_.norm_eps), config_.hidden_size};
  return builder_.emit(OpKind::kRmsNorm, {x, vector(name, {tensor}, InitKind::kOnes, shares_tokens())}, attributes, {}, name)[0];
}

ValueId DecoderParts::head_norm(ValueId x, const std::string& name, const std::string& tensor) {
  const NormAttributes attributes{static_cast<float>(config_.norm_eps), config_.head_dim};
  return builder_.emit(OpKind::kRmsNorm, {x, vector(name, {tensor}, InitKind::kOnes, cuts())}, attributes, {}, name)[0];
}

ValueId DecoderParts::linear(ValueId x, ValueId weight, ValueId bias, const std::string& name) {
  std::vector<ValueId> inputs = {x, weight};
  if (bias != kNoValue) inputs.push_back(bias);
  return builder_.emit_one(OpKind::kLinear, std::move(inputs), NoAttributes{}, name);
}

ValueId DecoderParts::attention(ValueId q, ValueId k, ValueId v, int64_t layer) {
  AttentionAttributes attributes;
  attributes.num_heads = num_heads();
  attributes.num_kv_heads = num_kv_heads();
  attributes.head_dim = config_.head_dim;
  attributes.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  attributes.window = config_.window(layer);
  const ValueId cu_seqlens =
      builder_.batch(BatchField::kCuSeqlens, DType::kI32, {{options_.max_segments + 1, DynamicDim::kSegmentsPlusOne}});
  if (options_.mode == ForwardMode::kLoss && options_.parallel.context_size > 1) return context_attention(q, k, v, cu_seqlens, attributes);
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
    value.dtype = options_.kv_int8 ? DType::kI8 : builder_.stage().compute_dtype;
    value.shape = {{options_.kv_blocks}, {options_.kv_block_tokens}, {options_.kv_int8 ? config_.num_kv_heads * kv_int8_head_bytes(config_.head_dim) : config_.kv_size()}};
    value.kind = ValueKind::kKvCache;
    value.index = static_cast<int32_t>(layer);
    value.sub = part;
    cache.push_back(builder_.add_value(std::move(value)));
  }
  builder_.emit(OpKind::kKvWrite, {k, v, slots}, attributes, cache);
  return builder_.emit(OpKind::kPagedAttention, {q, cache[0], cache[1], block_table, context_lens, cu_seqlens}, attributes, {}, "attention")[0];
}

// Over the tokens of all context ranks.
ValueId DecoderParts::context_attention(ValueId q, ValueId k, ValueId v, ValueId cu_seqlens, AttentionAttributes attributes) {
  const int64_t size = options_.parallel.context_size;
  if (options_.parallel.context_method == ContextMethod::kRing) return builder_.emit(OpKind::kRingAttention, {q, k, v, cu_seqlens}, attributes, {}, "attention")[0];
  const GroupAttributes group{size, 1};
  attributes.num_heads /= size;
  attributes.num_kv_heads /= size;
  const auto heads_of = [&](ValueId x, const char* name) { return builder_.emit_one(OpKind::kTokensToHeads, {x}, group, name); };
  const ValueId q_heads = heads_of(q, "q.heads"), k_heads = heads_of(k, "k.heads"), v_heads = heads_of(v, "v.heads");
  const ValueId heads = builder_.emit(OpKind::kAttention, {q_heads, k_heads, v_heads, cu_seqlens}, attributes, {}, "attention.heads")[0];
  return builder_.emit_one(OpKind::kHeadsToTokens, {heads}, group, "attention");
}

void DecoderParts::head(ValueId x, ValueId weight) {
  if (options_.mode == ForwardMode::kLoss) {
    x = gathered(x);
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

void check_parallel(const ModelConfig& config, const ParallelContext& parallel, int64_t sequence_tokens) {
  const int64_t heads = config.num_heads, kv_heads = config.num_kv_heads, columns = config.intermediate_size;
  const auto shares_kv = [&](int64_t size) { return kv_heads % size == 0 || size % kv_heads == 0; };
  const int64_t size = parallel.tensor_size;
  std::vector<int64_t> valid;
  for (int64_t other = 1; other <= heads; ++other)
    if (heads % other == 0 && shares_kv(other) && columns % other == 0) valid.push_back(other);
  for (const auto& [name, count] : {std::pair("num_heads", heads), std::pair("intermediate_size", columns)})
    if (size < 1 || count % size != 0)
      throw Error(ErrorCode::kInvalidConfig, "parallel.tensor_parallel_size = {} does not divide model.{} = {}; use one of {}", size, name, count, fmt::join(valid, ", "));
  if (!shares_kv(size))
    throw Error(ErrorCode::kInvalidConfig, "parallel.tensor_parallel_size = {} neither divides model.num_kv_heads = {} nor is a multiple of it; use one of {}", size, kv_heads, fmt::join(valid, ", "));
  const int64_t context = parallel.context_size;
  if (context < 1 || (context > 1 && sequence_tokens % (2 * context) != 0))
    throw Error(ErrorCode::kInvalidConfig, "parallel.context_parallel_size = {} does not cut data.seq_len = {} into {} equal chunks, two for each rank; use a seq_len that is a multiple of {}", context,
                sequence_tokens, 2 * context, 2 * context);
  if (parallel.shares_tokens() && sequence_tokens / context % size != 0)
    throw Error(ErrorCode::kInvalidConfig, "parallel.sequence_parallel: tensor_parallel_size = {} does not divide the {} tokens of a sequence{}; use a seq_len that is a multiple of {}", size,
                sequence_tokens / context, context > 1 ? " on each context rank" : "", size * context * (context > 1 ? 2 : 1));
  const int64_t local_heads = heads / size, local_kv_heads = std::max<int64_t>(1, kv_heads / size);
  if (context > 1 && parallel.context_method == ContextMethod::kUlysses && (local_heads % context != 0 || local_kv_heads % context != 0)) {
    std::vector<int64_t> sizes;
    for (int64_t other = 2; other <= local_kv_heads; ++other)
      if (local_heads % other == 0 && local_kv_heads % other == 0 && sequence_tokens % (2 * other) == 0) sizes.push_back(other);
    throw Error(ErrorCode::kInvalidConfig, "parallel.context_method = \"ulysses\" exchanges tokens for heads, and context_parallel_size = {} does not divide the {} heads and {} kv heads of a rank; use {}context_method = \"ring\"",
                context, local_heads, local_kv_heads, sizes.empty() ? "" : fmt::format("one of {}, or ", fmt::join(sizes, ", ")));
  }
}

void build_forward(const ModelConfig& config, const ForwardOptions& options, Stage& stage, Phase phase) {
  validate(config, "model");
  if (options.mode == ForwardMode::kLoss) check_parallel(config, options.parallel, options.sequence_tokens * options.parallel.context_size);
  stage.parallel = options.parallel;
  DecoderParts parts(config, options, stage, phase);
  switch (config.family) {
    case ModelFamily::kGpt2: build_gpt2(parts); break;
    case ModelFamily::kLlama: build_llama(parts); break;
    case ModelFamily::kGemma3: build_gemma3(parts); break;
  }
}

}  // namespace orrery
