// What the decode kernels of paged_decode.h share. Included only by files compiled for one instruction set (simd.h).
#pragma once

#include "backend/cpu/paged_cache.h"
#include "backend/cpu/paged_decode.h"
#include "backend/cpu/vector_math.h"

namespace orrery::ORRERY_SIMD {
namespace {

constexpr int64_t B = kAttentionBlock;
constexpr int64_t kMaxHead = kPagedDecodeMaxHead;
constexpr float kLog2E = 1.44269504088896341f;

ORRERY_INLINE int32_t word_at(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return word;
}

ORRERY_INLINE int64_t lowest_position(const PagedTask& t) { return t.window > 0 && t.context > t.window ? t.context - t.window : 0; }

constexpr int64_t kTiles = B / kKeyTileTokens;

/// The 64 keys and values of a block, or as many as there are: first kv head of the task, the others behind it.
template <typename T>
struct BlockRows {
  const T *keys[kTiles], *values[B];  // tiles, rows
  int64_t rows = 0;

  // Positions block * 64 on of task t. What the last block lacks is any place that can be read.
  ORRERY_MEMBER void find(const PagedTask& t, int64_t block) {
    add_keys(t, block * B, 0);
    rows = add_values(t, block * B, 0);
    pad(t, block * B);
  }
  // What lies 64 positions behind those of a block of t: the block that follows, and in the places that are left what the next task reads first, so that
  // as much is asked for as is read, however long contexts are.
  ORRERY_MEMBER void find_behind(const PagedTask& t, int64_t block) {
    const int64_t tiles = add_keys(t, (block + 1) * B, 0);
    rows = add_values(t, (block + 1) * B, 0);
    if (t.next != nullptr) {
      const int64_t first = lowest_position(*t.next) / B * B + (block + 1) * B;
      add_keys(*t.next, first + tiles * kKeyTileTokens - pad_to(t.context, kKeyTileTokens), tiles);
      add_values(*t.next, first + rows - t.context, rows);
    }
    pad(t, block * B);
  }

 private:
  // Tiles of t from `position` on, as places i; returns the first that is free.
  ORRERY_MEMBER int64_t add_keys(const PagedTask& t, int64_t position, int64_t i) {
    for (; i < kTiles && position < t.context; ++i, position += kKeyTileTokens) keys[i] = cached<T>(t, t.k_cache, position);
    num_keys_ = i;
    return i;
  }
  ORRERY_MEMBER int64_t add_values(const PagedTask& t, int64_t position, int64_t s) {
    while (s < B && position < t.context) {
      const T* row = cached<T>(t, t.v_cache, position);
      const int64_t end_of_block = position + t.block_tokens - position % t.block_tokens, last = end_of_block < t.context ? end_of_block : t.context;
      for (; s < B && position < last; ++s, ++position, row += t.token_stride) values[s] = row;
    }
    num_values_ = s;
    return s;
  }
  ORRERY_MEMBER void pad(const PagedTask& t, int64_t position) {
    if (num_keys_ == 0) add_keys(t, position, 0);
    if (num_values_ == 0) add_values(t, position, 0);
    for (int64_t i = num_keys_; i < kTiles; ++i) keys[i] = keys[i - 1];
    for (int64_t s = num_values_; s < B; ++s) values[s] = values[s - 1];
  }

  int64_t num_keys_ = 0, num_values_ = 0;
};

/// Brings a line to L2. Each line that the kernels read asks for its like 64 rows behind: bursts of requests get lost.
ORRERY_INLINE void prefetch_behind(const void* line) { __builtin_prefetch(line, 0, 2); }

/// Of each query head of a task, in its scratch memory.
struct HeadSums {
  float* o;  // [heads][head_dim]
  float *maximum, *sum;

