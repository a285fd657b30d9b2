// Gemma 3's text models: the embedding times sqrt(hidden_size); a norm before and after attention and before and after the MLP; q and k norms;
// GeGLU; five layers with a sliding window, whose positions turn with rope_local_theta, to one without.
// Source  Gemma Team 2025, arXiv:2503.19786; tensor names as Hugging Face's Gemma3ForCausalLM. Norm weights here are the factors
//         themselves, as GGUF stores them (Hugging Face's files hold them less 1).
#include <cmath>

#include "model/decoder_parts.h"

namespace orrery {
namespace {

RopeTable rope_table(const ModelConfig& config, bool local) {
  RopeTable table;
  table.max_positions = config.max_seq_len;
  table.rotary_dim = config.head_dim;
  table.theta = local ? config.rope_local_theta : config.rope_theta;
  if (!local && config.rope_scaling.kind == RopeScalingKind::kLinear) table.factor = config.rope_scaling.factor;
  return table;
}

ValueId attention_block(DecoderParts& parts, ValueId x, ValueId table, int64_t layer) {
  const ModelConfig& config = parts.config();
  BlockBuilder& builder = parts.builder();
  const std::string physical = "layers." + std::to_string(layer) + ".attention.";
  const std::string logical = "model.layers." + std::to_string(layer) + ".self_attn.";
  const ValueId weight = parts.matrix(physical + "qkv", {logical + "q_proj.weight", logical + "k_proj.weight", logical + "v_proj.weight"}, init_std());
  const ValueId qkv = parts.linear(x, weight, kNoValue, "qkv");
  const auto split = builder.emit(OpKind::kSplit, {qkv}, SplitAttributes{{config.query_size(), config.kv_size(), config.kv_size()}}, {}, "split");
  ValueId q = parts.head_norm(split[0], physical + "q_norm", logical + "q_norm.weight");
  ValueId k = parts.head_norm(split[1], physical + "k_norm", logical + "k_norm.weight");
  RopeAttributes rope;
  rope.head_dim = rope.rotary_dim = config.head_dim;
  rope.num_heads = config.num_heads;
  q = builder.emit_one(OpKind::kRope, {q, parts.positions(), table}, rope, "q");
  rope.num_heads = config.num_kv_heads;
  k = builder.emit_one(OpKind::kRope, {k, parts.positions(), table}, rope, "k");
  const ValueId attended = parts.attention(q, k, split[2], layer);
  return parts.linear(attended, parts.matrix(physical + "output", {logical + "o_proj.weight"}, residual_init_std(config.num_layers)), kNoValue, "attention_output");
}

// Gate and up are two products: nothing has to be cut apart for the activation.
ValueId mlp_block(DecoderParts& parts, ValueId x, int64_t layer) {
  const ModelConfig& config = parts.config();
  BlockBuilder& builder = parts.builder();
  const std::string physical = "layers." + std::to_string(layer) + ".mlp.";
  const std::string logical = "model.layers." + std::to_string(layer) + ".mlp.";
  const ValueId gate = parts.linear(x, parts.matrix(physical + "gate", {logical + "gate_proj.weight"}, init_std()), kNoValue, "gate");
  const ValueId up = parts.linear(x, parts.matrix(physical + "up", {logical + "up_proj.weight"}, init_std()), kNoValue, "up");
  const ValueId active = builder.emit_one(OpKind::kGelu, {gate}, NoAttributes{}, "gelu");
  const ValueId hidden = builder.emit_one(OpKind::kMul, {active, up}, NoAttributes{}, "mlp_hidden");
  return parts.linear(hidden, parts.matrix(physical + "down", {logical + "down_proj.weight"}, residual_init_std(config.num_layers)), kNoValue, "mlp_output");
}

}  // namespace

void build_gemma3(DecoderParts& parts) {
  const ModelConfig& config = parts.config();
  BlockBuilder& builder = parts.builder();
  const int64_t D = config.hidden_size;
  const auto embedding = [&] { return parts.embedding_table("model.embed_tokens.weight", config.tie_embeddings); };
  const auto embed = [&] {
    const ValueId embedded = builder.emit_one(OpKind::kEmbedding, {parts.ids(), embedding()}, NoAttributes{}, "embedded");
    return builder.emit_one(OpKind::kScale, {embedded}, ScaleAttributes{std::sqrt(static_cast<float>(D))}, "x");
  };
  ValueId x = parts.builds_embedding() ? embed() : parts.received();
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!parts.builds(layer)) continue;
    builder.set_layer(static_cast<int32_t>(layer));
    const std::string physical = "layers." + std::to_string(layer) + ".";
    const std::string logical = "model.layers." + std::to_string(layer) + ".";
    ValueId y = parts.rms_norm(x, physical + "attention_norm", logical + "input_layernorm.weight");
    y = attention_block(parts, y, builder.constant(rope_table(config, config.window(layer) > 0)), layer);
    y = parts.rms_norm(y, physical + "attention_post_norm", logical + "post_attention_layernorm.weight");
    x = builder.emit_one(OpKind::kAdd, {x, y}, NoAttributes{}, "x_mid");
    y = parts.rms_norm(x, physical + "mlp_norm", logical + "pre_feedforward_layernorm.weight");
    y = parts.rms_norm(mlp_block(parts, y, layer), physical + "mlp_post_norm", logical + "post_feedforward_layernorm.weight");
    x = builder.emit_one(OpKind::kAdd, {x, y}, NoAttributes{}, "x");
  }
  builder.set_layer(-1);
  if (!parts.builds_head()) return parts.send(x);
  const ValueId normed = parts.rms_norm(x, "final_norm", "model.norm.weight");
  parts.head(normed, config.tie_embeddings ? embedding() : parts.matrix("head", {"lm_head.weight"}, init_std()));
}

}  // namespace orrery
