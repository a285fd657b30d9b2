// The inner part of kAttention and kAttentionGrad: one (segment, kv head) with all query heads of its group, on one thread.
// attention.cpp cuts the op into such tasks and lays out the scratch memory, attention_pieces.cpp does where the keys are another
// rank's; the bodies are in attention_kernels.inl.
//
// Legend  L tokens of the segment, Lp = L rounded up to kAttentionBlock, H head_dim, Hp = H rounded up to 32, G heads of the
// group.
//
// Scores are held transposed, keys down and queries across, so that softmax statistics are vectors over queries and never
// need a sum across lanes, and so that the probabilities are already the right-hand operand of the next product.
#pragma once

#include <cstdint>

#include "backend/cpu/tile_gemm.h"

namespace orrery {

/// Keys per block and queries per block, anchored at the segment start. Part of the bits (NUMERICS rule 9).
constexpr int64_t kAttentionBlock = 64;

struct AttentionTask {
  int64_t num_tokens = 0;   // L: queries
  int64_t num_keys = 0;     // L too when they are those of the queries
  int64_t first_query = 0;  // its place, counted from the first key: query i sees keys up to first_query + i
  bool is_piece = false;    // of the keys: o, dq, dk and dv are f32, the gradients are added to; a query that sees none has o 0, lse -inf
  int64_t head_dim = 0;    // H
  int64_t group = 0;       // G
  int64_t window = 0;
  float scale = 0;
  // First row of the segment, first head of the group; strides from row to row in elements. Heads are H apart.
  const void *q = nullptr, *k = nullptr, *v = nullptr;
  int64_t q_stride = 0, k_stride = 0, v_stride = 0;
  const TileGemm* tile = nullptr;
  std::byte* scratch = nullptr;

  // Forward: o as q; lse of the first head, heads lse_stride apart. Backward reads both.
  void* o = nullptr;
  int64_t o_stride = 0;
  float* lse = nullptr;
  int64_t lse_stride = 0;

  // Backward only.
  const void* dout = nullptr;
  int64_t dout_stride = 0;
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;
  int64_t dq_stride = 0, dk_stride = 0, dv_stride = 0;
};

/// One sequence and `num_kv_heads` neighbouring kv heads of kPagedAttention: `num_queries` rows at positions context - num_queries .. context - 1.
/// The block kernels take one kv head at a time, the decode kernels (paged_decode.h) all of a task.
struct PagedTask {
  int64_t num_queries = 0;
  int64_t context = 0;
  int64_t num_kv_heads = 1;
  int64_t head_dim = 0, group = 0, window = 0;
  float scale = 0;
  const void* q = nullptr;  // first row, first head of the first group
  int64_t q_stride = 0;
  void* o = nullptr;
  int64_t o_stride = 0;
  const void *k_cache = nullptr, *v_cache = nullptr;  // in block 0: the first kv head's first tile, and its column (kv_format.h)
  int64_t token_stride = 0;                           // elements of the cache, of a slot; a key tile every kKeyTileTokens of them
  int64_t block_tokens = 0;
  const int32_t* block_table = nullptr;  // of this sequence
  const PagedTask* next = nullptr;       // what this thread does afterwards: its first keys and values may be fetched ahead
  const TileGemm* tile = nullptr;
  std::byte* scratch = nullptr;
};

struct AttentionKernels {
  void (*forward)(const AttentionTask& task);
  void (*backward)(const AttentionTask& task);
  void (*paged)(const PagedTask& task);
  void (*paged_int8)(const PagedTask& task);  // over a cache in 8 bits (paged_int8.h)
  /// The codes of head_dim numbers; returns their scale.
  float (*quantize_head)(const void* x, int64_t head_dim, int8_t* codes);
};

const AttentionKernels& attention_kernels(VectorIsa isa, DType compute_dtype);

/// Scratch bytes of one task, a multiple of 64: constexpr, so that no copy of it differs between instruction sets.
constexpr int64_t pad_to(int64_t n, int64_t granule) { return (n + granule - 1) / granule * granule; }
constexpr int64_t forward_scratch_bytes(int64_t max_tokens, int64_t head_dim, int64_t element_bytes) {
  const int64_t B = kAttentionBlock, Lp = pad_to(max_tokens, B), Hp = pad_to(head_dim, 32);
  return (2 * Lp * Hp + Hp * B + B * B) * element_bytes + (B * B + Hp * B) * 4;
}
constexpr int64_t backward_scratch_bytes(int64_t max_tokens, int64_t head_dim, int64_t element_bytes) {
  const int64_t B = kAttentionBlock, Lp = pad_to(max_tokens, B), Hp = pad_to(head_dim, 32);
  return (7 * Lp * Hp + 3 * B * B) * element_bytes + (2 * Lp + 2 * B * B + 2 * B * Hp + 3 * Lp * Hp) * 4;
}
/// Blocks of query columns for which a block of keys and values is gathered once.
constexpr int64_t kPagedColumnBlocks = 4;
constexpr int64_t paged_scratch_bytes(int64_t head_dim, int64_t element_bytes) {
  const int64_t B = kAttentionBlock, Hp = pad_to(head_dim, 32);
  return (3 * B * Hp + B * B) * element_bytes + B * B * 4 + kPagedColumnBlocks * B * Hp * (element_bytes + 4);
}

}  // namespace orrery
