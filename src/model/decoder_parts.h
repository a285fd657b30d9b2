// What model families share: parameters by their Hugging Face names, the attention of training and serving, the loss and the head.
#pragma once

#include <algorithm>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/decoder.h"

namespace orrery {

/// The parameters of a linear layer, each made of whole logical tensors stacked by rows; no bias when `bias_tensors` is empty. `heads`: of how
/// many heads each tensor's rows are; a rank has whole ones, neighbours the same where there are fewer than ranks. Empty: cut anywhere.
struct LinearNames {
  std::string weight;
  std::vector<std::string> weight_tensors;
  std::string bias;
  std::vector<std::string> bias_tensors;
  std::vector<int64_t> heads = {};
};

/// The state of one build_forward call. Families read `config` and `options`, and write ops through `builder`.
class DecoderParts {
 public:
  DecoderParts(const ModelConfig& config, const ForwardOptions& options, Stage& stage, Phase phase);

  BlockBuilder& builder() { return builder_; }
  const ModelConfig& config() const { return config_; }

  /// Whether layer `layer` is in the part that is built.
  bool builds(int64_t layer) const { return layer >= options_.part.first_layer && (options_.part.end_layer < 0 || layer < options_.part.end_layer); }
  bool builds_embedding() const { return options_.part.embedding; }
  bool builds_head() const { return options_.part.head; }
  /// The hidden state that the stage before sends, [T, D] or, where tensor ranks share tokens, [T/t, D]: as all that is between the products.
  ValueId received();
  /// Ends a part without head: `x` goes to the stage behind.
  void send(ValueId x);

  ValueId ids();
  ValueId positions();

  /// A matrix parameter [sum of rows, columns] made of whole logical tensors stacked by rows (a fused q, k, v is three).
  /// std: of the normal initialization. decay: weight decay applies.
  ValueId matrix(const std::string& name, const std::vector<std::string>& tensors, float std, bool decay = true);
  /// A vector parameter, likewise; init kOnes (norm weights) or kZeros (biases). is_partial: each tensor rank makes a part of its gradient.
  ValueId vector(const std::string& name, const std::vector<std::string>& tensors, InitKind init, bool is_partial);
  /// The embedding table; with tied embeddings it has two gradient accumulators (NUMERICS rule 6).
  ValueId embedding_table(const std::string& tensor, bool tied);
  /// An untied head [V, D].
  ValueId head_matrix(const std::string& tensor);

  /// RMSNorm with a weight of its own: of rows of the hidden size, or of each head of a rank's q or k.
  ValueId rms_norm(ValueId x, const std::string& name, const std::string& tensor);
  ValueId head_norm(ValueId x, const std::string& name, const std::string& tensor);

  /// This rank's part of `count` columns, which the tensor ranks share, and of the heads (check_parallel).
  int64_t share(int64_t count) const { return count / options_.parallel.tensor_size; }
  int64_t num_heads() const { return share(config_.num_heads); }
  int64_t num_kv_heads() const { return std::max<int64_t>(1, share(config_.num_kv_heads)); }
  /// Whether tensor ranks have each a share of the tokens between the products.
  bool shares_tokens() const { return options_.parallel.shares_tokens(); }
  /// This rank's share of a batch field's tokens.
  ValueId token_share(ValueId tokens);

  /// The rows of the table for `tokens`; each rank has a part of the vocabulary.
  ValueId embed(ValueId tokens, ValueId table);
  /// Column parallel: each rank makes its part of the outputs, of all tokens, in each of `groups` equal parts of a tensor's rows (three of a
  /// fused q, k, v).
  ValueId column_linear(ValueId x, const LinearNames& names, float std, const std::string& name, int64_t groups = 1);
  /// Row parallel: each rank has its part of the inputs, and the results are summed; the first rank's has the bias added.
  ValueId row_linear(ValueId x, const LinearNames& names, float std, const std::string& name);

  /// x weight^T (+ bias).
  ValueId linear(ValueId x, ValueId weight, ValueId bias, const std::string& name);

  /// Causal attention of a layer, through the cache when serving. q [T, N*H], k and v [T, K*H].
  ValueId attention(ValueId q, ValueId k, ValueId v, int64_t layer);

  /// The end of the model: the loss over `weight` [V, D], or logits of the gathered rows.
  void head(ValueId x, ValueId weight);

 private:
  /// Which part of its logical tensors a parameter has.
  struct Cut {
    enum Kind : uint8_t { kWhole, kRows, kColumns } kind = kWhole;
    int64_t groups = 1;
    bool is_partial = false;     // kWhole: each tensor rank makes a part of the gradient
    std::vector<int64_t> heads = {};  // kRows: as LinearNames::heads
  };
  ParameterSpec spec_of(const std::string& name, const std::vector<std::string>& tensors, const Cut& cut) const;
  ValueId gathered(ValueId x);
  ValueId summed(ValueId part, const std::string& name);
  ValueId context_attention(ValueId q, ValueId k, ValueId v, ValueId cu_seqlens, AttentionAttributes attributes);
  ValueId local_tokens(ValueId tokens);
  bool cuts() const { return options_.parallel.tensor_size > 1; }
  GroupAttributes tensor_group() const { return {options_.parallel.tensor_size, options_.parallel.context_size}; }
  /// Where a rank's part of `count` begins; parts differ by at most one.
  int64_t part_begin(int64_t count, int64_t rank) const { return count * rank / options_.parallel.tensor_size; }

  const ModelConfig& config_;
  const ForwardOptions& options_;
  const Phase phase_;
  BlockBuilder builder_;
  std::vector<LogicalTensor> tensors_;
  std::unordered_map<std::string, int32_t> tensor_index_;
};

/// The families, one file each.
void build_gpt2(DecoderParts& parts);
void build_llama(DecoderParts& parts);
void build_gemma3(DecoderParts& parts);

/// Standard deviation of the initialization (GPT-2's and Llama's 0.02), and that of projections into the residual stream, which
/// is divided by sqrt(2 * num_layers) so that the stream's variance does not grow with depth (Radford et al. 2019, section 2.3).
float init_std();
float residual_init_std(int64_t num_layers);

}  // namespace orrery
