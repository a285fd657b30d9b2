// The decode kernel of paged_decode.h. Every sum has the order of the block kernel: scores over the head in pairs (bf16) or one chain
// (f32), 64 keys a block from position 0, probabilities in four chains over key mod 4, values over keys in order.
#include "backend/cpu/paged_decode.inl"

namespace orrery::ORRERY_SIMD {
namespace {

ORRERY_INLINE __m512bh pairs(__m512i a) { return (__m512bh)a; }

/// Sixteen words of a row: 32 bf16 or 16 f32. Numbers of K in a word: 2 or 1.
template <typename T>
constexpr int64_t kPerWord = 4 / static_cast<int64_t>(sizeof(T));

// One more word of the head for sixteen keys.
ORRERY_INLINE F32x16 add_word(F32x16 sum, F32x16 keys, const uint16_t* q) {
  return {_mm512_dpbf16_ps(sum.v, pairs(_mm512_castps_si512(keys.v)), pairs(_mm512_set1_epi32(word_at(q))))};
}
ORRERY_INLINE F32x16 add_word(F32x16 sum, F32x16 keys, const float* q) { return fma(splat(*q), keys, sum); }

// scores[c][s] = q_c . k_s for the 64 keys of a block, which lie `column` behind the starts of their rows; the softmax hides keys that are not there.
template <typename T, int C>
ORRERY_INLINE void block_scores(const BlockRows<T>& block, const BlockRows<T>& behind, int64_t column, int64_t H, const T* q, float (&scores)[C][B]) {
  const int64_t words = H / kPerWord<T>;
  for (int64_t s = 0; s < B; s += 2 * kLanes) {
    F32x16 sum[2][C];
    for (int c = 0; c < C; ++c) sum[0][c] = sum[1][c] = zero();
    if (s < block.rows)
      for (int64_t w = 0; w < words; w += 16) {
        F32x16 tile[2][16];
        for (int64_t t = 0; t < 2; ++t) {
          for (int64_t i = 0; i < 16; ++i) {
            prefetch_behind(behind.keys[s + 16 * t + i] + column + w * kPerWord<T>);
            tile[t][i] = {_mm512_loadu_ps(reinterpret_cast<const float*>(block.keys[s + 16 * t + i] + column + w * kPerWord<T>))};
          }
          transpose_16x16(tile[t]);
        }
#pragma GCC unroll 16
        for (int64_t i = 0; i < 16; ++i)
#pragma GCC unroll 4
          for (int c = 0; c < C; ++c) {
            sum[0][c] = add_word(sum[0][c], tile[0][i], q + c * H + (w + i) * kPerWord<T>);
            sum[1][c] = add_word(sum[1][c], tile[1][i], q + c * H + (w + i) * kPerWord<T>);
          }
      }
    for (int c = 0; c < C; ++c) {
      store(scores[c] + s, sum[0][c]);
      store(scores[c] + s + kLanes, sum[1][c]);
    }
  }
}

// o[c] = o[c] shrink_c + sum over keys of p[c][s] v_s. bf16: o holds, for 32 numbers of the head, first the lower and then the upper four
// of each eight: what interleaving two rows gives.
template <int C>
ORRERY_INLINE void add_values(const BlockRows<uint16_t>& block, const BlockRows<uint16_t>& behind, int64_t column, int64_t H, const float (&p)[C][B], const float (&shrink)[C], bool first,
                              float* o) {
  alignas(64) uint16_t rounded[C][B];
  for (int c = 0; c < C; ++c)
    for (int64_t s = 0; s < B; s += kLanes) store(rounded[c] + s, load(p[c] + s));
  for (int64_t h = 0; h < H; h += 32) {
    __m512 low[C], high[C];
    for (int c = 0; c < C; ++c) {
      low[c] = first ? _mm512_setzero_ps() : (load(o + c * H + h) * splat(shrink[c])).v;
      high[c] = first ? _mm512_setzero_ps() : (load(o + c * H + h + 16) * splat(shrink[c])).v;
    }
    for (int64_t s = 0; s < block.rows; s += 2) {  // what would come behind is zero
      prefetch_behind(behind.values[s] + column + h);
      prefetch_behind(behind.values[s + 1] + column + h);
      const __m512i even = _mm512_loadu_si512(block.values[s] + column + h);
      const __m512i odd = s + 1 < block.rows ? _mm512_loadu_si512(block.values[s + 1] + column + h) : _mm512_setzero_si512();
      const __m512bh lower = pairs(_mm512_unpacklo_epi16(even, odd)), upper = pairs(_mm512_unpackhi_epi16(even, odd));
      for (int c = 0; c < C; ++c) {
        const __m512bh both = pairs(_mm512_set1_epi32(word_at(rounded[c] + s)));
        low[c] = _mm512_dpbf16_ps(low[c], both, lower);
        high[c] = _mm512_dpbf16_ps(high[c], both, upper);
      }
    }
    for (int c = 0; c < C; ++c) {
      _mm512_storeu_ps(o + c * H + h, low[c]);
      _mm512_storeu_ps(o + c * H + h + 16, high[c]);
    }
  }
}
template <int C>
ORRERY_INLINE void add_values(const BlockRows<float>& block, const BlockRows<float>& behind, int64_t column, int64_t H, const float (&p)[C][B], const float (&shrink)[C], bool first,
                              float* o) {
  for (int64_t h = 0; h < H; h += 32) {
    F32x16 low[C], high[C];
    for (int c = 0; c < C; ++c) low[c] = high[c] = zero();
    for (int64_t s = 0; s < B; ++s) {
      prefetch_behind(behind.values[s] + column + h);
      prefetch_behind(behind.values[s] + column + h + 16);
      const F32x16 a = s < block.rows ? load(block.values[s] + column + h) : zero(), b = s < block.rows ? load(block.values[s] + column + h + 16) : zero();
      for (int c = 0; c < C; ++c) {
        low[c] = fma(splat(p[c][s]), a, low[c]);
        high[c] = fma(splat(p[c][s]), b, high[c]);
      }
    }
    for (int c = 0; c < C; ++c) {
      store(o + c * H + h, first ? low[c] : load(o + c * H + h) * splat(shrink[c]) + low[c]);
      store(o + c * H + h + 16, first ? high[c] : load(o + c * H + h + 16) * splat(shrink[c]) + high[c]);
    }
  }
}

// Numbers of the head in order.
ORRERY_INLINE void in_order(const float* o, int64_t H, const uint16_t*, float* out) { deinterleave(o, H, out); }
ORRERY_INLINE void in_order(const float* o, int64_t H, const float*, float* out) {
  for (int64_t h = 0; h < H; h += 16) store(out + h, load(o + h));
}

template <typename T>
void decode(const PagedTask& t) {
  const int64_t H = t.head_dim, lowest = lowest_position(t);
  const T* q = static_cast<const T*>(t.q);
  const float scale = t.scale * kLog2E, first = static_cast<float>(lowest), last = static_cast<float>(t.context - 1);
  const HeadSums sums(t);
  each_block<T>(t, [&](auto count, int64_t j, const BlockRows<T>& block, const BlockRows<T>& behind, int64_t kv_head, int64_t head) {
    constexpr int C = decltype(count)::value;
    alignas(64) float p[C][B];
    float shrink[C];
    block_scores<T, C>(block, behind, kv_head * H, H, q + head * H, p);
    for (int c = 0; c < C; ++c) shrink[c] = softmax_keys(p[c], j * B, scale, first, last, sums.maximum[head + c], sums.sum[head + c]);
    add_values<C>(block, behind, kv_head * H, H, p, shrink, j == lowest / B, sums.o + head * H);
  });
  for (int64_t head = 0; head < t.num_kv_heads * t.group; ++head) {
    const F32x16 inverse = splat(1.0f) / splat(sums.sum[head]);
    alignas(64) float ordered[kMaxHead];
    in_order(sums.o + head * H, H, q, ordered);
    T* out = static_cast<T*>(t.o) + head * H;
    for (int64_t h = 0; h < H; h += kLanes) store(out + h, load(ordered + h) * inverse);
  }
}

}  // namespace
}  // namespace orrery::ORRERY_SIMD

namespace orrery {
const PagedDecode kPagedDecodeBf16 = ORRERY_SIMD::decode<uint16_t>;
const PagedDecode kPagedDecodeF32 = ORRERY_SIMD::decode<float>;
}  // namespace orrery
