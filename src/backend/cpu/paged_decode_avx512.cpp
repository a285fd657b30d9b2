// The decode kernel over a cache in 8 bits (paged_int8.h): sums are exact, so their order is free. A word of four codes of the head for sixteen
// keys is one vpdpbusd, a pair of keys for sixteen numbers of the head one vpdpwssd.
#include "backend/cpu/int8_rows.h"
#include "backend/cpu/paged_decode.inl"

namespace orrery::ORRERY_SIMD {
namespace {

/// The queries of C heads. vpdpbusd takes one side unsigned: keys go as code + 128, and 128 times the sum of the query's codes comes off.
template <int C>
struct Queries {
  alignas(64) int8_t codes[C][kMaxHead];
  float scale[C];
  int32_t minus_offset[C];

  template <typename T>
  ORRERY_MEMBER void quantize(const T* q, int64_t H) {
    for (int c = 0; c < C; ++c) {
      for (int64_t h = 0; h < kMaxHead; h += 64) _mm512_store_si512(codes[c] + h, _mm512_setzero_si512());
      scale[c] = quantize_head(q + c * H, H, codes[c]);
      int32_t total = 0;
      for (int64_t h = 0; h < H; ++h) total += codes[c][h];
      minus_offset[c] = -128 * total;
    }
  }
};

ORRERY_INLINE __mmask64 first_bytes(int64_t n) { return n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1; }

template <int C>
ORRERY_INLINE void block_scores(const BlockRows<int8_t>& block, int64_t H, const Queries<C>& q, const float (&key_scales)[B], const BlockRows<int8_t>& next, float (&scores)[C][B]) {
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(0x80));
  for (int64_t s = 0; s < B; s += kLanes) {
    __m512i sum[C];
    for (int c = 0; c < C; ++c) sum[c] = _mm512_set1_epi32(q.minus_offset[c]);
    next.prefetch(s);
    if (s < block.rows)
      for (int64_t h = 0; h < H; h += 64) {
        F32x16 tile[16];
        for (int64_t i = 0; i < 16; ++i) {
          const __m512i codes = s + i < block.rows ? _mm512_maskz_loadu_epi8(first_bytes(H - h), block.keys[s + i] + h) : _mm512_setzero_si512();
          tile[i] = {_mm512_castsi512_ps(_mm512_xor_si512(codes, offset))};
        }
        transpose_16x16(tile);
#pragma GCC unroll 16
        for (int64_t i = 0; i < 16; ++i)
#pragma GCC unroll 4
          for (int c = 0; c < C; ++c) sum[c] = _mm512_dpbusd_epi32(sum[c], _mm512_castps_si512(tile[i].v), _mm512_set1_epi32(word_at(q.codes[c] + h + 4 * i)));
      }
    const F32x16 of_keys = load(key_scales + s);
    for (int c = 0; c < C; ++c) store(scores[c] + s, to_f32(I32x16{sum[c]}) * (splat(q.scale[c]) * of_keys));
  }
}

// Probabilities times the values' scales as codes; returns their unit.
ORRERY_INLINE float weigh(const float (&p)[B], const float (&value_scales)[B], int16_t (&codes)[B]) {
  F32x16 w[4], top = zero(), poison = zero();
  for (int v = 0; v < 4; ++v) {
    w[v] = load(p + 16 * v) * load(value_scales + 16 * v);
    top = max(top, w[v]);
    poison = fma(w[v], zero(), poison);
  }
  const float most = reduce_max(top);
  const F32x16 inverse = splat(most > 0 ? kInt16Most / most : 0.0f);
  for (int v = 0; v < 4; ++v) _mm256_store_si256(reinterpret_cast<__m256i*>(codes + 16 * v), _mm512_cvtepi32_epi16(to_i32(w[v] * inverse).v));
  return most / kInt16Most + reduce_add(poison);
}

template <int C>
ORRERY_INLINE void add_values(const BlockRows<int8_t>& block, int64_t H, const int16_t (&codes)[C][B], const float (&unit)[C], const float (&shrink)[C], float (&o)[C][kMaxHead]) {
  for (int64_t h = 0; h < H; h += 32) {
    __m512i low[C], high[C];
    for (int c = 0; c < C; ++c) low[c] = high[c] = _mm512_setzero_si512();
    const auto values = [&](int64_t s) {
      return s < block.rows ? _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.values[s] + h))) : _mm512_setzero_si512();
    };
    for (int64_t s = 0; s < block.rows; s += 2) {
      const __m512i even = values(s), odd = values(s + 1), lower = _mm512_unpacklo_epi16(even, odd), upper = _mm512_unpackhi_epi16(even, odd);
      for (int c = 0; c < C; ++c) {
        const __m512i both = _mm512_set1_epi32(word_at(codes[c] + s));
        low[c] = _mm512_dpwssd_epi32(low[c], lower, both);
        high[c] = _mm512_dpwssd_epi32(high[c], upper, both);
      }
    }
    for (int c = 0; c < C; ++c) {
      const F32x16 units = splat(unit[c]), shrinks = splat(shrink[c]);
      store(o[c] + h, fma(to_f32(I32x16{low[c]}), units, load(o[c] + h) * shrinks));
      store(o[c] + h + 16, fma(to_f32(I32x16{high[c]}), units, load(o[c] + h + 16) * shrinks));
    }
  }
}

