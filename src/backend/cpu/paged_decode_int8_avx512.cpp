// The decode kernel over a cache in 8 bits (paged_int8.h): sums are exact, so their order is free. A word of four codes of the head for sixteen
// keys is one vpdpbusd, a pair of keys for sixteen numbers of the head one vpdpwssd.
#include "backend/cpu/int8_rows.h"
#include "backend/cpu/paged_decode.inl"

namespace orrery::ORRERY_SIMD {
namespace {

/// The query of a head. vpdpbusd takes one side unsigned: keys go as code + 128, and 128 times the sum of the query's codes comes off.
struct Query {
  alignas(64) int8_t codes[kMaxHead];
  float scale;
  int32_t minus_offset;

  template <typename T>
  ORRERY_MEMBER void quantize(const T* q, int64_t H) {
    for (int64_t h = 0; h < kMaxHead; h += 64) _mm512_store_si512(codes + h, _mm512_setzero_si512());
    scale = quantize_head(q, H, codes);
    int32_t total = 0;
    for (int64_t h = 0; h < H; ++h) total += codes[h];
    minus_offset = -128 * total;
  }
};

ORRERY_INLINE F32x16 as_floats(__m512i a) { return {_mm512_castsi512_ps(a)}; }
ORRERY_INLINE __m512i as_words(F32x16 a) { return _mm512_castps_si512(a.v); }

// The word behind a head's codes is its scale.
template <int C>
ORRERY_INLINE void block_scores(const BlockRows<int8_t>& block, const BlockRows<int8_t>& behind, int64_t column, int64_t H, const Query* q, float (&scores)[C][B]) {
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(0x80));
  fold_words<C>(
      block, behind, column, H / 4, [&](int c) { return as_floats(_mm512_set1_epi32(q[c].minus_offset)); },
      [&](F32x16 sum, F32x16 keys, int c, int64_t w) {
        return as_floats(_mm512_dpbusd_epi32(as_words(sum), _mm512_xor_si512(as_words(keys), offset), _mm512_set1_epi32(word_at(q[c].codes + 4 * w))));
      },
      [&](int i, int c, F32x16 sum) {
        const F32x16 of_keys = {_mm512_loadu_ps(reinterpret_cast<const float*>(block.keys[i] + column + H * kKeyTileTokens))};
        store(scores[c] + i * kLanes, to_f32(I32x16{as_words(sum)}) * (splat(q[c].scale) * of_keys));
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
  for (int v = 0; v < 4; ++v) _mm256_store_si256(reinterpret_cast<__m256i*>(codes + 16 * v), _mm512_cvtepi32_epi16(to_i32(w[v] * inverse).v));
  return most / kInt16Most + reduce_add(poison);
}

template <int C>
ORRERY_INLINE void add_values(const BlockRows<int8_t>& block, const BlockRows<int8_t>& behind, int64_t column, int64_t H, const int16_t (&codes)[C][B], const float (&unit)[C], const float (&shrink)[C], float* o) {
  for (int64_t h = 0; h < H; h += 32) {
    __m512i low[C], high[C];
    for (int c = 0; c < C; ++c) low[c] = high[c] = _mm512_setzero_si512();
    const auto values = [&](int64_t s) {
      return s < block.rows ? _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.values[s] + column + h))) : _mm512_setzero_si512();
    };
    for (int64_t s = 0; s < block.rows; s += 2) {
      prefetch_behind(behind.values[s] + column + h);
      prefetch_behind(behind.values[s + 1] + column + h);
      const __m512i even = values(s), odd = values(s + 1), lower = _mm512_unpacklo_epi16(even, odd), upper = _mm512_unpackhi_epi16(even, odd);
      for (int c = 0; c < C; ++c) {
        const __m512i both = _mm512_set1_epi32(word_at(codes[c] + s));
        low[c] = _mm512_dpwssd_epi32(low[c], lower, both);
        high[c] = _mm512_dpwssd_epi32(high[c], upper, both);
      }
    }
    for (int c = 0; c < C; ++c) {
      const F32x16 units = splat(unit[c]), shrinks = splat(shrink[c]);
      store(o + c * H + h, fma(to_f32(I32x16{low[c]}), units, load(o + c * H + h) * shrinks));
      store(o + c * H + h + 16, fma(to_f32(I32x16{high[c]}), units, load(o + c * H + h + 16) * shrinks));
    }
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
}  // namespace orrery::ORRERY_SIMD

namespace orrery {
const PagedDecode kPagedDecodeInt8Bf16 = ORRERY_SIMD::decode<uint16_t>;
const PagedDecode kPagedDecodeInt8F32 = ORRERY_SIMD::decode<float>;
}  // namespace orrery
