// The vocabulary of blocks: every op kind with the meaning of its operands, and its typed attributes. One place knows each
// fact about an op: here the semantics, in op_table.h its shape, cost and derivative rules, in backend/ its kernels.
//
// Legend   T tokens of a micro-batch (rows), S attention segments (documents), W packed windows of L tokens (T = W * L),
//          D hidden_size, N query heads, K kv heads, H head_dim, F intermediate_size, V vocab_size.
// Types    "x" values have the block's compute dtype (bf16 or f32); sums inside an op are f32 unless said otherwise and are
//          rounded once, when the value is written. Statistics (rstd, mean, lse) and parameter gradients are f32.
// Fused    A fused op gives the same bits as the ops it replaces: it rounds where they round (NUMERICS rule 2).
// Rows     Every op's result for a row is independent of the other rows and of the number of threads, except sums over rows
//          (parameter gradients), which follow GradFold (NUMERICS rules 3, 4, 9).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "ir/weight_format.h"

namespace orrery {

enum class OpKind : uint8_t {
  // ---- forward --------------------------------------------------------------------------------------------------------
  kEmbedding,   // (ids [T] i32, table [V, D]) -> x [T, D]; a row of zeros for an id that is kElsewhere
  kAdd,         // (a, b) -> a + b
  kMul,         // (a, b) -> a * b
  kScale,       // (x) -> ScaleAttributes::factor * x
  kSilu,        // (x) -> x / (1 + exp(-x))
  kGelu,        // (x) -> 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  kSplit,       // (x [T, sum widths]) -> one [T, width_i] per SplitAttributes::widths
  kConcat,      // the inverse of kSplit
  kRmsNorm,     // (x, weight [G]) -> y, rstd. NormAttributes::group_width G cuts a row in groups: rows of G numbers, each with
                //   rstd = 1 / sqrt(mean(x^2) + eps), y = (x * rstd) * weight; rstd [T, width / G] f32
  kLayerNorm,   // (x [T, D], weight [D], bias [D]) -> y, mean [T], rstd [T]
  kLinear,      // (x [T, K], weight [N, K] (, bias [N])) -> y [T, N] = x weight^T + bias; LinearAttributes
  kRope,        // (x [T, heads * H], positions [T] i32, table [P, R/2, 2] f32 (cos, sin)) -> y; first R of each head rotated in
                //   pairs (i, i + R/2), Hugging Face's half-split order; RopeAttributes
  kAttention,   // (q [T, N*H], k [T, K*H], v [T, K*H], cu_seqlens [S + 1] i32) -> o [T, N*H], lse [N, T] f32 (natural log)
                //   causal inside each segment, sliding window if set; AttentionAttributes
  kGatherRows,  // (x [T, D], rows [M] i32) -> y [M, D]: the rows whose logits are asked for
  kLinearCrossEntropy,  // (x [T, D], weight [V, D], targets [T] i32, -1 = no loss) -> token_loss [T] f32, lse [T] f32.
                        //   The logits (compute dtype) exist only in chunks inside the op's workspace. lse is made of every row;
                        //   the loss of a target that is kElsewhere is lse itself
  // ---- backward -------------------------------------------------------------------------------------------------------
  // Outputs called d<parameter> are gradient accumulators: written or added to as GradFold says.
  kEmbeddingGrad,        // (dx [T, D], ids [T]) -> dtable [V, D] f32
  kSiluGrad,             // (dy, x) -> dx
  kGeluGrad,             // (dy, x) -> dx
  kRmsNormGrad,          // (dy, x, weight, rstd) -> dx, dweight
  kLayerNormGrad,        // (dy, x, weight, mean, rstd) -> dx, dweight, dbias
  kLinearGradInput,      // (dy [T, N], weight [N, K]) -> dx [T, K]
  kLinearGradWeight,     // (dy [T, N], x [T, K]) -> dweight [N, K]
  kBiasGrad,             // (dy [T, N]) -> dbias [N]
  kRopeGrad,             // (dy, positions, table) -> dx: rotates back
  kAttentionGrad,        // (do, q, k, v, o, lse, cu_seqlens) -> dq, dk, dv
  kLinearCrossEntropyGrad,  // (x, weight, targets, lse) -> dx, dweight: gradient of the sum of token_loss
  // ---- fused: made by passes, never by models -------------------------------------------------------------------------
  kAddRmsNorm,        // (a, b, weight) -> sum = a + b, y, rstd                              kAdd, kRmsNorm
  kAddLayerNorm,      // (a, b, weight, bias) -> sum, y, mean, rstd                          kAdd, kLayerNorm
  kRmsNormGradAdd,    // (dy, x, weight, rstd, dresidual) -> dx + dresidual, dweight         kRmsNormGrad, kAdd
  kLayerNormGradAdd,  // (dy, x, weight, mean, rstd, dresidual) -> dx + dresidual, dweight, dbias
  kLinearGelu,        // (x, weight, bias) -> u, gelu(u)                                     kLinear, kGelu
  kLinearGradInputGelu,  // (dy [T, N], weight [N, K], u [T, K]) -> du                       kLinearGradInput, kGeluGrad
  kSwiGlu,            // (gate_up [T, 2F]) -> silu(gate) * up [T, F]                         kSplit, kSilu, kMul
  kSwiGluGrad,        // (dh [T, F], gate_up [T, 2F]) -> dgate_up [T, 2F]                    kMul, kMul, kSilu (again), kSiluGrad, kConcat
  kSplitRope,         // (qkv [T, (N + 2K) * H], positions, table) -> q, k, v                kSplit, kRope, kRope
  kSplitRopeGrad,     // (dq, dk, dv, positions, table) -> dqkv                              kRopeGrad, kRopeGrad, kConcat
  kLinearCrossEntropyWithGrad,  // (x, weight, targets) -> token_loss, dx, dweight: kLinearCrossEntropy and its Grad with one
                                //   logits GEMM instead of two
  // ---- optimizer phase ------------------------------------------------------------------------------------------------
  kZero,           // () -> dst = 0: accumulators that an op adds to row by row (kEmbeddingGrad); a GradFold that adds to dst keeps it
  kAccumulate,     // (src f32) -> dst f32: dst += src
  kCopy,           // (x [n]) -> dst [n]: the same bits
  kSquaredSums,    // (gradient [n] f32) -> sums [ceil(n / 4096)] f64: per block of 4,096 elements (NUMERICS rule 8)
  kOptimizerScale,  // (sums [m] f64, all parameters in model order; num_valid_tokens [1] i32) -> scale [2] f32, stats [4] f64;
                    //   scale[0] = clip_factor / num_valid, scale[1] = 1 when the step is taken, 0 when it is skipped (no valid
                    //   token, or a non-finite norm: NUMERICS rule 7); stats = {norm of the mean gradient, clip_factor, ...}
  kAdamW,          // (gradient [n] f32, scale, hyper) -> weight high [n], weight low [n], m [n], v [n]; see OptimizerHyper
  kSgd,            // (gradient, scale, hyper) -> high, low, m
  kLion,           // (gradient, scale, hyper) -> high, low, m
  // ---- ranks that share a layer: those of a group call these together (is_collective); the executor runs them on its communicator ----
  kLocalIds,        // (ids [T] i32) -> ids [T] i32 counted from VocabularyAttributes::first; -1 stays, those of others become kElsewhere. Of no group
  kTakeTokens,      // (x [T, ...]) -> rows [first, first + count) of each `of` rows; TokenShareAttributes. Of no group
  kAllReduce,       // (x) -> the sum of all ranks' x, in the tree over the rank in the group, each partial sum rounded to x's dtype;
                    //   GroupAttributes. In NORM: of gradients of which each rank has a part, in place
  kVocabularyLoss,  // (loss [T] f32, lse [T] f32, targets [T] i32: a kLinearCrossEntropy of each rank's part of the vocabulary) ->
                    //   token_loss, lse of the whole vocabulary; sums over ranks in f64, in order
  // Tensor ranks that share tokens between the products (sequence parallel): of n ranks, rank r has the r-th n-th of each sequence's tokens.
  kGatherTokens,         // (x [T/n, D]) -> [T, D]; GroupAttributes. Each other's derivative
  kReduceScatterTokens,  // (x [T, D]) -> [T/n, D]: this rank's tokens of what kAllReduce would give; GroupAttributes
  // Context ranks, of n each with the tokens of chunks r and 2n - 1 - r of the 2n chunks of each sequence (T rows in all).
  kTokensToHeads,        // (x [T, heads * H]) -> [T * n, heads * H / n]: all tokens in their true order, this rank's part of the columns; GroupAttributes
  kHeadsToTokens,        // the inverse of kTokensToHeads, and its derivative
  kRingAttention,        // kAttention of this rank's queries over all ranks' keys; cu_seqlens counts tokens of whole sequences: T * n in all
  kRingAttentionGrad,    // its kAttentionGrad
  // ---- serving --------------------------------------------------------------------------------------------------------
  kLinearPacked,    // (x [T, K], weight in panels (a byte vector) (, bias [N])) -> y [T, N]; PackedLinearAttributes. Dense: the bits of
                    //   kLinear. Quantized: x is rounded to 8 bits in blocks of 32 per row; per block an exact i32 sum, then f32 FMAs
                    //   in K order, for every number of rows (rule 13)
  kEmbeddingPacked,  // (ids [T] i32, quantized table in panels (a byte vector)) -> x [T, D]; PackedLinearAttributes, D = depth
  kKvWrite,         // (k [T, K*H], v [T, K*H], slots [T] i32) -> k_cache, v_cache [blocks, block_tokens, of a token: kv_format.h] in place
  kPagedAttention,  // (q [T, N*H], k_cache, v_cache, block_table [S, max_blocks] i32, context_lens [S] i32, cu_seqlens [S + 1] i32)
                    //   -> o [T, N*H]. The last rows of a sequence are its queries; keys are read from the cache only (rule 13)
  kCount,
};

std::string_view op_name(OpKind kind);
/// Ops that all ranks of a group (group_of in op_table.h) run together.
bool is_collective(OpKind kind);

struct NoAttributes {
  bool operator==(const NoAttributes&) const = default;
};
/// A token of a part of the vocabulary that another rank has.
constexpr int32_t kElsewhere = INT32_MAX;

struct VocabularyAttributes {
  int64_t first = 0, count = 0;
  int64_t num_ranks = 1;  // that have the parts
  bool operator==(const VocabularyAttributes&) const = default;
};
/// Ranks that meet in an op: of the parts of a layer (ParallelContext::part), `size` that are `stride` apart.
struct GroupAttributes {
  int64_t size = 1, stride = 1;
  bool operator==(const GroupAttributes&) const = default;
};
struct TokenShareAttributes {
  int64_t first = 0, count = 0, of = 0;
  bool operator==(const TokenShareAttributes&) const = default;
};
struct LinearAttributes {
  bool input_is_shared = false;  // column parallel: every tensor rank has the whole x, so x's gradient is summed over them
  bool adds_bias = true;         // row parallel: of the ranks whose results are summed, the first; all have the bias and make its gradient
  bool operator==(const LinearAttributes&) const = default;
};
struct SplitAttributes {
  std::vector<int64_t> widths;
  bool operator==(const SplitAttributes&) const = default;
};
struct NormAttributes {
  float eps = 1e-5f;
  int64_t group_width = 0;  // numbers that share one statistic: D for a row norm, H for a q or k norm
  bool operator==(const NormAttributes&) const = default;
};
struct RopeAttributes {
  int64_t num_heads = 0;     // heads to rotate in x; for kSplitRope the query heads
  int64_t num_kv_heads = 0;  // kSplitRope only
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;
  bool operator==(const RopeAttributes&) const = default;
};
struct AttentionAttributes {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 0;            // usually 1 / sqrt(head_dim)
  int64_t window = 0;         // a query sees keys s with t - window < s <= t; 0 = all s <= t
  int64_t block_tokens = 0;   // tokens per KV block; serving ops only
  bool operator==(const AttentionAttributes&) const = default;
};
/// Rows of a packed weight that share a format; the next segment starts on a new panel.
struct PackedSegment {
  WeightFormat format{};
  int64_t num_columns = 0;
  bool operator==(const PackedSegment&) const = default;
};
struct PackedLinearAttributes {
  int64_t num_columns = 0;  // N: the packed bytes do not say it
  int64_t depth = 0;        // K; 0 for a dense weight
  std::vector<PackedSegment> segments;  // empty: dense panels in the compute dtype
  bool operator==(const PackedLinearAttributes&) const = default;
};
struct ScaleAttributes {
  float factor = 1;
  bool operator==(const ScaleAttributes&) const = default;
};
struct OptimizerAttributes {
  bool decay = false;  // weight decay applies: matrices, not norms, biases or embeddings
  bool operator==(const OptimizerAttributes&) const = default;
};

using Attributes = std::variant<NoAttributes, SplitAttributes, NormAttributes, RopeAttributes, AttentionAttributes, PackedLinearAttributes,
                                ScaleAttributes, OptimizerAttributes, VocabularyAttributes, LinearAttributes, GroupAttributes, TokenShareAttributes>;

/// The step's scalars that optimizer kernels read: an input value of kOptimizerScale and the update ops, written by the trainer
/// into the arena before OPT. Bias corrections are computed once, in f64, by the trainer.
struct OptimizerHyper {
  float lr = 0, beta1 = 0, beta2 = 0, eps = 0, momentum = 0, weight_decay = 0;
  float bias_correction1 = 1, bias_correction2 = 1;  // 1 - beta^t
  float clip = 0;                                    // largest norm of the mean gradient; 0 = off
  float loss_scale = 1;
};

}  // namespace orrery
