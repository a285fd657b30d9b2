// The decode kernel of paged_decode.h. Every sum has the order of the block kernel: scores over the head in pairs (bf16) or one chain
// (f32), 64 keys a block from position 0, probabilities in four chains over key mod 4, values over keys in order.
#include "backend/cpu/paged_decode.h"
#include "backend/cpu/transpose.h"
#include "backend/cpu/vector_math.h"

#define ORRERY_MEMBER inline __attribute__((always_inline))  // of a class

namespace orrery::ORRERY_SIMD {
namespace {

constexpr int64_t B = kAttentionBlock;
constexpr int64_t kMaxHead = 256;
constexpr float kLog2E = 1.44269504088896341f;

ORRERY_INLINE int32_t word_at(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return word;
}
ORRERY_INLINE __m512bh pairs(__m512i a) { return (__m512bh)a; }

/// Sixteen words of a row: 32 bf16 or 16 f32. Numbers of K in a word: 2 or 1.
template <typename T>
constexpr int64_t kPerWord = 4 / static_cast<int64_t>(sizeof(T));

// One more word of the head for sixteen keys.
ORRERY_INLINE F32x16 add_word(F32x16 sum, F32x16 keys, const uint16_t* q) {
  return {_mm512_dpbf16_ps(sum.v, pairs(_mm512_castps_si512(keys.v)), pairs(_mm512_set1_epi32(word_at(q))))};
}
ORRERY_INLINE F32x16 add_word(F32x16 sum, F32x16 keys, const float* q) { return fma(splat(*q), keys, sum); }

/// The 64 keys and values of a block, or as many as there are.
template <typename T>
struct BlockRows {
  const T *keys[B], *values[B];
  int64_t rows = 0, line_bytes = 0;  // line_bytes: of a row

