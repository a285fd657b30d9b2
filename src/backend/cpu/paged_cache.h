// Where the cache of kPagedAttention has a position's key and value (kv_format.h). Included only by files compiled for one instruction set (simd.h).
#pragma once

#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/transpose.h"
#include "ir/kv_format.h"

namespace orrery::ORRERY_SIMD {

/// Of the task's first kv head, the row of a value, or the tile of keys that begins at `position`.
template <typename T>
ORRERY_INLINE const T* cached(const PagedTask& t, const void* cache, int64_t position) {
  return static_cast<const T*>(cache) + (t.block_table[position / t.block_tokens] * t.block_tokens + position % t.block_tokens) * t.token_stride;
}

/// The keys of a tile as rows of `row_words`, a multiple of 16, with zeros behind their `words`.
ORRERY_INLINE void rows_of_tile(const void* tile, int64_t words, void* rows, int64_t row_words) {
  const float* from = static_cast<const float*>(tile);
  for (int64_t w = 0; w < row_words; w += 16) {
    F32x16 block[16];
    for (int64_t i = 0; i < 16; ++i) block[i] = w + i < words ? load(from + (w + i) * kKeyTileTokens) : zero();
    transpose_16x16(block);
    for (int64_t i = 0; i < 16; ++i) store(static_cast<float*>(rows) + i * row_words + w, block[i]);
  }
}

}  // namespace orrery::ORRERY_SIMD
