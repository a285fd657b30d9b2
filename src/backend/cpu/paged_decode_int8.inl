// The decode kernel over a cache in 8 bits (paged_int8.h): sums are exact, so their order is free. A word of four codes of the head for sixteen
// keys is one vpdpbusd, a pair of keys for sixteen numbers of the head one vpdpwssd, or what AVX2 has for them. Included by
// paged_decode_int8_avx2.cpp and paged_decode_int8_avx512.cpp.
#include "backend/cpu/int8_rows.h"
#include "backend/cpu/paged_decode.inl"

namespace orrery::ORRERY_SIMD {
namespace {

// sum + four codes of each of sixteen keys times those of a query. One side of the products is unsigned: with AVX-512 it is the keys, as code + 128, and
// what that adds is the sum's start; with AVX2 the query without its signs, which the keys take over (two products of 127 x 127 stay in 16 bits).
// Numbers: as many of the head as a register has of 16 bits; of two keys side by side, in the order of deinterleave().
#if ORRERY_SIMD_AVX512
constexpr int32_t kKeyOffset = 128;
ORRERY_INLINE I32x16 add_products(I32x16 sum, I32x16 keys, const int8_t* q) {
  return {_mm512_dpbusd_epi32(sum.v, _mm512_xor_si512(keys.v, _mm512_set1_epi8(static_cast<char>(0x80))), _mm512_set1_epi32(word_at(q)))};
}

using Numbers = __m512i;
ORRERY_INLINE Numbers none() { return _mm512_setzero_si512(); }
ORRERY_INLINE Numbers widen(const int8_t* codes) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes))); }
ORRERY_INLINE Numbers lower_pairs(Numbers even, Numbers odd) { return _mm512_unpacklo_epi16(even, odd); }
ORRERY_INLINE Numbers upper_pairs(Numbers even, Numbers odd) { return _mm512_unpackhi_epi16(even, odd); }
ORRERY_INLINE Numbers add_pair(Numbers sum, Numbers pairs, int32_t weights) { return _mm512_dpwssd_epi32(sum, pairs, _mm512_set1_epi32(weights)); }
ORRERY_INLINE void add_scaled(float* o, Numbers low, Numbers high, F32x16 unit, F32x16 shrink) {
  store(o, fma(to_f32(I32x16{low}), unit, load(o) * shrink));
  store(o + 16, fma(to_f32(I32x16{high}), unit, load(o + 16) * shrink));
}
ORRERY_INLINE void store_i16(int16_t* p, I32x16 a) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v)); }
#else
constexpr int32_t kKeyOffset = 0;
ORRERY_INLINE I32x16 add_products(I32x16 sum, I32x16 keys, const int8_t* q) {
  const __m256i word = _mm256_set1_epi32(word_at(q)), size = _mm256_abs_epi8(word), ones = _mm256_set1_epi16(1);
  const auto half = [&](__m256i s, __m256i k) { return _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_sign_epi8(k, word)), ones)); };
  return {half(sum.lo, keys.lo), half(sum.hi, keys.hi)};
}

using Numbers = __m256i;
ORRERY_INLINE Numbers none() { return _mm256_setzero_si256(); }
ORRERY_INLINE Numbers widen(const int8_t* codes) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))); }
ORRERY_INLINE Numbers lower_pairs(Numbers even, Numbers odd) { return _mm256_unpacklo_epi16(even, odd); }
ORRERY_INLINE Numbers upper_pairs(Numbers even, Numbers odd) { return _mm256_unpackhi_epi16(even, odd); }
ORRERY_INLINE Numbers add_pair(Numbers sum, Numbers pairs, int32_t weights) { return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi32(weights))); }
ORRERY_INLINE void add_scaled(float* o, Numbers low, Numbers high, F32x16 unit, F32x16 shrink) { store(o, fma(to_f32(I32x16{low, high}), unit, load(o) * shrink)); }
ORRERY_INLINE void store_i16(int16_t* p, I32x16 a) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xD8)); }
#endif
constexpr int64_t kNumbers = sizeof(Numbers) / 2;

/// The query of a head.
struct Query {
  alignas(64) int8_t codes[kMaxHead];
  float scale;
  int32_t minus_offset;  // the sum of the codes, that many times what keys have too much

  template <typename T>
  ORRERY_MEMBER void quantize(const T* q, int64_t H) {
    scale = quantize_head(q, H, codes);
    int32_t total = 0;
    for (int64_t h = 0; h < H; ++h) total += codes[h];
    minus_offset = -kKeyOffset * total;
  }
};

