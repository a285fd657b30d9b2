#include "compress/quantize_recipe.h"

#include <charconv>
#include <utility>

namespace orrery {
namespace {

constexpr QuantizeRecipe kRecipes[] = {
    {"q8_0", BlockType::kQ8_0, 7, false},    {"q6_k", BlockType::kQ6_K, 18, false},  {"q5_k_m", BlockType::kQ5_K, 17, true},
    {"q5_k_s", BlockType::kQ5_K, 16, false}, {"q4_k_m", BlockType::kQ4_K, 15, true}, {"q4_k_s", BlockType::kQ4_K, 14, false},
    {"q5_1", BlockType::kQ5_1, 9, false},    {"q5_0", BlockType::kQ5_0, 8, false},   {"q4_1", BlockType::kQ4_1, 3, false},
    {"q4_0", BlockType::kQ4_0, 2, false},
};
constexpr std::pair<std::string_view, std::string_view> kAliases[] = {{"int8", "q8_0"}, {"q5_k", "q5_k_m"}, {"q4_k", "q4_k_m"}};

// The first and the last eighth of the layers, and every third between.
bool is_sensitive(int64_t layer, int64_t num_layers) {
  return layer < num_layers / 8 || layer >= 7 * num_layers / 8 || (layer - num_layers / 8) % 3 == 2;
}

/// The layer in "model.layers.7.mlp...": -1 outside of layers.
int64_t layer_of(std::string_view name) {
  for (const std::string_view prefix : {"model.layers.", "transformer.h."}) {
    if (!name.starts_with(prefix)) continue;
    int64_t layer = -1;
    std::from_chars(name.data() + prefix.size(), name.data() + name.size(), layer);
    return layer;
  }
  return -1;
}

BlockType wanted_type(const QuantizeRecipe& recipe, const ModelConfig& config, const LogicalTensor& tensor) {
  const std::string_view name = tensor.name;
  const bool embedding = name.ends_with("embed_tokens.weight") || name.ends_with("wte.weight");
  if (name == "lm_head.weight" || (embedding && config.tie_embeddings)) return recipe.type == BlockType::kQ8_0 ? BlockType::kQ8_0 : BlockType::kQ6_K;
  if (!recipe.mixed) return recipe.type;
  const int64_t layer = layer_of(name);
  const bool values_or_output = name.ends_with("self_attn.v_proj.weight") || name.ends_with("mlp.down_proj.weight") || name.ends_with("mlp.c_proj.weight");
  if (values_or_output && is_sensitive(layer, config.num_layers)) return BlockType::kQ6_K;
  // A fused q, k, v holds the values.
  if (name.ends_with("attn.c_attn.weight")) return recipe.type == BlockType::kQ4_K ? BlockType::kQ5_K : BlockType::kQ6_K;
  return recipe.type;
}

}  // namespace

std::optional<QuantizeRecipe> find_quantize_recipe(std::string_view name) {
  for (const auto& [alias, meant] : kAliases)
    if (name == alias) name = meant;
  for (const QuantizeRecipe& recipe : kRecipes)
    if (recipe.name == name) return recipe;
  return std::nullopt;
}

std::vector<std::string> quantize_recipe_names() {
  std::vector<std::string> names;
  for (const QuantizeRecipe& recipe : kRecipes) names.emplace_back(recipe.name);
  for (const auto& [alias, meant] : kAliases) names.emplace_back(alias);
  return names;
}

BlockType tensor_type(const QuantizeRecipe& recipe, const ModelConfig& config, const LogicalTensor& tensor, int64_t columns) {
  // Learned positions are read row by row and are small: they stay as exact as F16.
  if (tensor.name.ends_with("wpe.weight")) return BlockType::kF16;
  BlockType type = wanted_type(recipe, config, tensor);
  if (columns % block_type_info(type).block_elements != 0)
    type = type == BlockType::kQ4_K ? BlockType::kQ5_0 : type == BlockType::kQ5_K ? BlockType::kQ5_1 : BlockType::kQ8_0;
  return columns % block_type_info(type).block_elements == 0 ? type : BlockType::kF16;
}

}  // namespace orrery
