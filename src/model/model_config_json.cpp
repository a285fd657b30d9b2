// Hugging Face's config.json: read, checked, written. The defaults of absent keys are those of transformers' configuration classes.
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/model_config.h"

namespace orrery {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<std::string_view, 5> kArchitectures = {"GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM",
                                                            "Qwen2ForCausalLM", "Qwen3ForCausalLM"};
constexpr std::string_view kSupported = "GPT2LMHeadModel, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM";

/// Typed access to one JSON object; an absent key and null are the same.
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) throw Error(ErrorCode::kCorruptData, "{}: wanted a JSON object, found {}", where_, object.type_name());
  }

  const Json* find(std::string_view key) const {
    const auto it = object_.find(std::string(key));
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  int64_t integer(std::string_view key, int64_t fallback) const {
    const Json* value = find(key);
    return value == nullptr ? fallback : to_integer(key, *value);
  }
  std::optional<int64_t> optional_integer(std::string_view key) const {
    const Json* value = find(key);
    return value == nullptr ? std::nullopt : std::optional(to_integer(key, *value));
  }
  int64_t required(std::string_view key) const {
    const Json* value = find(key);
    if (value == nullptr) throw Error(ErrorCode::kCorruptData, "{}: the key \"{}\" is missing", where_, key);
    return to_integer(key, *value);
  }
  double number(std::string_view key, double fallback) const {
    const Json* value = find(key);
    if (value == nullptr) return fallback;
    if (!value->is_number()) wrong_type(key, "a number", *value);
    return value->get<double>();
  }
  bool flag(std::string_view key, bool fallback) const {
    const Json* value = find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) wrong_type(key, "true or false", *value);
    return value->get<bool>();
  }
  std::string text(std::string_view key, std::string_view fallback) const {
    const Json* value = find(key);
    if (value == nullptr) return std::string(fallback);
    if (!value->is_string()) wrong_type(key, "a string", *value);
    return value->get<std::string>();
  }
  [[noreturn]] void wrong_type(std::string_view key, std::string_view wanted, const Json& found) const {
    throw Error(ErrorCode::kCorruptData, "{}: \"{}\" must be {}, found {}", where_, key, wanted, found.type_name());
  }
  int64_t to_integer(std::string_view key, const Json& value) const {
    if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX)) {
      wrong_type(key, "an integer", value);
    }
    return value.get<int64_t>();
  }
  const std::string& where() const { return where_; }

 private:
  const Json& object_;
  std::string where_;
};

std::string find_architecture(const Fields& fields) {
  const Json* list = fields.find("architectures");
  std::string name;
  if (list != nullptr) {
    if (!list->is_array() || list->empty() || !list->front().is_string()) fields.wrong_type("architectures", "a list of class names", *list);
    name = list->front().get<std::string>();
  } else {
    // Old folders name only the type.
    const std::string type = fields.text("model_type", "");
    for (const auto& [key, value] : std::initializer_list<std::pair<std::string_view, std::string_view>>{
             {"gpt2", "GPT2LMHeadModel"}, {"llama", "LlamaForCausalLM"}, {"mistral", "MistralForCausalLM"},
             {"qwen2", "Qwen2ForCausalLM"}, {"qwen3", "Qwen3ForCausalLM"}}) {
      if (type == key) name = value;
    }
    if (name.empty()) {
      throw Error(ErrorCode::kUnsupported, "{}: neither \"architectures\" nor a known \"model_type\" (found \"{}\"); supported: {}",
                  fields.where(), type, kSupported);
    }
  }
  if (std::find(kArchitectures.begin(), kArchitectures.end(), name) == kArchitectures.end()) {
    throw Error(ErrorCode::kUnsupported, "{}: architecture \"{}\" is not supported; supported: {}", fields.where(), name, kSupported);
  }
  return name;
}

void read_token_ids(const Fields& fields, ModelConfig& config) {
  config.bos_token_id = fields.optional_integer("bos_token_id");
  config.pad_token_id = fields.optional_integer("pad_token_id");
  const Json* eos = fields.find("eos_token_id");
  if (eos == nullptr) return;
  if (!eos->is_array()) {
    config.eos_token_ids = {fields.to_integer("eos_token_id", *eos)};
    return;
  }
  for (const Json& id : *eos) config.eos_token_ids.push_back(fields.to_integer("eos_token_id", id));
}

