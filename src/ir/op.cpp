#include "ir/op.h"

#include <array>

#include "base/error.h"

namespace orrery {
namespace {
constexpr std::array<std::string_view, static_cast<size_t>(OpKind::kCount)> kNames = {
    "embedding", "add", "mul", "scale", "silu", "gelu", "split", "concat", "rms_norm", "layer_norm", "linear", "rope", "attention",
    "gather_rows", "linear_cross_entropy",
    "embedding_grad", "silu_grad", "gelu_grad", "rms_norm_grad", "layer_norm_grad", "linear_grad_input", "linear_grad_weight",
    "bias_grad", "rope_grad", "attention_grad", "linear_cross_entropy_grad",
    "add_rms_norm", "add_layer_norm", "rms_norm_grad_add", "layer_norm_grad_add", "linear_gelu", "linear_grad_input_gelu",
    "swiglu", "swiglu_grad", "split_rope", "split_rope_grad", "linear_cross_entropy_with_grad",
    "zero", "accumulate", "copy", "squared_sums", "optimizer_scale", "adamw", "sgd", "lion",
    "local_ids", "take_tokens", "all_reduce", "vocabulary_loss", "gather_tokens", "reduce_scatter_tokens", "tokens_to_heads", "heads_to_tokens", "ring_attention",
    "ring_attention_grad",
    "linear_packed", "embedding_packed", "kv_write", "paged_attention"};
static_assert(!kNames.back().empty(), "every op kind has a name");
}  // namespace

bool is_collective(OpKind kind) {
  switch (kind) {
    case OpKind::kAllReduce:
    case OpKind::kVocabularyLoss:
    case OpKind::kGatherTokens:
    case OpKind::kReduceScatterTokens:
    case OpKind::kTokensToHeads:
    case OpKind::kHeadsToTokens:
    case OpKind::kRingAttention:
    case OpKind::kRingAttentionGrad: return true;
    default: return false;
  }
}

std::string_view op_name(OpKind kind) { return kNames[static_cast<size_t>(kind)]; }

}  // namespace orrery
