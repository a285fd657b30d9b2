#include "checkpoint/gguf_model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numbers>

#include "base/error.h"

namespace orrery {
namespace {

constexpr std::string_view kSupported = "gpt2, llama, qwen2, qwen3, gemma3";

/// The decimal number that was meant by a float: 1e-5, not 9.99999975e-06, so that a config survives the way through GGUF.
double meant_by(double value) { return std::strtod(fmt::format("{}", static_cast<float>(value)).c_str(), nullptr); }

/// blk.N parts of Hugging Face names below the layer prefix.
struct NamePair {
  std::string_view hf, gguf;
};
constexpr NamePair kLlamaParts[] = {
    {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},   {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},      {"self_attn.o_proj", "attn_output"}, {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"}, {"post_attention_layernorm", "ffn_norm"}, {"mlp.gate_proj", "ffn_gate"},
    {"mlp.up_proj", "ffn_up"},           {"mlp.down_proj", "ffn_down"},
};
/// Before kLlamaParts: what Hugging Face calls post_attention_layernorm is another norm in Gemma 3.
constexpr NamePair kGemma3Parts[] = {
    {"post_attention_layernorm", "post_attention_norm"}, {"pre_feedforward_layernorm", "ffn_norm"}, {"post_feedforward_layernorm", "post_ffw_norm"},
};
constexpr NamePair kGpt2Parts[] = {
    {"ln_1", "attn_norm"}, {"attn.c_attn", "attn_qkv"}, {"attn.c_proj", "attn_output"}, {"ln_2", "ffn_norm"}, {"mlp.c_fc", "ffn_up"}, {"mlp.c_proj", "ffn_down"},
};
constexpr NamePair kWholeModel[] = {
    {"model.embed_tokens.weight", "token_embd.weight"}, {"model.norm.weight", "output_norm.weight"}, {"lm_head.weight", "output.weight"},
    {"transformer.wte.weight", "token_embd.weight"},    {"transformer.wpe.weight", "position_embd.weight"},
    {"transformer.ln_f.weight", "output_norm.weight"},  {"transformer.ln_f.bias", "output_norm.bias"},
};

std::string gguf_name_of(const std::string& hf, ModelFamily family) {
  const bool gpt2 = family == ModelFamily::kGpt2;
  for (const NamePair& pair : kWholeModel) {
    if (hf == pair.hf) return std::string(pair.gguf);
  }
  const std::string_view prefix = gpt2 ? "transformer.h." : "model.layers.";
  ORRERY_CHECK(hf.starts_with(prefix), "{}", hf);
  const size_t dot = hf.find('.', prefix.size());
  const size_t last = hf.rfind('.');
  const std::string_view part = std::string_view(hf).substr(dot + 1, last - dot - 1);
  if (family == ModelFamily::kGemma3) {
    for (const NamePair& pair : kGemma3Parts) {
      if (part == pair.hf) return fmt::format("blk.{}.{}{}", hf.substr(prefix.size(), dot - prefix.size()), pair.gguf, hf.substr(last));
    }
  }
  const std::span<const NamePair> parts = gpt2 ? std::span<const NamePair>(kGpt2Parts) : std::span<const NamePair>(kLlamaParts);
  const auto it = std::find_if(parts.begin(), parts.end(), [&](const NamePair& pair) { return pair.hf == part; });
  ORRERY_CHECK(it != parts.end(), "{}", hf);
  return fmt::format("blk.{}.{}{}", hf.substr(prefix.size(), dot - prefix.size()), it->gguf, hf.substr(last));
}

int64_t required_integer(const GgufReader& file, const std::string& key) {
  const auto value = file.integer(key);
  if (!value) throw Error(ErrorCode::kCorruptData, "{}: the key \"{}\" is missing", file.path(), key);
  return *value;
}

/// A number that some architectures give per layer: accepted when all layers agree.
std::optional<int64_t> uniform_integer(const GgufReader& file, const std::string& key) {
  if (!file.has(key)) return std::nullopt;
  try {
    return file.integer(key);
  } catch (const Error&) {
    const auto list = file.integers(key);
    if (list->empty() || std::adjacent_find(list->begin(), list->end(), std::not_equal_to<>()) != list->end()) {
      throw Error(ErrorCode::kUnsupported, "{}: \"{}\" differs between layers, which is not supported", file.path(), key);
    }
    return list->front();
  }
}

/// Llama 3's scaling is only kept as divisors: the parameters are found again by trying the ones that exist.
RopeScaling scaling_from_factors(const GgufReader& file, const std::string& arch, const ModelConfig& config, const GgufTensor& tensor) {
  std::vector<float> found(static_cast<size_t>(tensor.num_elements()));
  decode_blocks(tensor.type, tensor.data.data(), tensor.num_elements(), found.data());
  if (static_cast<int64_t>(found.size()) != config.head_dim / 2) {
    throw Error(ErrorCode::kCorruptData, "{}: rope_freqs.weight has {} elements, wanted head_dim / 2 = {}", file.path(), found.size(), config.head_dim / 2);
  }
  std::vector<int64_t> lengths = {8192, 4096, 2048, 16384, 32768, 65536, 131072};
  if (const auto given = file.integer(arch + ".rope.scaling.original_context_length")) lengths.insert(lengths.begin(), *given);
  const double low = meant_by(file.number(arch + ".rope.scaling.low_freq_factor").value_or(1.0));
  const double high = meant_by(file.number(arch + ".rope.scaling.high_freq_factor").value_or(4.0));
  const double largest = *std::max_element(found.begin(), found.end());
  for (const int64_t length : lengths) {
    const RopeScaling candidate{RopeScalingKind::kLlama3, meant_by(largest), low, high, length};
    const std::vector<float> wanted = rope_frequency_factors(candidate, config.rope_theta, config.head_dim);
    bool equal = true;
    for (size_t i = 0; i < found.size(); ++i) equal &= std::abs(wanted[i] - found[i]) <= 1e-4f * std::abs(wanted[i]);
    if (equal) return candidate;
  }
  throw Error(ErrorCode::kUnsupported, "{}: the frequency factors in rope_freqs.weight are not those of a Llama 3 scaling (largest {})", file.path(), largest);
}

void read_rope(const GgufReader& file, const std::string& arch, ModelConfig& config) {
  config.rope_theta = meant_by(file.number(arch + ".rope.freq_base").value_or(10000.0));
  const int64_t rotary = file.integer(arch + ".rope.dimension_count").value_or(config.head_dim);
  if (rotary != config.head_dim) {
    throw Error(ErrorCode::kUnsupported, "{}: {}.rope.dimension_count={} but head_dim={}; partial rotation is not supported", file.path(), arch, rotary, config.head_dim);
  }
  if (const GgufTensor* factors = file.find_tensor("rope_freqs.weight")) {
    config.rope_scaling = scaling_from_factors(file, arch, config, *factors);
    return;
  }
  const std::string type = file.text(arch + ".rope.scaling.type").value_or("none");
  if (type == "none") return;
  if (type != "linear") {
    throw Error(ErrorCode::kUnsupported, "{}: rope scaling \"{}\" is not supported; supported: none, linear, Llama 3's", file.path(), type);
  }
  config.rope_scaling.kind = RopeScalingKind::kLinear;
  config.rope_scaling.factor = meant_by(file.number(arch + ".rope.scaling.factor").value_or(1.0));
}

bool has_bias(const GgufReader& file, std::string_view part) { return file.find_tensor(fmt::format("blk.0.{}.bias", part)) != nullptr; }

/// The head is tied when it is absent; GPT-2 converters write a copy of the embedding.
bool is_tied(const GgufReader& file) {
  const GgufTensor* head = file.find_tensor("output.weight");
  if (head == nullptr) return true;
  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  return embedding != nullptr && embedding->type == head->type && embedding->shape == head->shape &&
         std::equal(embedding->data.begin(), embedding->data.end(), head->data.begin(), head->data.end());
}

// Files do not say it: every sixth layer sees everything.
std::vector<uint8_t> gemma3_sliding_layers(const ModelConfig& config) {
  std::vector<uint8_t> layers;
  if (config.sliding_window > 0)
    for (int64_t layer = 0; layer < config.num_layers; ++layer) layers.push_back((layer + 1) % 6 != 0);
  return layers;
}

}  // namespace

int64_t gguf_permuted_row(int64_t row, int64_t num_rows, int64_t heads) {
  const int64_t head_dim = num_rows / heads, half = head_dim / 2;
  const int64_t head = row / head_dim, inside = row % head_dim;
  return head * head_dim + 2 * (inside % half) + inside / half;
}

std::vector<GgufTensorMapping> gguf_tensor_mapping(const ModelConfig& config, std::string_view architecture) {
  std::vector<GgufTensorMapping> mapping;
  for (LogicalTensor& tensor : logical_tensors(config)) {
    GgufTensorMapping entry;
    entry.gguf_name = gguf_name_of(tensor.name, config.family);
    if (architecture == "llama") {
      if (tensor.name.find("self_attn.q_proj.") != std::string::npos) entry.permuted_heads = config.num_heads;
      if (tensor.name.find("self_attn.k_proj.") != std::string::npos) entry.permuted_heads = config.num_kv_heads;
    }
    entry.tensor = std::move(tensor);
    mapping.push_back(std::move(entry));
  }
  return mapping;
}

std::string gguf_architecture(const ModelConfig& config) {
  if (config.family == ModelFamily::kGemma3) {
    if (config.sliding_layers == gemma3_sliding_layers(config)) return "gemma3";
    throw Error(ErrorCode::kUnsupported, "GGUF has only Gemma 3's own pattern of windows: every sixth layer has none");
  }
  const std::string name = export_architecture(config);
  if (!config.sliding_layers.empty()) {
    throw Error(ErrorCode::kUnsupported, "GGUF cannot say that only some layers of a {} have a sliding window; export a Hugging Face folder instead", name);
  }
  if (name == "GPT2LMHeadModel") return "gpt2";
  if (name == "Qwen2ForCausalLM") return "qwen2";
  if (name == "Qwen3ForCausalLM") {
    if (!config.attention_bias) return "qwen3";
    throw Error(ErrorCode::kUnsupported, "GGUF has no architecture with q/k norms and attention biases; export a Hugging Face folder instead");
  }
  return "llama";
}

ModelConfig model_config_from_gguf(const GgufReader& file) {
  const std::string arch = file.text("general.architecture").value_or("");
  if (arch != "gpt2" && arch != "llama" && arch != "qwen2" && arch != "qwen3" && arch != "gemma3") {
    throw Error(ErrorCode::kUnsupported, "{}: architecture \"{}\" is not supported; supported: {}", file.path(), arch, kSupported);
  }
  if (file.integer(arch + ".expert_count").value_or(0) > 0) {
    throw Error(ErrorCode::kUnsupported, "{}: a mixture of experts ({} experts) is not supported", file.path(), *file.integer(arch + ".expert_count"));
  }
  ModelConfig config = default_model_config(arch == "gpt2" ? ModelFamily::kGpt2 : arch == "gemma3" ? ModelFamily::kGemma3 : ModelFamily::kLlama);
  config.hidden_size = required_integer(file, arch + ".embedding_length");
  config.num_layers = required_integer(file, arch + ".block_count");
  config.num_heads = uniform_integer(file, arch + ".attention.head_count").value_or(0);
  config.num_kv_heads = uniform_integer(file, arch + ".attention.head_count_kv").value_or(0);
  config.head_dim = file.integer(arch + ".attention.key_length").value_or(0);
  if (file.integer(arch + ".attention.value_length").value_or(config.head_dim) != config.head_dim) {
    throw Error(ErrorCode::kUnsupported, "{}: keys and values of different lengths are not supported", file.path());
  }
  config.intermediate_size = uniform_integer(file, arch + ".feed_forward_length").value_or(0);
  config.max_seq_len = required_integer(file, arch + ".context_length");
  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) throw Error(ErrorCode::kCorruptData, "{}: no tensor token_embd.weight", file.path());
  config.vocab_size = embedding->shape[0];
  config.tie_embeddings = is_tied(file);
  resolve(config);
  if (arch == "gpt2") {
    config.architecture = "GPT2LMHeadModel";
    config.norm_eps = meant_by(file.number(arch + ".attention.layer_norm_epsilon").value_or(1e-5));
  } else {
    config.norm_eps = meant_by(file.number(arch + ".attention.layer_norm_rms_epsilon").value_or(1e-5));
    config.qk_norm = arch == "qwen3" || arch == "gemma3";
    config.attention_bias = has_bias(file, "attn_q");
    config.attention_output_bias = has_bias(file, "attn_output");
    config.mlp_bias = has_bias(file, "ffn_down");
    config.sliding_window = file.integer(arch + ".attention.sliding_window").value_or(0);
    validate(config, file.path());
    read_rope(file, arch, config);
    if (arch == "gemma3") {
      config.rope_local_theta = meant_by(file.number(arch + ".rope.freq_base_swa").value_or(10000.0));
      config.sliding_layers = gemma3_sliding_layers(config);
      if (config.num_layers == 62 && config.head_dim == 128)
        throw Error(ErrorCode::kUnsupported, "{}: Gemma 3 27B scales attention by another factor than its head, which is not supported", file.path());
    }
    config.architecture = arch == "qwen2" ? "Qwen2ForCausalLM" : arch == "qwen3" ? "Qwen3ForCausalLM" : "";
    if (arch != "gemma3") config.architecture = export_architecture(config);
  }
  config.bos_token_id = file.integer("tokenizer.ggml.bos_token_id");
  if (const auto eos = file.integer("tokenizer.ggml.eos_token_id")) config.eos_token_ids.push_back(*eos);
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    const auto id = file.integer(key);
    if (id && std::find(config.eos_token_ids.begin(), config.eos_token_ids.end(), *id) == config.eos_token_ids.end()) config.eos_token_ids.push_back(*id);
  }
  config.pad_token_id = file.integer("tokenizer.ggml.padding_token_id");
  validate(config, file.path());
  return config;
}

