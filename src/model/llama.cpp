// The Llama family: rotary positions, RMSNorm, grouped heads, SwiGLU; with Qwen2's biases, Qwen3's q and k norms, Mistral's window.
// Source  Touvron et al. 2023, arXiv:2302.13971; tensor names as Hugging Face's LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM.
#include "model/decoder_parts.h"

namespace orrery {
namespace {

RopeTable rope_table(const ModelConfig& config) {
  RopeTable table;
  table.max_positions = config.max_seq_len;
  table.rotary_dim = config.head_dim;
  table.theta = config.rope_theta;
  if (config.rope_scaling.kind == RopeScalingKind::kNone) return table;
  table.factor = config.rope_scaling.factor;
  table.llama3 = config.rope_scaling.kind == RopeScalingKind::kLlama3;
  table.low_freq_factor = config.rope_scaling.low_freq_factor;
  table.high_freq_factor = config.rope_scaling.high_freq_factor;
  table.original_max_positions = config.rope_scaling.original_max_seq_len;
  return table;
}

ValueId attention_block(DecoderParts& parts, ValueId x, ValueId table, int64_t layer) {
  const ModelConfig& config = parts.config();
  BlockBuilder& builder = parts.builder();
  const std::string physical = "layers." + std::to_string(layer) + ".attention.";
  const std::string logical = "model.layers." + std::to_string(layer) + ".self_attn.";
  LinearNames names{physical + "qkv", {logical + "q_proj.weight", logical + "k_proj.weight", logical + "v_proj.weight"}, physical + "qkv.bias", {}, {config.num_heads, config.num_kv_heads, config.num_kv_heads}};
  if (config.attention_bias) names.bias_tensors = {logical + "q_proj.bias", logical + "k_proj.bias", logical + "v_proj.bias"};
  const ValueId qkv = parts.column_linear(x, names, init_std(), "qkv");
  const int64_t query_size = parts.num_heads() * config.head_dim, kv_size = parts.num_kv_heads() * config.head_dim;
  const auto split = builder.emit(OpKind::kSplit, {qkv}, SplitAttributes{{query_size, kv_size, kv_size}}, {}, "split");
  ValueId q = split[0], k = split[1];
  if (config.qk_norm) {
    q = parts.head_norm(q, physical + "q_norm", logical + "q_norm.weight");
    k = parts.head_norm(k, physical + "k_norm", logical + "k_norm.weight");
  }
  RopeAttributes rope;
  rope.head_dim = rope.rotary_dim = config.head_dim;
  rope.num_heads = parts.num_heads();
  q = builder.emit_one(OpKind::kRope, {q, parts.positions(), table}, rope, "q");
  rope.num_heads = parts.num_kv_heads();
  k = builder.emit_one(OpKind::kRope, {k, parts.positions(), table}, rope, "k");
  const ValueId attended = parts.attention(q, k, split[2], layer);
  LinearNames output{physical + "output", {logical + "o_proj.weight"}, physical + "output.bias", {}};
  if (config.attention_output_bias) output.bias_tensors = {logical + "o_proj.bias"};
  return parts.row_linear(attended, output, residual_init_std(config.num_layers), "attention_output");
}

ValueId mlp_block(DecoderParts& parts, ValueId x, int64_t layer) {
  const ModelConfig& config = parts.config();
  BlockBuilder& builder = parts.builder();
  const std::string physical = "layers." + std::to_string(layer) + ".mlp.";
  const std::string logical = "model.layers." + std::to_string(layer) + ".mlp.";
  LinearNames names{physical + "gate_up", {logical + "gate_proj.weight", logical + "up_proj.weight"}, physical + "gate_up.bias", {}};
  LinearNames down{physical + "down", {logical + "down_proj.weight"}, physical + "down.bias", {}};
  if (config.mlp_bias) {
    names.bias_tensors = {logical + "gate_proj.bias", logical + "up_proj.bias"};
    down.bias_tensors = {logical + "down_proj.bias"};
  }
  const ValueId gate_up = parts.column_linear(x, names, init_std(), "gate_up");
  const int64_t width = parts.share(config.intermediate_size);
  const auto halves = builder.emit(OpKind::kSplit, {gate_up}, SplitAttributes{{width, width}}, {}, "split");
  const ValueId gate = builder.emit_one(OpKind::kSilu, {halves[0]}, NoAttributes{}, "silu");
  const ValueId hidden = builder.emit_one(OpKind::kMul, {gate, halves[1]}, NoAttributes{}, "mlp_hidden");
  return parts.row_linear(hidden, down, residual_init_std(config.num_layers), "mlp_output");
}

}  // namespace

void build_llama(DecoderParts& parts) {
  const ModelConfig& config = parts.config();
  BlockBuilder& builder = parts.builder();
  const auto embedding = [&] { return parts.embedding_table("model.embed_tokens.weight", config.tie_embeddings); };
  ValueId x = parts.builds_embedding() ? parts.embed(parts.ids(), embedding()) : parts.received();
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!parts.builds(layer)) continue;
    const ValueId table = builder.constant(rope_table(config));
    builder.set_layer(static_cast<int32_t>(layer));
    const std::string physical = "layers." + std::to_string(layer) + ".";
    const std::string logical = "model.layers." + std::to_string(layer) + ".";
    const ValueId normed = parts.rms_norm(x, physical + "attention_norm", logical + "input_layernorm.weight");
    x = builder.emit_one(OpKind::kAdd, {x, attention_block(parts, normed, table, layer)}, NoAttributes{}, "x_mid");
    const ValueId mlp_normed = parts.rms_norm(x, physical + "mlp_norm", logical + "post_attention_layernorm.weight");
    x = builder.emit_one(OpKind::kAdd, {x, mlp_block(parts, mlp_normed, layer)}, NoAttributes{}, "x");
  }
  builder.set_layer(-1);
  if (!parts.builds_head()) return parts.send(x);
  const ValueId normed = parts.rms_norm(x, "final_norm", "model.norm.weight");
  parts.head(normed, config.tie_embeddings ? embedding() : parts.head_matrix("lm_head.weight"));
}

}  // namespace orrery
