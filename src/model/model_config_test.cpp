// Proves that config.json of each supported architecture is read with transformers' defaults and meanings, written back without
// loss, and that every malformed or unsupported one gives a typed error that names the key: by literal examples and mutations.
#include "model/model_config.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/fuzz_util.h"
#define ORRERY_FUZZ_IN_TEST
#include "model/model_config_fuzz.cpp"

namespace orrery {
namespace {

const std::string kLlama3 = R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":64,"num_hidden_layers":2,
  "num_attention_heads":4,"num_key_value_heads":2,"intermediate_size":128,"vocab_size":256,"max_position_embeddings":131072,
  "rms_norm_eps":1e-05,"rope_theta":500000.0,"hidden_act":"silu","tie_word_embeddings":true,"bos_token_id":1,"eos_token_id":[2,3],
  "rope_scaling":{"rope_type":"llama3","factor":32.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
  "original_max_position_embeddings":8192}})";
const std::string kGpt2 = R"({"architectures":["GPT2LMHeadModel"],"model_type":"gpt2","n_embd":32,"n_layer":2,"n_head":4,
  "n_positions":64,"n_ctx":64,"vocab_size":100,"activation_function":"gelu_new","layer_norm_epsilon":1e-05,"bos_token_id":99,
  "eos_token_id":99,"attn_pdrop":0.1,"summary_type":"cls_index"})";
const std::string kMistral = R"({"architectures":["MistralForCausalLM"],"hidden_size":64,"num_hidden_layers":2,
  "num_attention_heads":4,"num_key_value_heads":2,"intermediate_size":128,"vocab_size":256,"max_position_embeddings":512,
  "sliding_window":128})";
const std::string kQwen2 = R"({"architectures":["Qwen2ForCausalLM"],"hidden_size":64,"num_hidden_layers":4,"num_attention_heads":4,
  "num_key_value_heads":2,"intermediate_size":128,"vocab_size":256,"max_position_embeddings":512,"use_sliding_window":true,
  "sliding_window":100,"max_window_layers":3,"rope_theta":1000000.0})";
const std::string kQwen3 = R"({"architectures":["Qwen3ForCausalLM"],"hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,
  "num_key_value_heads":2,"head_dim":32,"intermediate_size":128,"vocab_size":256,"max_position_embeddings":512,
  "use_sliding_window":false,"sliding_window":null,"attention_bias":false,"rope_parameters":{"rope_theta":1e6,"rope_type":"default"}})";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

void expect_error(const std::string& json, ErrorCode code, const std::string& part) {
  try {
    (void)model_config_from_json(json, "config.json");
    ADD_FAILURE() << "accepted: " << json;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(ModelConfig, ReadsLlama3) {
  const ModelConfig config = model_config_from_json(kLlama3, "config.json");
  EXPECT_EQ(config.family, ModelFamily::kLlama);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.kv_size(), 32);
  EXPECT_EQ(config.rope_scaling.kind, RopeScalingKind::kLlama3);
  EXPECT_EQ(config.rope_scaling.original_max_seq_len, 8192);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{2, 3}));
  EXPECT_TRUE(config.tie_embeddings);
  EXPECT_FALSE(config.attention_bias);
  EXPECT_EQ(logical_tensors(config).size(), 1u + 2 * 9 + 1);
}

TEST(ModelConfig, ReadsGpt2WithItsDefaults) {
  const ModelConfig config = model_config_from_json(kGpt2, "config.json");
  EXPECT_EQ(config.family, ModelFamily::kGpt2);
  EXPECT_EQ(config.intermediate_size, 128);
  EXPECT_TRUE(config.tie_embeddings && config.attention_bias && config.mlp_bias);
  // wte and wpe, 12 tensors a layer, ln_f.
  EXPECT_EQ(logical_tensors(config).size(), 2u + 2 * 12 + 2);
  EXPECT_EQ(num_parameters(config), 100 * 32 + 64 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32);
}

TEST(ModelConfig, ReadsWindowsBiasesAndNorms) {
  const ModelConfig mistral = model_config_from_json(kMistral, "config.json");
  EXPECT_EQ(mistral.window(0), 128);
  EXPECT_EQ(mistral.norm_eps, 1e-6);
  const ModelConfig qwen2 = model_config_from_json(kQwen2, "config.json");
  EXPECT_TRUE(qwen2.attention_bias);
  EXPECT_FALSE(qwen2.attention_output_bias);
  EXPECT_EQ(qwen2.window(2), 0);
  EXPECT_EQ(qwen2.window(3), 100);
  const ModelConfig qwen3 = model_config_from_json(kQwen3, "config.json");
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_EQ(qwen3.head_dim, 32);
  EXPECT_EQ(qwen3.rope_theta, 1e6);
  EXPECT_EQ(qwen3.window(1), 0);
}

