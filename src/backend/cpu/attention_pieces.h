// Causal attention where queries and keys are shares of the same sequences: what one context rank computes of its queries with the keys of
// another, and how such results meet. Who sends which keys to whom is in runtime/ring_attention.h.
//
// Legend  n ranks, L tokens of a whole sequence, c = L / 2n; rank r has chunks r and 2n - 1 - r of c tokens of each sequence, in this order,
//         sequence by sequence. N query heads, K kv heads, G = N / K, H head_dim.
// Bits    As kAttention's inside a pair of chunks of one segment; pairs in the order of (query chunk, key chunk); results that meet are
//         weighed in f64 and added in f32. One thread for each (segment, kv head), so nothing depends on their number.
#pragma once

#include <cstdint>
#include <span>

#include "backend/kernel.h"

namespace orrery {

struct TokenShares {
  int64_t num_ranks = 1;
  int64_t sequence_tokens = 0;  // L
  int64_t chunk() const { return sequence_tokens / (2 * num_ranks); }
  int64_t local_tokens() const { return 2 * chunk(); }
  /// The chunk that is the first (half = 0) or second of a rank.
  int64_t chunk_of(int64_t rank, int64_t half) const { return half == 0 ? rank : 2 * num_ranks - 1 - rank; }
};

/// The operands of both directions. cu_seqlens counts tokens of whole sequences.
struct AttentionPiece {
  TokenShares shares;
  int64_t query_rank = 0, key_rank = 0;
  AttentionAttributes attributes;
  std::span<const int32_t> cu_seqlens;  // [S + 1]
  TensorView q, k, v;                   // [T, N*H], [T, K*H] twice
};

int64_t attention_piece_workspace_bytes(const DeviceSpec& device, const TokenShares& shares, const AttentionAttributes& attributes, DType dtype, bool backward);

/// Adds the keys of key_rank to a running result of the queries: o [T, N*H] f32, the attention over what was added so far, and lse [N, T], which
/// starts as -inf.
void add_attention_piece(const KernelContext& context, const AttentionPiece& piece, float* o, float* lse, std::span<std::byte> workspace);

/// Adds to dq [T, N*H], dk and dv [T, K*H], f32 and contiguous; o and lse are those of all keys.
void add_attention_piece_grad(const KernelContext& context, const AttentionPiece& piece, const TensorView& dout, const TensorView& o, const float* lse, float* dq, float* dk, float* dv,
                              std::span<std::byte> workspace);

}  // namespace orrery
