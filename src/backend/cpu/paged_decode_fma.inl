// The decode kernels of paged_decode.h by f32 FMAs: over f32, and over bf16 for dp2 and fma1, where no vdpbf16ps is, or FMAs are the faster way to its
// bits (tile_gemm_blocks_avx512.cpp). Included by paged_decode_fma_avx2.cpp and paged_decode_fma_avx512.cpp.
#include "backend/cpu/paged_decode_rows.inl"

namespace orrery::ORRERY_SIMD {
namespace {

// Numbers of the head whose sums registers hold for four query heads beside a value: 32 of AVX-512's registers, 16 of AVX2's, which are half as wide.
constexpr int64_t kWide = ORRERY_SIMD_AVX512 ? 32 : 16;

/// o[c] = o[c] shrink_c + sum over keys of p[c][s] v_s, for kWide numbers at a time; each(add) calls add(s) in the order of the sum. kShrinksFirst: the sum
/// begins at o[c] shrink_c, else at zero.
template <int C, bool kShrinksFirst, typename T, typename Each>
ORRERY_INLINE void fold_values(const BlockRows<T>& block, const BlockRows<T>& behind, int64_t column, int64_t H, const float (&p)[C][B], const float (&shrink)[C], bool first, float* o, Each&& each) {
  for (int64_t h = 0; h < H; h += kWide) {
    F32x16 sum[C][kWide / kLanes];
    for (int c = 0; c < C; ++c)
      for (int64_t i = 0; i < kWide / kLanes; ++i) sum[c][i] = first || !kShrinksFirst ? zero() : load(o + c * H + h + i * kLanes) * splat(shrink[c]);
    each([&](int64_t s) __attribute__((always_inline)) {
      F32x16 value[kWide / kLanes];
      for (int64_t i = 0; i < kWide / kLanes; ++i) value[i] = load(block.values[s] + column + h + i * kLanes);
      // A line holds as many numbers as one step takes of bf16, and as half a step does of f32.
      for (int64_t i = 0; i < kWide; i += 64 / static_cast<int64_t>(sizeof(T))) prefetch_behind(behind.values[s] + column + h + i);
      for (int c = 0; c < C; ++c)
        for (int64_t i = 0; i < kWide / kLanes; ++i) sum[c][i] = fma(splat(p[c][s]), value[i], sum[c][i]);
    });
    for (int c = 0; c < C; ++c)
      for (int64_t i = 0; i < kWide / kLanes; ++i) {
        float* at = o + c * H + h + i * kLanes;
        store(at, kShrinksFirst || first ? sum[c][i] : load(at) * splat(shrink[c]) + sum[c][i]);
      }
  }
}

struct OrderedSums {
  ORRERY_MEMBER static void in_order(const float* o, int64_t H, float* out) {
    for (int64_t h = 0; h < H; h += kLanes) store(out + h, load(o + h));
  }
};

struct OfF32 : OrderedSums {
  using Number = float;
  using Query = float;

  ORRERY_MEMBER static const float* in_queries(const float* q, int64_t, std::byte*) { return q; }
  ORRERY_MEMBER static F32x16 add_word(F32x16 sum, F32x16 keys, const float* q) { return fma(splat(*q), keys, sum); }

  template <int C>
  ORRERY_MEMBER static void add_values(const BlockRows<float>& block, const BlockRows<float>& behind, int64_t column, int64_t H, const float (&p)[C][B], const float (&shrink)[C], bool first,
                                float* o) {
    fold_values<C, false>(block, behind, column, H, p, shrink, first, o, [&](auto&& add) {
      for (int64_t s = 0; s < block.rows; ++s) add(s);
    });
  }
};

// dp2 meets the second of two first.
template <bool kOddFirst>
struct OfBf16 : OrderedSums {
  using Number = uint16_t;
  using Query = float;

  ORRERY_MEMBER static const float* in_queries(const uint16_t* q, int64_t n, std::byte* to) {
    float* numbers = reinterpret_cast<float*>(to);
    for (int64_t i = 0; i < n; i += kLanes) store(numbers + i, load(q + i));
    return numbers;
  }

  ORRERY_MEMBER static F32x16 add_word(F32x16 sum, F32x16 keys, const float* q) {
    const F32x16 even = as_f32(shift_left<16>(as_i32(keys))), odd = as_f32(as_i32(keys) & splat_i32(static_cast<int32_t>(0xFFFF0000u)));
    return kOddFirst ? fma(splat(q[0]), even, fma(splat(q[1]), odd, sum)) : fma(splat(q[1]), odd, fma(splat(q[0]), even, sum));
  }

  template <int C>
  ORRERY_MEMBER static void add_values(const BlockRows<uint16_t>& block, const BlockRows<uint16_t>& behind, int64_t column, int64_t H, const float (&p)[C][B], const float (&shrink)[C], bool first,
                                float* o) {
    alignas(64) float rounded[C][B];
    for (int c = 0; c < C; ++c)
      for (int64_t s = 0; s < B; s += kLanes) store(rounded[c] + s, round_to_bf16(load(p[c] + s)));
    fold_values<C, true>(block, behind, column, H, rounded, shrink, first, o, [&](auto&& add) {
      const int64_t whole_pairs = block.rows / 2 * 2;
      for (int64_t s = 0; s < whole_pairs; s += 2) {
        add(kOddFirst ? s + 1 : s);
        add(kOddFirst ? s : s + 1);
      }
      if (whole_pairs < block.rows) add(whole_pairs);  // of the pair's other half the probability is zero
    });
  }
};

}  // namespace

extern const PagedDecode kPagedDecodeF32, kPagedDecodeDp2, kPagedDecodeFma1;
const PagedDecode kPagedDecodeF32 = decode<OfF32>, kPagedDecodeDp2 = decode<OfBf16<true>>, kPagedDecodeFma1 = decode<OfBf16<false>>;

}  // namespace orrery::ORRERY_SIMD