TEST(ModelConfig, JsonRoundTripIsLossless) {
  for (const std::string& text : {kLlama3, kGpt2, kMistral, kQwen2, kQwen3}) {
    const ModelConfig config = model_config_from_json(text, "config.json");
    EXPECT_EQ(model_config_from_json(model_config_to_json(config, DType::kBF16), "again"), config) << text;
  }
}

TEST(ModelConfig, ArchitectureFollowsFeatures) {
  ModelConfig config = model_config_from_json(kLlama3, "config.json");
  config.architecture.clear();
  EXPECT_EQ(export_architecture(config), "LlamaForCausalLM");
  config.sliding_window = 16;
  EXPECT_EQ(export_architecture(config), "MistralForCausalLM");
  config.qk_norm = true;
  EXPECT_EQ(export_architecture(config), "Qwen3ForCausalLM");
  config.mlp_bias = true;
  EXPECT_THROW((void)export_architecture(config), Error);
}

TEST(ModelConfig, RefusesWithTheKeyNamed) {
  expect_error("{", ErrorCode::kCorruptData, "not valid JSON");
  expect_error("[]", ErrorCode::kCorruptData, "wanted a JSON object");
  expect_error(replaced(kLlama3, "LlamaForCausalLM", "GemmaForCausalLM"), ErrorCode::kUnsupported, "MistralForCausalLM");
  expect_error(replaced(kLlama3, "\"hidden_size\":64,", ""), ErrorCode::kCorruptData, "hidden_size");
  expect_error(replaced(kLlama3, "\"hidden_size\":64", "\"hidden_size\":\"64\""), ErrorCode::kCorruptData, "an integer");
  expect_error(replaced(kLlama3, "\"num_attention_heads\":4", "\"num_attention_heads\":3"), ErrorCode::kInvalidConfig, "does not divide hidden_size=64");
  expect_error(replaced(kLlama3, "\"num_key_value_heads\":2", "\"num_key_value_heads\":3"), ErrorCode::kInvalidConfig, "use 1, 2 or 4");
  expect_error(replaced(kLlama3, "\"num_hidden_layers\":2", "\"num_hidden_layers\":1000000000"), ErrorCode::kInvalidConfig, "num_layers");
  expect_error(replaced(kLlama3, "\"num_hidden_layers\":2", "\"num_hidden_layers\":-1"), ErrorCode::kInvalidConfig, "num_layers");
  expect_error(replaced(kLlama3, "500000.0", "0"), ErrorCode::kInvalidConfig, "rope_theta");
  expect_error(replaced(kLlama3, "500000.0", "1e999"), ErrorCode::kCorruptData, "not valid JSON");
  expect_error(replaced(kLlama3, "500000.0", "NaN"), ErrorCode::kCorruptData, "not valid JSON");
  expect_error(replaced(kLlama3, "\"rope_type\":\"llama3\"", "\"rope_type\":\"yarn\""), ErrorCode::kUnsupported, "llama3");
  expect_error(replaced(kLlama3, "\"silu\"", "\"gelu\""), ErrorCode::kUnsupported, "hidden_act");
  expect_error(replaced(kQwen3, "\"head_dim\":32", "\"head_dim\":31"), ErrorCode::kInvalidConfig, "head_dim=31 is odd");
  expect_error(replaced(kQwen3, "\"head_dim\":32", "\"head_dim\":514"), ErrorCode::kInvalidConfig, "head_dim=514 is outside 1 to 512");
  expect_error(replaced(kGpt2, "\"n_embd\":32", "\"n_embd\":36"), ErrorCode::kInvalidConfig, "head_dim=9 is odd");
  expect_error(replaced(kLlama3, "256", "18446744073709551615"), ErrorCode::kCorruptData, "vocab_size");
}

TEST(ModelConfig, DeepNestingIsRefusedNotRecursedInto) {
  expect_error(std::string(100000, '['), ErrorCode::kCorruptData, "not valid JSON");
  const std::string deep = "{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}";
  expect_error(deep, ErrorCode::kUnsupported, "model_type");
}

TEST(ModelConfig, MutatedConfigsNeverCrash) {
  run_mutations(fuzz_model_config, {kLlama3, kGpt2, kMistral, kQwen2, kQwen3}, 4000, 1);
}

}  // namespace
}  // namespace orrery
