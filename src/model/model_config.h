// What a model is: one value for every decoder that Orrery builds, whichever file it came from (Hugging Face config.json, GGUF
// metadata, run.toml). Not here: weights, and how the model is laid out on devices. GGUF's keys are read in checkpoint/gguf_model.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ir/dtype.h"

namespace orrery {

/// kGpt2: learned positions, LayerNorm with bias, gelu (tanh form) MLP, all biases. kLlama: rotary positions, RMSNorm, SwiGLU,
/// grouped heads: Llama 2 and 3, Mistral, SmolLM2, Qwen2, Qwen3. kGemma3: Gemma 3's text models: scaled embedding, norms before and after
/// each block, GeGLU, q and k norms, layers with and without window that turn positions at two speeds; read from GGUF, to be served.
enum class ModelFamily : uint8_t { kGpt2, kLlama, kGemma3 };
std::string_view model_family_name(ModelFamily family);  // "gpt2", "llama", "gemma3"
std::optional<ModelFamily> parse_model_family(std::string_view name);

/// kLinear divides positions by `factor`; kLlama3 divides low frequencies by it and blends between the two wave lengths
/// original_max_seq_len / low_freq_factor and original_max_seq_len / high_freq_factor.
enum class RopeScalingKind : uint8_t { kNone, kLinear, kLlama3 };

struct RopeScaling {
  RopeScalingKind kind = RopeScalingKind::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_seq_len = 0;
  bool operator==(const RopeScaling&) const = default;
};

/// A count of 0 means "not given": resolve() fills it where the family has a rule. Everything else about a model follows from these.
struct ModelConfig {
  ModelFamily family = ModelFamily::kLlama;
  std::string architecture;  // Hugging Face class; empty: export_architecture() chooses

  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  int64_t vocab_size = 0;
  int64_t max_seq_len = 0;

  double rope_theta = 10000.0;
  double rope_local_theta = 10000.0;  // gemma3: of the layers with a window
  RopeScaling rope_scaling;
  double norm_eps = 1e-5;
  bool tie_embeddings = false;

  bool attention_bias = false;         // on q, k and v
  bool attention_output_bias = false;  // on the output projection
  bool mlp_bias = false;
  bool qk_norm = false;  // RMSNorm over head_dim on q and k before rope (Qwen3)

  int64_t sliding_window = 0;            // keys a token sees, itself included; 0: all
  std::vector<uint8_t> sliding_layers;   // one flag a layer; empty: every layer has the window

  std::optional<int64_t> bos_token_id;
  std::vector<int64_t> eos_token_ids;
  std::optional<int64_t> pad_token_id;

  bool operator==(const ModelConfig&) const = default;

  /// Keys that a token of `layer` sees, itself included; 0: all.
  int64_t window(int64_t layer) const {
    if (sliding_window == 0 || (!sliding_layers.empty() && sliding_layers[static_cast<size_t>(layer)] == 0)) return 0;
    return sliding_window;
  }
  int64_t query_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
};

/// The family's switches (biases, tied embeddings, eps), no sizes.
ModelConfig default_model_config(ModelFamily family);

/// Fills what was left 0: num_kv_heads = num_heads, head_dim = hidden_size / num_heads, intermediate_size = 4 * hidden_size
/// (gpt2) or 8/3 * hidden_size rounded up to 256 (llama).
void resolve(ModelConfig& config);

/// Errors: kInvalidConfig naming the key, its value, what would do. `where` names the source, e.g. "runs/a/run.toml" or "config.json".
void validate(const ModelConfig& config, std::string_view where);

/// Reads Hugging Face's config.json; the result is resolved and validated. Architectures: GPT2LMHeadModel, LlamaForCausalLM,
/// MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM.
/// Errors: kCorruptData: not JSON, a key of the wrong type. kUnsupported: another architecture, activation or rope scaling.
/// kInvalidConfig: as validate().
ModelConfig model_config_from_json(std::string_view json_text, std::string_view where);

/// config.json that transformers loads; weights_dtype is what the folder's tensors are stored in.
/// Errors: kUnsupported when no architecture of transformers has this combination of features.
std::string model_config_to_json(const ModelConfig& config, DType weights_dtype);

/// The Hugging Face class that has exactly these features: `architecture` when set and fitting, else the plainest.
/// Errors: kUnsupported naming the combination.
std::string export_architecture(const ModelConfig& config);

/// A tensor as the Hugging Face folder of this model names and shapes it. GPT-2's Conv1D matrices are [in, out].
struct LogicalTensor {
  std::string name;
  std::vector<int64_t> shape;
  bool conv1d = false;  // stored [in, out]
  int64_t num_elements() const;
  bool operator==(const LogicalTensor&) const = default;
};

/// Every tensor of the model, in model order (embedding, layers, final norm, head). A tied head is absent.
std::vector<LogicalTensor> logical_tensors(const ModelConfig& config);
int64_t num_parameters(const ModelConfig& config);

}  // namespace orrery
