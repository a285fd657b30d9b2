// Defaults, checks and the tensor list of a ModelConfig. The JSON form is in model_config_json.cpp.
#include "model/model_config.h"

#include <cmath>

#include "base/error.h"

namespace orrery {
namespace {

// Limits that no real model reaches, so that a lying file is refused before anything is sized by it; their products fit int64.
constexpr int64_t kMaxLayers = 10'000;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxVocab = int64_t{1} << 26;
constexpr int64_t kMaxRotaryHeadDim = 512;  // twice the angles that the kernels keep
constexpr int64_t kMaxSeqLen = int64_t{1} << 28;

void check_range(std::string_view where, std::string_view key, int64_t value, int64_t limit) {
  if (value >= 1 && value <= limit) return;
  if (value == 0) throw Error(ErrorCode::kInvalidConfig, "{}: {} is missing or 0; give a number from 1 to {}", where, key, limit);
  throw Error(ErrorCode::kInvalidConfig, "{}: {}={} is outside 1 to {}", where, key, value, limit);
}

std::string divisors(int64_t value) {
  std::string text;
  int64_t last = 0;
  int shown = 0;
  for (int64_t d = 1; d <= value && shown < 12; ++d) {
    if (value % d != 0) continue;
    if (last != 0) text += (shown == 1 ? "" : ", ") + std::to_string(last);
    last = d;
    ++shown;
  }
  return text.empty() ? std::to_string(last) : text + " or " + std::to_string(last);
}

void check_real(std::string_view where, std::string_view key, double value) {
  if (!(std::isfinite(value) && value > 0)) {
    throw Error(ErrorCode::kInvalidConfig, "{}: {}={} must be a finite number above 0", where, key, value);
  }
}

void check_rope(const ModelConfig& config, std::string_view where) {
  check_real(where, "rope_theta", config.rope_theta);
  check_range(where, "head_dim", config.head_dim, kMaxRotaryHeadDim);
  const RopeScaling& scaling = config.rope_scaling;
  if (scaling.kind == RopeScalingKind::kNone) return;
  check_real(where, "rope_scaling.factor", scaling.factor);
  if (scaling.kind != RopeScalingKind::kLlama3) return;
  check_real(where, "rope_scaling.low_freq_factor", scaling.low_freq_factor);
  check_real(where, "rope_scaling.high_freq_factor", scaling.high_freq_factor);
  if (!(scaling.high_freq_factor > scaling.low_freq_factor)) {
    throw Error(ErrorCode::kInvalidConfig, "{}: rope_scaling.high_freq_factor={} must be above low_freq_factor={}", where,
                scaling.high_freq_factor, scaling.low_freq_factor);
  }
  check_range(where, "rope_scaling.original_max_position_embeddings", scaling.original_max_seq_len, kMaxSeqLen);
}

void check_gpt2(const ModelConfig& config, std::string_view where) {
  if (config.num_kv_heads != config.num_heads) {
    throw Error(ErrorCode::kInvalidConfig, "{}: gpt2 has no grouped heads: num_kv_heads={} must equal num_heads={}, or use family llama",
                where, config.num_kv_heads, config.num_heads);
  }
  if (config.head_dim * config.num_heads != config.hidden_size) {
    throw Error(ErrorCode::kInvalidConfig, "{}: gpt2 needs num_heads * head_dim = hidden_size, found {} * {} and {}", where,
                config.num_heads, config.head_dim, config.hidden_size);
  }
  if (!config.attention_bias || !config.attention_output_bias || !config.mlp_bias) {
    throw Error(ErrorCode::kInvalidConfig, "{}: gpt2 has biases everywhere; remove attention_bias and mlp_bias, or use family llama", where);
  }
  if (config.qk_norm || config.sliding_window != 0 || config.rope_scaling.kind != RopeScalingKind::kNone) {
    throw Error(ErrorCode::kInvalidConfig, "{}: gpt2 has no q/k norms, sliding window or rope scaling; use family llama", where);
  }
}

}  // namespace

std::string_view model_family_name(ModelFamily family) {
  return family == ModelFamily::kGpt2 ? "gpt2" : family == ModelFamily::kGemma3 ? "gemma3" : "llama";
}

std::optional<ModelFamily> parse_model_family(std::string_view name) {
  if (name == "gpt2") return ModelFamily::kGpt2;
  if (name == "llama") return ModelFamily::kLlama;
  return std::nullopt;
}

ModelConfig default_model_config(ModelFamily family) {
  ModelConfig config;
  config.family = family;
  if (family == ModelFamily::kGpt2) {
    config.tie_embeddings = true;
    config.attention_bias = config.attention_output_bias = config.mlp_bias = true;
  }
  if (family == ModelFamily::kGemma3) {
    config.tie_embeddings = config.qk_norm = true;
    config.norm_eps = 1e-6;
    config.rope_theta = 1e6;
  }
  return config;
}

void resolve(ModelConfig& config) {
  if (config.num_kv_heads == 0) config.num_kv_heads = config.num_heads;
  // A remainder is left to validate(), which knows how to say it.
  if (config.head_dim == 0 && config.num_heads > 0 && config.hidden_size % config.num_heads == 0) {
    config.head_dim = config.hidden_size / config.num_heads;
  }
  if (config.intermediate_size == 0 && config.hidden_size > 0 && config.hidden_size <= kMaxWidth) {
    config.intermediate_size =
        config.family == ModelFamily::kGpt2 ? 4 * config.hidden_size : (config.hidden_size * 8 / 3 + 255) / 256 * 256;
  }
}

void validate(const ModelConfig& config, std::string_view where) {
  check_range(where, "hidden_size", config.hidden_size, kMaxWidth);
  check_range(where, "num_layers", config.num_layers, kMaxLayers);
  check_range(where, "num_heads", config.num_heads, kMaxWidth);
  check_range(where, "vocab_size", config.vocab_size, kMaxVocab);
  check_range(where, "max_seq_len", config.max_seq_len, kMaxSeqLen);
  if (config.head_dim == 0) {
    throw Error(ErrorCode::kInvalidConfig, "{}: num_heads={} does not divide hidden_size={}; give head_dim, or num_heads {}", where,
                config.num_heads, config.hidden_size, divisors(config.hidden_size));
  }
  check_range(where, "head_dim", config.head_dim, 65536);
  if (config.head_dim % 2 != 0)
    throw Error(ErrorCode::kInvalidConfig, "{}: head_dim={} is odd, but kernels take pairs of it, as rotary positions do; use an even head_dim{}", where, config.head_dim,
                config.family == ModelFamily::kGpt2 ? ", with num_heads so that hidden_size / num_heads is even" : "");
  check_range(where, "num_kv_heads", config.num_kv_heads, kMaxWidth);
  if (config.num_heads % config.num_kv_heads != 0) {
    throw Error(ErrorCode::kInvalidConfig, "{}: num_kv_heads={} does not divide num_heads={}; use {}", where, config.num_kv_heads,
                config.num_heads, divisors(config.num_heads));
  }
  check_range(where, "num_heads * head_dim", config.query_size(), kMaxWidth);
  check_range(where, "intermediate_size", config.intermediate_size, 4 * kMaxWidth);
  check_real(where, "norm_eps", config.norm_eps);
  if (config.sliding_window < 0) {
    throw Error(ErrorCode::kInvalidConfig, "{}: sliding_window={} must be at least 1, or 0 for none", where, config.sliding_window);
  }
  if (!config.sliding_layers.empty() && static_cast<int64_t>(config.sliding_layers.size()) != config.num_layers) {
    throw Error(ErrorCode::kInvalidConfig, "{}: the list of sliding window layers has {} entries for num_layers={}", where,
                config.sliding_layers.size(), config.num_layers);
  }
  if (config.family == ModelFamily::kGpt2) {
    check_gpt2(config, where);
  } else {
    check_rope(config, where);
  }
  if (config.family == ModelFamily::kGemma3) {
    check_real(where, "rope_local_theta", config.rope_local_theta);
    if (config.attention_bias || config.attention_output_bias || config.mlp_bias || !config.qk_norm)
      throw Error(ErrorCode::kInvalidConfig, "{}: gemma3 has q and k norms and no biases", where);
  }
}

int64_t LogicalTensor::num_elements() const {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  return count;
}

namespace {

std::vector<LogicalTensor> gpt2_tensors(const ModelConfig& config) {
  std::vector<LogicalTensor> tensors;
  const int64_t hidden = config.hidden_size;
  const auto vector = [&](std::string name, int64_t size) { tensors.push_back({std::move(name), {size}}); };
  const auto norm = [&](const std::string& name) {
    vector(name + ".weight", hidden);
    vector(name + ".bias", hidden);
  };
  const auto conv1d = [&](const std::string& name, int64_t in, int64_t out) {
    tensors.push_back({name + ".weight", {in, out}, true});
    vector(name + ".bias", out);
  };
  tensors.push_back({"transformer.wte.weight", {config.vocab_size, hidden}});
  tensors.push_back({"transformer.wpe.weight", {config.max_seq_len, hidden}});
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = "transformer.h." + std::to_string(layer) + ".";
    norm(prefix + "ln_1");
    conv1d(prefix + "attn.c_attn", hidden, 3 * hidden);
    conv1d(prefix + "attn.c_proj", hidden, hidden);
    norm(prefix + "ln_2");
    conv1d(prefix + "mlp.c_fc", hidden, config.intermediate_size);
    conv1d(prefix + "mlp.c_proj", config.intermediate_size, hidden);
  }
  norm("transformer.ln_f");
  if (!config.tie_embeddings) tensors.push_back({"lm_head.weight", {config.vocab_size, hidden}});
  return tensors;
}

// Gemma 3's list too: it has two norms more a layer.
std::vector<LogicalTensor> llama_tensors(const ModelConfig& config) {
  const bool gemma = config.family == ModelFamily::kGemma3;
  std::vector<LogicalTensor> tensors;
  const int64_t hidden = config.hidden_size;
  const auto vector = [&](std::string name, int64_t size) { tensors.push_back({std::move(name), {size}}); };
  const auto linear = [&](const std::string& name, int64_t out, int64_t in, bool bias) {
    tensors.push_back({name + ".weight", {out, in}});
    if (bias) vector(name + ".bias", out);
  };
  tensors.push_back({"model.embed_tokens.weight", {config.vocab_size, hidden}});
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    vector(prefix + "input_layernorm.weight", hidden);
    linear(prefix + "self_attn.q_proj", config.query_size(), hidden, config.attention_bias);
    linear(prefix + "self_attn.k_proj", config.kv_size(), hidden, config.attention_bias);
    linear(prefix + "self_attn.v_proj", config.kv_size(), hidden, config.attention_bias);
    if (config.qk_norm) {
      vector(prefix + "self_attn.q_norm.weight", config.head_dim);
      vector(prefix + "self_attn.k_norm.weight", config.head_dim);
    }
    linear(prefix + "self_attn.o_proj", hidden, config.query_size(), config.attention_output_bias);
    vector(prefix + "post_attention_layernorm.weight", hidden);
    if (gemma) vector(prefix + "pre_feedforward_layernorm.weight", hidden);
    linear(prefix + "mlp.gate_proj", config.intermediate_size, hidden, config.mlp_bias);
    linear(prefix + "mlp.up_proj", config.intermediate_size, hidden, config.mlp_bias);
    linear(prefix + "mlp.down_proj", hidden, config.intermediate_size, config.mlp_bias);
    if (gemma) vector(prefix + "post_feedforward_layernorm.weight", hidden);
  }
  vector("model.norm.weight", hidden);
  if (!config.tie_embeddings) tensors.push_back({"lm_head.weight", {config.vocab_size, hidden}});
  return tensors;
}

}  // namespace

std::vector<LogicalTensor> logical_tensors(const ModelConfig& config) {
  return config.family == ModelFamily::kGpt2 ? gpt2_tensors(config) : llama_tensors(config);
}

int64_t num_parameters(const ModelConfig& config) {
  int64_t count = 0;
  for (const LogicalTensor& tensor : logical_tensors(config)) count += tensor.num_elements();
  return count;
}

}  // namespace orrery