void read_rope(const Fields& fields, double default_theta, ModelConfig& config) {
  config.rope_theta = fields.number("rope_theta", default_theta);
  if (fields.number("partial_rotary_factor", 1.0) != 1.0) {
    throw Error(ErrorCode::kUnsupported, "{}: partial_rotary_factor other than 1 is not supported", fields.where());
  }
  // transformers 5 writes rope_parameters; before, rope_scaling beside rope_theta.
  const Json* object = fields.find("rope_parameters");
  if (object == nullptr) object = fields.find("rope_scaling");
  if (object == nullptr) return;
  const Fields scaling(*object, fields.where() + ": rope scaling");
  config.rope_theta = scaling.number("rope_theta", config.rope_theta);
  const std::string type = scaling.text("rope_type", scaling.text("type", "default"));
  if (type == "default") return;
  RopeScaling& rope = config.rope_scaling;
  rope.factor = scaling.number("factor", 1.0);
  if (type == "linear") {
    rope.kind = RopeScalingKind::kLinear;
  } else if (type == "llama3") {
    rope.kind = RopeScalingKind::kLlama3;
    rope.low_freq_factor = scaling.number("low_freq_factor", 1.0);
    rope.high_freq_factor = scaling.number("high_freq_factor", 4.0);
    rope.original_max_seq_len = scaling.integer("original_max_position_embeddings", config.max_seq_len);
  } else {
    throw Error(ErrorCode::kUnsupported, "{}: type \"{}\" is not supported; supported: default, linear, llama3", scaling.where(), type);
  }
}

void read_sliding_window(const Fields& fields, const std::string& architecture, ModelConfig& config) {
  const bool qwen = architecture.starts_with("Qwen");
  if (architecture != "MistralForCausalLM" && !qwen) return;
  if (qwen && !fields.flag("use_sliding_window", false)) return;
  config.sliding_window = fields.integer("sliding_window", qwen ? 4096 : 0);
  if (config.sliding_window == 0 || config.num_layers < 1 || config.num_layers > 10'000) return;
  if (const Json* types = fields.find("layer_types")) {
    if (!types->is_array()) fields.wrong_type("layer_types", "a list", *types);
    for (const Json& type : *types) {
      if (!type.is_string()) fields.wrong_type("layer_types", "a list of strings", type);
      const std::string name = type.get<std::string>();
      if (name != "sliding_attention" && name != "full_attention") {
        throw Error(ErrorCode::kUnsupported, "{}: layer type \"{}\" is not supported; supported: sliding_attention, full_attention",
                    fields.where(), name);
      }
      config.sliding_layers.push_back(name == "sliding_attention");
    }
  } else if (qwen) {
    const int64_t first = fields.integer("max_window_layers", 28);
    for (int64_t layer = 0; layer < config.num_layers; ++layer) config.sliding_layers.push_back(layer >= first);
  }
  // One form for one meaning: all layers is the empty list, no layer is no window.
  const auto count = std::count(config.sliding_layers.begin(), config.sliding_layers.end(), 1);
  if (!config.sliding_layers.empty() && count == 0) config.sliding_window = 0;
  if (count == 0 || count == config.num_layers) config.sliding_layers.clear();
}

void check_activation(const Fields& fields, std::string_view key, std::string_view fallback,
                      std::initializer_list<std::string_view> allowed) {
  const std::string name = fields.text(key, fallback);
  for (const std::string_view candidate : allowed) {
    if (name == candidate) return;
  }
  throw Error(ErrorCode::kUnsupported, "{}: {}=\"{}\" is not supported; supported: {}", fields.where(), key, name, *allowed.begin());
}

ModelConfig read_gpt2(const Fields& fields) {
  ModelConfig config = default_model_config(ModelFamily::kGpt2);
  config.hidden_size = fields.required("n_embd");
  config.num_layers = fields.required("n_layer");
  config.num_heads = fields.required("n_head");
  config.vocab_size = fields.required("vocab_size");
  config.max_seq_len = fields.integer("n_positions", 1024);
  config.intermediate_size = fields.integer("n_inner", 0);
  config.norm_eps = fields.number("layer_norm_epsilon", 1e-5);
  config.tie_embeddings = fields.flag("tie_word_embeddings", true);
  check_activation(fields, "activation_function", "gelu_new", {"gelu_new", "gelu_pytorch_tanh"});
  if (fields.flag("scale_attn_by_inverse_layer_idx", false) || !fields.flag("scale_attn_weights", true)) {
    throw Error(ErrorCode::kUnsupported, "{}: only attention scaled by 1/sqrt(head_dim) is supported", fields.where());
  }
  return config;
}

ModelConfig read_llama(const Fields& fields, const std::string& architecture) {
  ModelConfig config = default_model_config(ModelFamily::kLlama);
  const bool qwen2 = architecture == "Qwen2ForCausalLM";
  const bool qwen3 = architecture == "Qwen3ForCausalLM";
  config.hidden_size = fields.required("hidden_size");
  config.num_layers = fields.required("num_hidden_layers");
  config.num_heads = fields.required("num_attention_heads");
  config.num_kv_heads = fields.integer("num_key_value_heads", 0);
  config.head_dim = fields.integer("head_dim", qwen3 ? 128 : 0);
  config.intermediate_size = fields.required("intermediate_size");
  config.vocab_size = fields.required("vocab_size");
  config.max_seq_len = fields.integer("max_position_embeddings", 2048);
  config.norm_eps = fields.number("rms_norm_eps", 1e-6);
  config.tie_embeddings = fields.flag("tie_word_embeddings", false);
  config.qk_norm = qwen3;
  // Llama's and Qwen3's attention_bias also means the output projection; Qwen2 always has q, k and v biases only.
  config.attention_bias = qwen2 || fields.flag("attention_bias", false);
  config.attention_output_bias = !qwen2 && config.attention_bias;
  config.mlp_bias = fields.flag("mlp_bias", false);
  check_activation(fields, "hidden_act", "silu", {"silu", "swish"});
  read_rope(fields, 10000.0, config);
  read_sliding_window(fields, architecture, config);
  return config;
}

Json token_ids(const ModelConfig& config) {
  Json ids = Json::object();
  ids["bos_token_id"] = config.bos_token_id ? Json(*config.bos_token_id) : Json(nullptr);
  if (config.eos_token_ids.size() == 1) {
    ids["eos_token_id"] = config.eos_token_ids[0];
  } else {
    ids["eos_token_id"] = config.eos_token_ids.empty() ? Json(nullptr) : Json(config.eos_token_ids);
  }
  if (config.pad_token_id) ids["pad_token_id"] = *config.pad_token_id;
  return ids;
}

std::string torch_dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "float32";
    case DType::kBF16: return "bfloat16";
    case DType::kF16: return "float16";
    default: throw Error(ErrorCode::kUnsupported, "config.json: weights of type {} cannot be exported; use f32, bf16 or f16", dtype_name(dtype));
  }
}