template <typename T, int C>
void heads(const PagedTask& t, int64_t head) {
  const int64_t H = t.head_dim;
  const float scale = t.scale * kLog2E, first = static_cast<float>(lowest_position(t)), last = static_cast<float>(t.context - 1);
  Queries<C> q;
  q.quantize(static_cast<const T*>(t.q) + head * H, H);
  alignas(64) float p[C][B], o[C][kMaxHead] = {}, key_scales[B], value_scales[B];
  alignas(64) int16_t codes[C][B];
  float maximum[C], sum[C], shrink[C], unit[C];
  for (int c = 0; c < C; ++c) {
    maximum[c] = -__builtin_inff();
    sum[c] = 0;
  }
  each_block<int8_t>(t, head + C, [&](int64_t j, const BlockRows<int8_t>& block, const BlockRows<int8_t>& next) {
    for (int64_t s = 0; s < B; ++s) {
      key_scales[s] = s < block.rows ? scale_of_head(block.keys[s], H) : 0.0f;
      value_scales[s] = s < block.rows ? scale_of_head(block.values[s], H) : 0.0f;
    }
    block_scores<C>(block, H, q, key_scales, next, p);
    for (int c = 0; c < C; ++c) {
      shrink[c] = softmax_keys(p[c], j * B, scale, first, last, maximum[c], sum[c]);
      unit[c] = weigh(p[c], value_scales, codes[c]);
    }
    add_values<C>(block, H, codes, unit, shrink, o);
  });
  for (int c = 0; c < C; ++c) {
    const F32x16 inverse = splat(1.0f) / splat(sum[c]);
    alignas(64) float ordered[kMaxHead];
    deinterleave(o[c], H, ordered);
    T* out = static_cast<T*>(t.o) + (head + c) * H;
    for (int64_t h = 0; h < H; h += kLanes) store(out + h, load(ordered + h) * inverse);
  }
}

template <typename T>
void decode(const PagedTask& t) {
  by_fours(t.group, [&](auto count, int64_t head) { heads<T, decltype(count)::value>(t, head); });
}

}  // namespace
}  // namespace orrery::ORRERY_SIMD

namespace orrery {
const PagedDecode kPagedDecodeInt8Bf16 = ORRERY_SIMD::decode<uint16_t>;
const PagedDecode kPagedDecodeInt8F32 = ORRERY_SIMD::decode<float>;
}  // namespace orrery
