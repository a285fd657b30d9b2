// The decode kernel of paged_decode.h over bf16, dp2 and fma1 by f32 FMAs: for processors without vdpbf16ps, and for those whose FMAs are the
// faster way to its bits (tile_gemm_blocks_avx512.cpp).
#include "backend/cpu/paged_decode_rows.inl"

namespace orrery::ORRERY_SIMD {
namespace {

template <bool kOddFirst>
struct FmaPairs {
  using Number = uint16_t;
  using Query = float;

  ORRERY_MEMBER static const float* in_queries(const uint16_t* q, int64_t n, std::byte* to) {
    float* numbers = reinterpret_cast<float*>(to);
    for (int64_t i = 0; i < n; i += kLanes) store(numbers + i, load(q + i));
    return numbers;
  }

  ORRERY_MEMBER static F32x16 add_word(F32x16 sum, F32x16 keys, const float* q) {
    const __m512i pairs = _mm512_castps_si512(keys.v);
    const F32x16 even = {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))}, odd = {_mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))))};
    return kOddFirst ? fma(splat(q[0]), even, fma(splat(q[1]), odd, sum)) : fma(splat(q[1]), odd, fma(splat(q[0]), even, sum));
  }

  template <int C>
  ORRERY_MEMBER static void add_values(const BlockRows<uint16_t>& block, const BlockRows<uint16_t>& behind, int64_t column, int64_t H, const float (&p)[C][B], const float (&shrink)[C], bool first,
                                float* o) {
    alignas(64) float rounded[C][B];
    for (int c = 0; c < C; ++c)
      for (int64_t s = 0; s < B; s += kLanes) {
        alignas(64) uint16_t numbers[kLanes];
        store(numbers, load(p[c] + s));
        store(rounded[c] + s, load(numbers));
      }
    const int64_t whole_pairs = block.rows / 2 * 2;
    for (int64_t h = 0; h < H; h += 32) {
      F32x16 low[C], high[C];
      for (int c = 0; c < C; ++c) {
        low[c] = first ? zero() : load(o + c * H + h) * splat(shrink[c]);
        high[c] = first ? zero() : load(o + c * H + h + 16) * splat(shrink[c]);
      }
      const auto add = [&](int64_t s) __attribute__((always_inline)) {
        prefetch_behind(behind.values[s] + column + h);
        const F32x16 a = load(block.values[s] + column + h), b = load(block.values[s] + column + h + 16);
        for (int c = 0; c < C; ++c) {
          low[c] = fma(splat(rounded[c][s]), a, low[c]);
          high[c] = fma(splat(rounded[c][s]), b, high[c]);
        }
      };
      for (int64_t s = 0; s < whole_pairs; s += 2) {
        add(kOddFirst ? s + 1 : s);
        add(kOddFirst ? s : s + 1);
      }
      if (whole_pairs < block.rows) add(whole_pairs);  // of the pair's other half the probability is zero
      for (int c = 0; c < C; ++c) {
        store(o + c * H + h, low[c]);
        store(o + c * H + h + 16, high[c]);
      }
    }
  }

  ORRERY_MEMBER static void in_order(const float* o, int64_t H, float* out) {
    for (int64_t h = 0; h < H; h += kLanes) store(out + h, load(o + h));
  }
};

}  // namespace
}  // namespace orrery::ORRERY_SIMD

namespace orrery {
const PagedDecode kPagedDecodeDp2ByFma = ORRERY_SIMD::decode<ORRERY_SIMD::FmaPairs<true>>;
const PagedDecode kPagedDecodeFma1 = ORRERY_SIMD::decode<ORRERY_SIMD::FmaPairs<false>>;
}  // namespace orrery