void write_gpt2(const ModelConfig& config, Json& json) {
  json["model_type"] = "gpt2";
  json["n_embd"] = config.hidden_size;
  json["n_layer"] = config.num_layers;
  json["n_head"] = config.num_heads;
  json["n_positions"] = config.max_seq_len;
  json["n_ctx"] = config.max_seq_len;
  json["n_inner"] = config.intermediate_size == 4 * config.hidden_size ? Json(nullptr) : Json(config.intermediate_size);
  json["activation_function"] = "gelu_new";
  json["layer_norm_epsilon"] = config.norm_eps;
  json["attn_pdrop"] = json["embd_pdrop"] = json["resid_pdrop"] = 0.0;
}

void write_rope(const ModelConfig& config, Json& json) {
  json["rope_theta"] = config.rope_theta;
  const RopeScaling& rope = config.rope_scaling;
  if (rope.kind == RopeScalingKind::kNone) {
    json["rope_scaling"] = nullptr;
  } else if (rope.kind == RopeScalingKind::kLinear) {
    json["rope_scaling"] = {{"rope_type", "linear"}, {"factor", rope.factor}};
  } else {
    json["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", rope.factor},
                            {"low_freq_factor", rope.low_freq_factor},
                            {"high_freq_factor", rope.high_freq_factor},
                            {"original_max_position_embeddings", rope.original_max_seq_len}};
  }
}

void write_llama(const ModelConfig& config, const std::string& architecture, Json& json) {
  const bool qwen = architecture.starts_with("Qwen");
  json["model_type"] = architecture == "LlamaForCausalLM"     ? "llama"
                       : architecture == "MistralForCausalLM" ? "mistral"
                       : architecture == "Qwen2ForCausalLM"   ? "qwen2"
                                                              : "qwen3";
  json["hidden_size"] = config.hidden_size;
  json["num_hidden_layers"] = config.num_layers;
  json["num_attention_heads"] = config.num_heads;
  json["num_key_value_heads"] = config.num_kv_heads;
  if (architecture != "Qwen2ForCausalLM") json["head_dim"] = config.head_dim;
  json["intermediate_size"] = config.intermediate_size;
  json["max_position_embeddings"] = config.max_seq_len;
  json["rms_norm_eps"] = config.norm_eps;
  json["hidden_act"] = "silu";
  json["attention_dropout"] = 0.0;
  if (architecture == "LlamaForCausalLM" || architecture == "Qwen3ForCausalLM") json["attention_bias"] = config.attention_bias;
  if (architecture == "LlamaForCausalLM") json["mlp_bias"] = config.mlp_bias;
  write_rope(config, json);
  if (architecture == "MistralForCausalLM" || qwen) {
    json["sliding_window"] = config.sliding_window == 0 ? Json(nullptr) : Json(config.sliding_window);
  }
  if (qwen) {
    json["use_sliding_window"] = config.sliding_window != 0;
    int64_t first = config.sliding_window == 0 ? config.num_layers : 0;
    while (first < config.num_layers && config.window(first) == 0) ++first;
    json["max_window_layers"] = first;
    Json types = Json::array();
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      types.push_back(config.window(layer) != 0 ? "sliding_attention" : "full_attention");
    }
    json["layer_types"] = types;
  }
}

