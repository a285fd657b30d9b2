// The mixtures: which tensors get more bits, what replaces a type whose blocks do not divide a row, and every name that the command takes.
#include "compress/quantize_recipe.h"

#include <gtest/gtest.h>

#include "backend/block_encoders.h"

namespace orrery {
namespace {

ModelConfig llama(int64_t hidden, int64_t layers, bool tied) {
  ModelConfig config = default_model_config(ModelFamily::kLlama);
  config.hidden_size = hidden;
  config.num_layers = layers;
  config.num_heads = 4;
  config.intermediate_size = 4 * hidden;
  config.vocab_size = 512;
  config.max_seq_len = 64;
  config.tie_embeddings = tied;
  resolve(config);
  return config;
}

BlockType type_of(const QuantizeRecipe& recipe, const ModelConfig& config, const std::string& name) {
  for (const LogicalTensor& tensor : logical_tensors(config))
    if (tensor.name == name) return tensor_type(recipe, config, tensor, tensor.shape.back());
  ADD_FAILURE() << name;
  return BlockType::kF32;
}

TEST(QuantizeRecipe, MixturesGiveMoreBitsWhereItMatters) {
  const QuantizeRecipe recipe = *find_quantize_recipe("q4_k_m");
  const ModelConfig config = llama(256, 16, false);
  EXPECT_EQ(type_of(recipe, config, "lm_head.weight"), BlockType::kQ6_K);
  EXPECT_EQ(type_of(recipe, config, "model.embed_tokens.weight"), BlockType::kQ4_K);
  EXPECT_EQ(type_of(recipe, llama(256, 16, true), "model.embed_tokens.weight"), BlockType::kQ6_K);
  int more = 0;
  for (int layer = 0; layer < 16; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    EXPECT_EQ(type_of(recipe, config, prefix + "self_attn.q_proj.weight"), BlockType::kQ4_K);
    const BlockType v = type_of(recipe, config, prefix + "self_attn.v_proj.weight");
    EXPECT_EQ(v, type_of(recipe, config, prefix + "mlp.down_proj.weight"));
    more += v == BlockType::kQ6_K;
  }
  EXPECT_EQ(more, 8);  // layers 0 1, 4 7 10 13, 14 15
}

TEST(QuantizeRecipe, RowsThatAreNotWholeBlocks) {
  const ModelConfig config = llama(96, 8, true);
  const std::string q = "model.layers.3.self_attn.q_proj.weight";
  EXPECT_EQ(type_of(*find_quantize_recipe("q4_k_m"), config, q), BlockType::kQ5_0);
  EXPECT_EQ(type_of(*find_quantize_recipe("q5_k_m"), config, q), BlockType::kQ5_1);
  EXPECT_EQ(type_of(*find_quantize_recipe("q6_k"), config, q), BlockType::kQ8_0);
  EXPECT_EQ(type_of(*find_quantize_recipe("q4_0"), config, q), BlockType::kQ4_0);
  EXPECT_EQ(type_of(*find_quantize_recipe("q4_0"), llama(100, 8, true), q), BlockType::kF16);
}

TEST(QuantizeRecipe, EveryNameIsKnownAndCanBeEncoded) {
  for (const std::string& name : quantize_recipe_names()) {
    const auto recipe = find_quantize_recipe(name);
    ASSERT_TRUE(recipe) << name;
    for (const LogicalTensor& tensor : logical_tensors(llama(256, 8, true)))
      if (tensor.shape.size() == 2) {
        EXPECT_TRUE(can_encode(tensor_type(*recipe, llama(256, 8, true), tensor, tensor.shape.back()))) << name << " " << tensor.name;
      }
  }
  EXPECT_FALSE(find_quantize_recipe("q4"));
}

}  // namespace
}  // namespace orrery
