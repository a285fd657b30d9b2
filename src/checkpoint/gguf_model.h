// What GGUF's keys and tensor names mean for a ModelConfig, in both directions. Architectures: gpt2, llama (also Mistral and SmolLM2),
// qwen2, qwen3.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/gguf.h"
#include "model/model_config.h"
#include "tokenizer/tokenizer.h"

namespace orrery {

/// How a logical (Hugging Face) tensor stands in a GGUF file.
struct GgufTensorMapping {
  LogicalTensor tensor;
  std::string gguf_name;
  /// llama only: rows of q and k are interleaved per head, because its rope turns neighbours (2i, 2i+1) where Hugging Face's turns
  /// halves (i, i + head_dim/2). 0: rows as they are.
  int64_t permuted_heads = 0;
};

/// One entry for each of logical_tensors(config), in its order. GPT-2's Conv1D matrices stand transposed, [out, in].
std::vector<GgufTensorMapping> gguf_tensor_mapping(const ModelConfig& config, std::string_view gguf_architecture);

/// The GGUF row that holds a Hugging Face row of a permuted tensor.
int64_t gguf_permuted_row(int64_t row, int64_t num_rows, int64_t heads);

/// "gpt2", "llama", "qwen2" or "qwen3". Errors: kUnsupported when none has the features.
std::string gguf_architecture(const ModelConfig& config);

/// Resolved and validated. Errors: kUnsupported: another architecture, mixture of experts, yarn or other rope scalings. kCorruptData:
/// a key missing or ill-typed.
ModelConfig model_config_from_gguf(const GgufReader& file);

/// general.* and the architecture's keys. `file_type` is GGUF's number for the main block type.
void add_model_metadata(const ModelConfig& config, std::string_view architecture, uint32_t file_type, GgufMetadata& metadata);

/// Llama 3's scaling as GGUF stores it: what each frequency pair's frequency is divided by. Empty for other scalings.
std::vector<float> rope_frequency_factors(const RopeScaling& scaling, double theta, int64_t head_dim);

/// The vocabulary as GGUF has it; load_gguf_tokenizer() takes it as it is.
struct GgufVocabulary : GgufTokenizerData {
  std::string tokenizer_json;  // tokenizer.huggingface.json, where the writer kept it
};

/// nullopt when the file has none. Errors: kCorruptData: lists of different lengths, ids outside the vocabulary.
std::optional<GgufVocabulary> read_gguf_vocabulary(const GgufReader& file);
void add_vocabulary_metadata(const GgufVocabulary& vocabulary, GgufMetadata& metadata);

/// From the texts of tokenizer.json and tokenizer_config.json (empty: none), padded to `vocab_size` with unused tokens.
/// Errors: kCorruptData. kUnsupported: not byte-level BPE, or a pre-tokenizer that GGUF has no name for.
GgufVocabulary vocabulary_from_tokenizer_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json, const ModelConfig& config);

/// The chat template in tokenizer_config.json (a text, or the one named "default" of a list); empty: none.
std::string chat_template_of(std::string_view tokenizer_config_json);

}  // namespace orrery