  ORRERY_MEMBER explicit HeadSums(const PagedTask& t) {
    const int64_t heads = t.num_kv_heads * t.group;
    o = reinterpret_cast<float*>(t.scratch);
    maximum = o + heads * t.head_dim;
    sum = maximum + heads;
    for (int64_t head = 0; head < heads; ++head) {
      maximum[head] = -__builtin_inff();
      sum[head] = 0;
    }
  }
};

/// `o` holds, for as many numbers as a register has of 16 bits, first the lower and then the upper four of each eight: what interleaving two rows gives.
ORRERY_INLINE void deinterleave(const float* o, int64_t H, float* out) {
#if ORRERY_SIMD_AVX512
  for (int64_t h = 0; h < H; h += 32) {
    const __m512 low = _mm512_loadu_ps(o + h), high = _mm512_loadu_ps(o + h + 16);
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    _mm512_storeu_ps(out + h, _mm512_permutex2var_ps(low, first, high));
    _mm512_storeu_ps(out + h + 16, _mm512_permutex2var_ps(low, second, high));
  }
#else
  for (int64_t h = 0; h < H; h += 16) {
    const __m256 low = _mm256_loadu_ps(o + h), high = _mm256_loadu_ps(o + h + 8);
    _mm256_storeu_ps(out + h, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(out + h + 8, _mm256_permute2f128_ps(low, high, 0x31));
  }
#endif
}

// softmax_block() of the block kernel for one query, lanes being keys: p replaces the scores.
ORRERY_INLINE float softmax_keys(float (&scores)[B], int64_t first_key, float scale, float first, float last, float& maximum, float& sum) {
  alignas(64) constexpr float kSteps[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F32x16 hidden = splat(-__builtin_inff()), steps = load(kSteps);
  F32x16 s[4], top = hidden;
  for (int v = 0; v < 4; ++v) {
    const F32x16 key = splat(static_cast<float>(first_key + 16 * v)) + steps;
    s[v] = load(scores + 16 * v);
    s[v] = select(splat(last) < key, hidden, select(key < splat(first), hidden, s[v]));
    top = max(top, s[v]);
  }
  const F32x16 scales = splat(scale), old_maximum = splat(maximum);
  const F32x16 next_maximum = max(old_maximum, splat(reduce_max(top)) * scales);
  const F32x16 base = select(next_maximum < splat(-3.0e38f), zero(), next_maximum);
  const F32x16 shrink = exp2_nonpositive(old_maximum - base), minus_base = zero() - base;
  for (int v = 0; v < 4; ++v) store(scores + 16 * v, exp2_nonpositive(fma(s[v], scales, minus_base)));
  __m128 chains = _mm_setzero_ps();
  for (int64_t i = 0; i < B; i += 4) chains = _mm_add_ps(chains, _mm_loadu_ps(scores + i));
  alignas(16) float chain[4];
  _mm_store_ps(chain, chains);
  const F32x16 total = fma(splat(sum), shrink, (splat(chain[0]) + splat(chain[1])) + (splat(chain[2]) + splat(chain[3])));
  alignas(64) float lanes[16];
  store(lanes, next_maximum);
  maximum = lanes[0];
  store(lanes, total);
  sum = lanes[0];
  store(lanes, shrink);
  return lanes[0];
}

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

/// Calls heads(Count<n>, first) for the heads of a group, four at a time and then what is left.
template <typename Heads>
ORRERY_INLINE void by_fours(int64_t group, Heads&& heads) {
  int64_t head = 0;
  for (; head + 4 <= group; head += 4) heads(Count<4>{}, head);
  if (group - head == 3) heads(Count<3>{}, head);
  if (group - head == 2) heads(Count<2>{}, head);
  if (group - head == 1) heads(Count<1>{}, head);
}

/// Calls body(Count<n>, j, block, behind, kv_head, first_head) for the blocks of keys that the query sees, in each for all kv heads of the task and
/// their groups by fours.
template <typename T, typename Body>
ORRERY_INLINE void each_block(const PagedTask& t, Body&& body) {
  BlockRows<T> blocks[2];
  const int64_t first = lowest_position(t) / B;
  blocks[0].find(t, first);
  for (int64_t j = first, now = 0; j * B < t.context; ++j, now = 1 - now) {
    blocks[1 - now].find_behind(t, j);
    for (int64_t kv_head = 0; kv_head < t.num_kv_heads; ++kv_head)
      by_fours(t.group, [&](auto count, int64_t head) { body(count, j, blocks[now], blocks[1 - now], kv_head, kv_head * t.group + head); });
  }
}

/// For the keys of a block, each tile's sixteen in the lanes of a sum: sum = add(sum, words, c, w) for word w of the head and query head c, from
/// start(c) on; then done(i, c, sum) for tile i. The tiles of this head lie `column` elements behind their starts; for one that the block lacks done gets
/// the start.
template <int C, typename T, typename Start, typename Add, typename Done>
ORRERY_INLINE void fold_words(const BlockRows<T>& block, const BlockRows<T>& behind, int64_t column, int64_t words, Start&& start, Add&& add, Done&& done) {
  const auto fold = [&](auto count, int64_t tile) __attribute__((always_inline)) {
    constexpr int kCount = decltype(count)::value;
    F32x16 sum[kCount][C];
    for (int i = 0; i < kCount; ++i)
      for (int c = 0; c < C; ++c) sum[i][c] = start(c);
    for (int64_t w = 0; w < words; ++w) {
      const int64_t at = column + w * kKeyTileTokens * 4 / static_cast<int64_t>(sizeof(T));
      for (int i = 0; i < kCount; ++i) {
        prefetch_behind(behind.keys[tile + i] + at);
        const F32x16 keys = load(reinterpret_cast<const float*>(block.keys[tile + i] + at));
        for (int c = 0; c < C; ++c) sum[i][c] = add(sum[i][c], keys, c, w);
      }
    }
    for (int i = 0; i < kCount; ++i)
      for (int c = 0; c < C; ++c) done(tile + i, c, sum[i][c]);
  };
  // Tiles side by side share the query's words; registers hold the sums of four for four heads, and with AVX2 those of one.
  constexpr int kAtOnce = ORRERY_SIMD_AVX512 ? 4 : 1;
  const int64_t tiles = (block.rows + kKeyTileTokens - 1) / kKeyTileTokens;
  int64_t tile = 0;
  for (; tile + kAtOnce <= tiles; tile += kAtOnce) fold(Count<kAtOnce>{}, tile);
  for (; tile < tiles; ++tile) fold(Count<1>{}, tile);
  for (; tile < kTiles; ++tile)
    for (int c = 0; c < C; ++c) done(tile, c, start(c));
}

}  // namespace
}  // namespace orrery::ORRERY_SIMD