  // Positions block * 64 on of task t.
  ORRERY_MEMBER void find(const PagedTask& t, int64_t block) {
    const T *k_cache = static_cast<const T*>(t.k_cache), *v_cache = static_cast<const T*>(t.v_cache);
    rows = t.context - block * B < B ? t.context - block * B : B;
    line_bytes = t.head_dim * static_cast<int64_t>(sizeof(T));
    for (int64_t s = 0; s < rows;) {
      const int64_t position = block * B + s, cache_block = position / t.block_tokens, in_block = position - cache_block * t.block_tokens;
      int64_t offset = (t.block_table[cache_block] * t.block_tokens + in_block) * t.token_stride;
      const int64_t end = s + t.block_tokens - in_block < rows ? s + t.block_tokens - in_block : rows;
      for (; s < end; ++s, offset += t.token_stride) {
        keys[s] = k_cache + offset;
        values[s] = v_cache + offset;
      }
    }
  }
  // A head's rows lie a token apart, which hardware prefetchers do not follow: rows [begin, begin + 16) come to L2 while others are used.
  ORRERY_MEMBER void prefetch(int64_t begin) const {
    const int64_t end = begin + 16 < rows ? begin + 16 : rows;
    for (int64_t s = begin; s < end; ++s)
      for (int64_t at = 0; at < line_bytes; at += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(keys[s]) + at, 0, 2);
        __builtin_prefetch(reinterpret_cast<const char*>(values[s]) + at, 0, 2);
      }
  }
};

// scores[c][s] = q_c . k_s for the 64 keys of a block; keys from `rows` on are zero. `next` is what will be used next.
template <typename T, int C>
ORRERY_INLINE void block_scores(const T* const (&keys)[B], int64_t rows, int64_t H, const T* q, const BlockRows<T>& next, float (&scores)[C][B]) {
  const int64_t words = H / kPerWord<T>;
  for (int64_t s = 0; s < B; s += kLanes) {
    F32x16 sum[C];
    for (int c = 0; c < C; ++c) sum[c] = zero();
    next.prefetch(s);
    if (s < rows)
      for (int64_t w = 0; w < words; w += 16) {
        F32x16 tile[16];
        for (int64_t i = 0; i < 16; ++i)
          tile[i] = s + i < rows ? F32x16{_mm512_loadu_ps(reinterpret_cast<const float*>(keys[s + i] + w * kPerWord<T>))} : zero();
        transpose_16x16(tile);
#pragma GCC unroll 16
        for (int64_t i = 0; i < 16; ++i)
#pragma GCC unroll 4
          for (int c = 0; c < C; ++c) sum[c] = add_word(sum[c], tile[i], q + c * H + (w + i) * kPerWord<T>);
      }
    for (int c = 0; c < C; ++c) store(scores[c] + s, sum[c]);
  }
}

// o[c] = o[c] shrink_c + sum over keys of p[c][s] v_s. bf16: o holds, for 32 numbers of the head, first the lower and then the upper four
// of each eight: what interleaving two rows gives.
template <int C>
ORRERY_INLINE void add_values(const uint16_t* const (&values)[B], int64_t rows, int64_t H, const float (&p)[C][B], const float (&shrink)[C], bool first,
                              float (&o)[C][kMaxHead]) {
  alignas(64) uint16_t rounded[C][B];
  for (int c = 0; c < C; ++c)
    for (int64_t s = 0; s < B; s += kLanes) store(rounded[c] + s, load(p[c] + s));
  for (int64_t h = 0; h < H; h += 32) {
    __m512 low[C], high[C];
    for (int c = 0; c < C; ++c) {
      low[c] = first ? _mm512_setzero_ps() : (load(o[c] + h) * splat(shrink[c])).v;
      high[c] = first ? _mm512_setzero_ps() : (load(o[c] + h + 16) * splat(shrink[c])).v;
    }
    for (int64_t s = 0; s < B; s += 2) {
      const __m512i even = s < rows ? _mm512_loadu_si512(values[s] + h) : _mm512_setzero_si512();
      const __m512i odd = s + 1 < rows ? _mm512_loadu_si512(values[s + 1] + h) : _mm512_setzero_si512();
      const __m512bh lower = pairs(_mm512_unpacklo_epi16(even, odd)), upper = pairs(_mm512_unpackhi_epi16(even, odd));
      for (int c = 0; c < C; ++c) {
        const __m512bh both = pairs(_mm512_set1_epi32(word_at(rounded[c] + s)));
        low[c] = _mm512_dpbf16_ps(low[c], both, lower);
        high[c] = _mm512_dpbf16_ps(high[c], both, upper);
      }
    }
    for (int c = 0; c < C; ++c) {
      _mm512_storeu_ps(o[c] + h, low[c]);
      _mm512_storeu_ps(o[c] + h + 16, high[c]);
    }
  }
}
template <int C>
ORRERY_INLINE void add_values(const float* const (&values)[B], int64_t rows, int64_t H, const float (&p)[C][B], const float (&shrink)[C], bool first,
                              float (&o)[C][kMaxHead]) {
  for (int64_t h = 0; h < H; h += 32) {
    F32x16 low[C], high[C];
    for (int c = 0; c < C; ++c) low[c] = high[c] = zero();
    for (int64_t s = 0; s < B; ++s) {
      const F32x16 a = s < rows ? load(values[s] + h) : zero(), b = s < rows ? load(values[s] + h + 16) : zero();
      for (int c = 0; c < C; ++c) {
        low[c] = fma(splat(p[c][s]), a, low[c]);
        high[c] = fma(splat(p[c][s]), b, high[c]);
      }
    }
    for (int c = 0; c < C; ++c) {
      store(o[c] + h, first ? low[c] : load(o[c] + h) * splat(shrink[c]) + low[c]);
      store(o[c] + h + 16, first ? high[c] : load(o[c] + h + 16) * splat(shrink[c]) + high[c]);
    }
  }
}

// Numbers of the head in order.
ORRERY_INLINE void in_order(const float* o, int64_t H, const uint16_t*, float* out) {
  for (int64_t h = 0; h < H; h += 32) {
    const __m512 low = _mm512_loadu_ps(o + h), high = _mm512_loadu_ps(o + h + 16);
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    _mm512_storeu_ps(out + h, _mm512_permutex2var_ps(low, first, high));
    _mm512_storeu_ps(out + h + 16, _mm512_permutex2var_ps(low, second, high));
  }
}
ORRERY_INLINE void in_order(const float* o, int64_t H, const float*, float* out) {
  for (int64_t h = 0; h < H; h += 16) store(out + h, load(o + h));
}

// softmax_block() of the block kernel for one query, lanes being keys: p replaces the scores.
ORRERY_INLINE float softmax_keys(float (&scores)[B], int64_t first_key, float scale, float first, float last, float& maximum, float& sum) {
  const F32x16 hidden = splat(-__builtin_inff()), steps = {_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
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

ORRERY_INLINE int64_t lowest_position(const PagedTask& t) { return t.window > 0 && t.context > t.window ? t.context - t.window : 0; }

template <typename T, int C>
void heads(const PagedTask& t, int64_t head) {
  const int64_t H = t.head_dim, lowest = lowest_position(t);
  const T* q = static_cast<const T*>(t.q) + head * H;
  const float scale = t.scale * kLog2E, first = static_cast<float>(lowest), last = static_cast<float>(t.context - 1);
  alignas(64) float p[C][B], o[C][kMaxHead];
  float maximum[C], sum[C], shrink[C];
  for (int c = 0; c < C; ++c) {
    maximum[c] = -__builtin_inff();
    sum[c] = 0;
  }
  BlockRows<T> blocks[2];
  blocks[0].find(t, lowest / B);
  for (int64_t j = lowest / B, now = 0; j * B < t.context; ++j, now = 1 - now) {
    const BlockRows<T>& block = blocks[now];
    BlockRows<T>& next = blocks[1 - now];
    if ((j + 1) * B < t.context)
      next.find(t, j + 1);
    else if (t.next != nullptr && head + C == t.group)
      next.find(*t.next, lowest_position(*t.next) / B);
    else
      next.rows = 0;
    block_scores<T, C>(block.keys, block.rows, H, q, next, p);
    for (int c = 0; c < C; ++c) shrink[c] = softmax_keys(p[c], j * B, scale, first, last, maximum[c], sum[c]);
    add_values<C>(block.values, block.rows, H, p, shrink, j == lowest / B, o);
  }
  for (int c = 0; c < C; ++c) {
    const F32x16 inverse = splat(1.0f) / splat(sum[c]);
    alignas(64) float ordered[kMaxHead];
    in_order(o[c], H, q, ordered);
    T* out = static_cast<T*>(t.o) + (head + c) * H;
    for (int64_t h = 0; h < H; h += kLanes) store(out + h, load(ordered + h) * inverse);
  }
}

template <typename T>
void decode(const PagedTask& t) {
  int64_t head = 0;
  for (; head + 4 <= t.group; head += 4) heads<T, 4>(t, head);
  if (t.group - head == 3) heads<T, 3>(t, head);
  if (t.group - head == 2) heads<T, 2>(t, head);
  if (t.group - head == 1) heads<T, 1>(t, head);
}

}  // namespace
}  // namespace orrery::ORRERY_SIMD

namespace orrery {
const PagedDecode kPagedDecodeBf16 = ORRERY_SIMD::decode<uint16_t>;
const PagedDecode kPagedDecodeF32 = ORRERY_SIMD::decode<float>;
}  // namespace orrery