void add_model_metadata(const ModelConfig& config, std::string_view architecture, uint32_t file_type, GgufMetadata& metadata) {
  const std::string arch(architecture);
  const auto u32 = [&](const std::string& key, int64_t value) { metadata.add_u32(arch + key, static_cast<uint32_t>(value)); };
  const auto f32 = [&](const std::string& key, double value) { metadata.add_f32(arch + key, static_cast<float>(value)); };
  metadata.add_text("general.architecture", arch);
  metadata.add_text("general.type", "model");
  metadata.add_u32("general.file_type", file_type);
  metadata.add_u32("general.quantization_version", 2);
  u32(".vocab_size", config.vocab_size);
  u32(".context_length", config.max_seq_len);
  u32(".embedding_length", config.hidden_size);
  u32(".block_count", config.num_layers);
  u32(".feed_forward_length", config.intermediate_size);
  u32(".attention.head_count", config.num_heads);
  if (config.family == ModelFamily::kGpt2) {
    f32(".attention.layer_norm_epsilon", config.norm_eps);
    return;
  }
  u32(".attention.head_count_kv", config.num_kv_heads);
  u32(".attention.key_length", config.head_dim);
  u32(".attention.value_length", config.head_dim);
  f32(".attention.layer_norm_rms_epsilon", config.norm_eps);
  if (config.sliding_window != 0) u32(".attention.sliding_window", config.sliding_window);
  u32(".rope.dimension_count", config.head_dim);
  f32(".rope.freq_base", config.rope_theta);
  if (config.family == ModelFamily::kGemma3) f32(".rope.freq_base_swa", config.rope_local_theta);
  const RopeScaling& rope = config.rope_scaling;
  if (rope.kind == RopeScalingKind::kLinear) {
    metadata.add_text(arch + ".rope.scaling.type", "linear");
    f32(".rope.scaling.factor", rope.factor);
  } else if (rope.kind == RopeScalingKind::kLlama3) {
    // llama.cpp reads the tensor rope_freqs.weight; these say where it came from.
    u32(".rope.scaling.original_context_length", rope.original_max_seq_len);
    f32(".rope.scaling.low_freq_factor", rope.low_freq_factor);
    f32(".rope.scaling.high_freq_factor", rope.high_freq_factor);
  }
}

std::vector<float> rope_frequency_factors(const RopeScaling& scaling, double theta, int64_t head_dim) {
  std::vector<float> factors;
  if (scaling.kind != RopeScalingKind::kLlama3) return factors;
  const double length = static_cast<double>(scaling.original_max_seq_len);
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    const double wave_length = 2 * std::numbers::pi * std::pow(theta, 2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    double factor = 1;
    if (wave_length > length / scaling.low_freq_factor) {
      factor = scaling.factor;
    } else if (wave_length > length / scaling.high_freq_factor) {
      const double smooth = (length / wave_length - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
      factor = 1 / ((1 - smooth) / scaling.factor + smooth);
    }
    factors.push_back(static_cast<float>(factor));
  }
  return factors;
}

}  // namespace orrery
