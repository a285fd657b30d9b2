// Which block type each tensor of a model gets: the mixtures that llama.cpp's files use, by name. How a block is encoded: backend/block_encoders.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/block_formats.h"
#include "model/model_config.h"

namespace orrery {

struct QuantizeRecipe {
  std::string_view name;  // "q4_k_m"
  BlockType type;         // of most matrices
  uint32_t file_type;     // GGUF's general.file_type
  bool mixed;             // attention values and MLP outputs of half the layers get Q6_K
};

/// "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"; "q4_k" and "q5_k" mean the _m mixtures, "int8" q8_0.
std::optional<QuantizeRecipe> find_quantize_recipe(std::string_view name);
std::vector<std::string> quantize_recipe_names();

/// The type of a matrix whose rows have `columns` elements. The matrix of the logits (the embedding, where they are tied) is Q6_K at least.
/// Rows that are not whole blocks get the next type whose blocks divide them: Q4_K -> Q5_0, Q5_K -> Q5_1, Q6_K -> Q8_0, then F16.
BlockType tensor_type(const QuantizeRecipe& recipe, const ModelConfig& config, const LogicalTensor& tensor, int64_t columns);

}  // namespace orrery
