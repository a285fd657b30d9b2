// GPT-2: learned positions, LayerNorm before attention and MLP, one fused qkv with bias, gelu (tanh form), tied head.
// Source  Radford et al. 2019, "Language models are unsupervised multitask learners"; tensor names as Hugging Face's GPT2LMHeadModel.
#include "model/decoder_parts.h"

namespace orrery {
namespace {

ValueId layer_norm(DecoderParts& parts, ValueId x, const std::string& name, const std::string& tensor) {
  const ValueId weight = parts.vector(name + ".weight", {tensor + ".weight"}, InitKind::kOnes, parts.shares_tokens());
  const ValueId bias = parts.vector(name + ".bias", {tensor + ".bias"}, InitKind::kZeros, parts.shares_tokens());
  NormAttributes attributes;
  attributes.eps = static_cast<float>(parts.config().norm_eps);
  attributes.group_width = parts.config().hidden_size;
  return parts.builder().emit(OpKind::kLayerNorm, {x, weight, bias}, attributes, {}, name)[0];
}

LinearNames conv1d(const std::string& name, const std::string& tensor) { return {name + ".weight", {tensor + ".weight"}, name + ".bias", {tensor + ".bias"}}; }

// The sum of the token's and the position's rows.
ValueId embed(DecoderParts& parts, ValueId table) {
  BlockBuilder& builder = parts.builder();
  const ValueId position_table = parts.matrix("position_embedding", {"transformer.wpe.weight"}, init_std(), false);
  const ValueId token = parts.embed(parts.ids(), table);
  const ValueId position = builder.emit_one(OpKind::kEmbedding, {parts.shares_tokens() ? parts.token_share(parts.positions()) : parts.positions(), position_table}, NoAttributes{}, "position_embedding");
  return builder.emit_one(OpKind::kAdd, {token, position}, NoAttributes{}, "x");
}

}  // namespace

void build_gpt2(DecoderParts& parts) {
  const ModelConfig& config = parts.config();
  BlockBuilder& builder = parts.builder();
  const float residual_std = residual_init_std(config.num_layers);
  const auto table = [&] { return parts.embedding_table("transformer.wte.weight", config.tie_embeddings); };
  ValueId x = parts.builds_embedding() ? embed(parts, table()) : parts.received();
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!parts.builds(layer)) continue;
    builder.set_layer(static_cast<int32_t>(layer));
    const std::string physical = "layers." + std::to_string(layer) + ".";
    const std::string logical = "transformer.h." + std::to_string(layer) + ".";
    const ValueId normed = layer_norm(parts, x, physical + "attention_norm", logical + "ln_1");
    const ValueId qkv = parts.column_linear(normed, conv1d(physical + "attention.qkv", logical + "attn.c_attn"), init_std(), "qkv", /*groups=*/3);
    const int64_t width = parts.share(config.hidden_size);
    const auto heads = builder.emit(OpKind::kSplit, {qkv}, SplitAttributes{{width, width, width}}, {}, "qkv");
    const ValueId attended = parts.attention(heads[0], heads[1], heads[2], layer);
    const ValueId projected = parts.row_linear(attended, conv1d(physical + "attention.output", logical + "attn.c_proj"), residual_std, "attention_output");
    x = builder.emit_one(OpKind::kAdd, {x, projected}, NoAttributes{}, "x_mid");
    const ValueId mlp_normed = layer_norm(parts, x, physical + "mlp_norm", logical + "ln_2");
    const ValueId up = parts.column_linear(mlp_normed, conv1d(physical + "mlp.up", logical + "mlp.c_fc"), init_std(), "mlp_up");
    const ValueId activated = builder.emit_one(OpKind::kGelu, {up}, NoAttributes{}, "gelu");
    const ValueId down = parts.row_linear(activated, conv1d(physical + "mlp.down", logical + "mlp.c_proj"), residual_std, "mlp_output");
    x = builder.emit_one(OpKind::kAdd, {x, down}, NoAttributes{}, "x");
  }
  builder.set_layer(-1);
  if (!parts.builds_head()) return parts.send(x);
  const ValueId normed = layer_norm(parts, x, "final_norm", "transformer.ln_f");
  parts.head(normed, config.tie_embeddings ? table() : parts.head_matrix("lm_head.weight"));
}

}  // namespace orrery