bool fits(const ModelConfig& config, std::string_view architecture) {
  if (config.family == ModelFamily::kGemma3) return false;
  if (config.family == ModelFamily::kGpt2) return architecture == "GPT2LMHeadModel";
  const bool both_or_no_biases = config.attention_bias == config.attention_output_bias;
  const bool square = config.head_dim * config.num_heads == config.hidden_size;
  if (architecture == "LlamaForCausalLM") return !config.qk_norm && config.sliding_window == 0 && both_or_no_biases;
  if (architecture == "MistralForCausalLM") {
    return !config.qk_norm && !config.attention_bias && !config.attention_output_bias && !config.mlp_bias && config.sliding_layers.empty();
  }
  if (architecture == "Qwen2ForCausalLM") {
    return !config.qk_norm && config.attention_bias && !config.attention_output_bias && !config.mlp_bias && square;
  }
  if (architecture == "Qwen3ForCausalLM") return config.qk_norm && both_or_no_biases && !config.mlp_bias;
  return false;
}

}  // namespace

ModelConfig model_config_from_json(std::string_view json_text, std::string_view where) {
  Json json;
  try {
    json = Json::parse(json_text);
  } catch (const Json::exception& error) {
    throw Error(ErrorCode::kCorruptData, "{}: not valid JSON ({})", where, error.what());
  }
  const Fields fields(json, std::string(where));
  const std::string architecture = find_architecture(fields);
  ModelConfig config = architecture == "GPT2LMHeadModel" ? read_gpt2(fields) : read_llama(fields, architecture);
  config.architecture = architecture;
  read_token_ids(fields, config);
  if (fields.find("quantization_config") != nullptr) {
    throw Error(ErrorCode::kUnsupported, "{}: weights quantized by another library (quantization_config); use the original folder or a GGUF file",
                where);
  }
  resolve(config);
  validate(config, where);
  return config;
}

std::string export_architecture(const ModelConfig& config) {
  if (!config.architecture.empty() && fits(config, config.architecture)) return config.architecture;
  // Llama first: every tool knows it.
  for (const std::string_view candidate : {"GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}) {
    if (fits(config, candidate)) return std::string(candidate);
  }
  if (config.family == ModelFamily::kGemma3)
    throw Error(ErrorCode::kUnsupported, "a gemma3 model is read from GGUF and served; it cannot be trained or exported yet");
  throw Error(ErrorCode::kUnsupported,
              "no Hugging Face architecture has this combination: attention_bias={}, attention_output_bias={}, mlp_bias={}, qk_norm={}, "
              "sliding_window={}, head_dim={}, num_heads={}, hidden_size={}; those there are: attention_bias and attention_output_bias alike, no qk_norm, no "
              "window (Llama); a window, no biases, no qk_norm (Mistral); attention_bias alone with head_dim * num_heads = hidden_size (Qwen2); qk_norm with "
              "attention_bias and attention_output_bias alike, no mlp_bias (Qwen3)",
              config.attention_bias, config.attention_output_bias, config.mlp_bias, config.qk_norm, config.sliding_window, config.head_dim,
              config.num_heads, config.hidden_size);
}

std::string model_config_to_json(const ModelConfig& config, DType weights_dtype) {
  const std::string architecture = export_architecture(config);
  Json json = Json::object();
  json["architectures"] = {architecture};
  if (config.family == ModelFamily::kGpt2) {
    write_gpt2(config, json);
  } else {
    write_llama(config, architecture, json);
  }
  json["vocab_size"] = config.vocab_size;
  json["tie_word_embeddings"] = config.tie_embeddings;
  json.update(token_ids(config));
  json["torch_dtype"] = torch_dtype_name(weights_dtype);
  json["use_cache"] = true;
  return json.dump(2) + "\n";
}

}  // namespace orrery