// The word behind a head's codes is its scale.
template <int C>
ORRERY_INLINE void block_scores(const BlockRows<int8_t>& block, const BlockRows<int8_t>& behind, int64_t column, int64_t H, const Query* q, float (&scores)[C][B]) {
  fold_words<C>(
      block, behind, column, H / 4, [&](int c) { return as_f32(splat_i32(q[c].minus_offset)); },
      [&](F32x16 sum, F32x16 keys, int c, int64_t w) { return as_f32(add_products(as_i32(sum), as_i32(keys), q[c].codes + 4 * w)); },
      [&](int i, int c, F32x16 sum) {
        const F32x16 of_keys = load(reinterpret_cast<const float*>(block.keys[i] + column + H * kKeyTileTokens));
        store(scores[c] + i * kLanes, to_f32(as_i32(sum)) * (splat(q[c].scale) * of_keys));
      });
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
  for (int v = 0; v < 4; ++v) store_i16(codes + 16 * v, to_i32(w[v] * inverse));
  return most / kInt16Most + reduce_add(poison);
}

template <int C>
ORRERY_INLINE void add_values(const BlockRows<int8_t>& block, const BlockRows<int8_t>& behind, int64_t column, int64_t H, const int16_t (&codes)[C][B], const float (&unit)[C], const float (&shrink)[C], float* o) {
  for (int64_t h = 0; h < H; h += kNumbers) {
    Numbers low[C], high[C];
    for (int c = 0; c < C; ++c) low[c] = high[c] = none();
    const auto values = [&](int64_t s) { return s < block.rows ? widen(block.values[s] + column + h) : none(); };
    for (int64_t s = 0; s < block.rows; s += 2) {
      prefetch_behind(behind.values[s] + column + h);
      prefetch_behind(behind.values[s + 1] + column + h);
      const Numbers even = values(s), odd = values(s + 1), lower = lower_pairs(even, odd), upper = upper_pairs(even, odd);
      for (int c = 0; c < C; ++c) {
        const int32_t both = word_at(codes[c] + s);
        low[c] = add_pair(low[c], lower, both);
        high[c] = add_pair(high[c], upper, both);
      }
    }
    for (int c = 0; c < C; ++c) add_scaled(o + c * H + h, low[c], high[c], splat(unit[c]), splat(shrink[c]));
  }
}

template <typename T>
void decode(const PagedTask& t) {
  const int64_t H = t.head_dim, num_heads = t.num_kv_heads * t.group;
  const float scale = t.scale * kLog2E, first = static_cast<float>(lowest_position(t)), last = static_cast<float>(t.context - 1);
  const HeadSums sums(t);
  for (int64_t i = 0; i < num_heads * H; i += kLanes) store(sums.o + i, zero());
  Query* queries = reinterpret_cast<Query*>(t.scratch + pad_to(num_heads * (H + 2) * 4, 64));
  for (int64_t head = 0; head < num_heads; ++head) queries[head].quantize(static_cast<const T*>(t.q) + head * H, H);
  each_block<int8_t>(t, [&](auto count, int64_t j, const BlockRows<int8_t>& block, const BlockRows<int8_t>& behind, int64_t kv_head, int64_t head) {
    constexpr int C = decltype(count)::value;
    const int64_t column = kv_head * kv_int8_head_bytes(H);
    alignas(64) float p[C][B], value_scales[B];
    alignas(64) int16_t codes[C][B];
    float shrink[C], unit[C];
    for (int64_t s = 0; s < B; ++s) value_scales[s] = s < block.rows ? scale_of_head(block.values[s] + column, H) : 0.0f;
    block_scores<C>(block, behind, column * kKeyTileTokens, H, queries + head, p);
    for (int c = 0; c < C; ++c) {
      shrink[c] = softmax_keys(p[c], j * B, scale, first, last, sums.maximum[head + c], sums.sum[head + c]);
      unit[c] = weigh(p[c], value_scales, codes[c]);
    }
    add_values<C>(block, behind, column, H, codes, unit, shrink, sums.o + head * H);
  });
  for (int64_t head = 0; head < num_heads; ++head) {
    const F32x16 inverse = splat(1.0f) / splat(sums.sum[head]);
    alignas(64) float ordered[kMaxHead];
    deinterleave(sums.o + head * H, H, ordered);
    T* out = static_cast<T*>(t.o) + head * H;
    for (int64_t h = 0; h < H; h += kLanes) store(out + h, load(ordered + h) * inverse);
  }
}

}  // namespace

extern const PagedDecode kPagedDecodeInt8Bf16, kPagedDecodeInt8F32;
const PagedDecode kPagedDecodeInt8Bf16 = decode<uint16_t>, kPagedDecodeInt8F32 = decode<float>;

}  // namespace orrery::ORRERY_SIMD
