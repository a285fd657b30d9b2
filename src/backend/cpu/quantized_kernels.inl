// Body of quantized_kernels_avx2.cpp and quantized_kernels_avx512.cpp. A block's codes are unpacked into registers once and used for up
// to 12 rows of x, so that a dozen rows cost little more memory traffic than one, and the same text serves one row and a prompt.
#include "backend/cpu/quantized_kernels.h"
#include "backend/cpu/simd.h"

namespace orrery::ORRERY_SIMD {
namespace {

// ---- registers of codes: 16 columns by 4 numbers of K ------------------------------------------------------------------------

#if ORRERY_SIMD_AVX512

using Codes = __m512i;
ORRERY_INLINE Codes load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
ORRERY_INLINE Codes and_codes(Codes a, int mask) { return _mm512_and_si512(a, _mm512_set1_epi8(static_cast<char>(mask))); }
ORRERY_INLINE Codes or_codes(Codes a, Codes b) { return _mm512_or_si512(a, b); }
/// Shifts bits across byte borders: the caller masks.
template <int kBits>
ORRERY_INLINE Codes shift_codes(Codes a) {
  if constexpr (kBits > 0) return _mm512_srli_epi16(a, kBits);
  if constexpr (kBits < 0) return _mm512_slli_epi16(a, -kBits);
  return a;
}
ORRERY_INLINE F32x16 load_halves(const uint8_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
ORRERY_INLINE F32x16 load_u8(const uint8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))}; }
ORRERY_INLINE F32x16 load_i8(const uint8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))}; }

template <int kBits>
ORRERY_INLINE I32x16 start_sum(int32_t minus_offset_sum) {
  return splat_i32(minus_offset_sum);
}
template <int kBits>
ORRERY_INLINE I32x16 add_dot(I32x16 s, Codes w, const int8_t* q) {
  int32_t four;
  __builtin_memcpy(&four, q, 4);
  return {_mm512_dpbusd_epi32(s.v, w, _mm512_set1_epi32(four))};
}

#else

struct Codes {
  __m256i lo, hi;
};
ORRERY_INLINE Codes load_codes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
ORRERY_INLINE Codes and_codes(Codes a, int mask) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_and_si256(a.lo, m), _mm256_and_si256(a.hi, m)};
}
ORRERY_INLINE Codes or_codes(Codes a, Codes b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
template <int kBits>
ORRERY_INLINE Codes shift_codes(Codes a) {
  if constexpr (kBits > 0) return {_mm256_srli_epi16(a.lo, kBits), _mm256_srli_epi16(a.hi, kBits)};
  if constexpr (kBits < 0) return {_mm256_slli_epi16(a.lo, -kBits), _mm256_slli_epi16(a.hi, -kBits)};
  return a;
}
ORRERY_INLINE F32x16 load_halves(const uint8_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))};
}
ORRERY_INLINE F32x16 load_u8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}
ORRERY_INLINE F32x16 load_i8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

// vpmaddubsw sums pairs in 16 bits. Codes up to 6 bits: at most 2 * 63 * 127, which fits. 8 bits: signed, magnitudes times q with
// the weight's sign, at most 2 * 128 * 127 = 32,512, which fits too, and the offset has no part in it.
template <int kBits>
ORRERY_INLINE I32x16 start_sum(int32_t minus_offset_sum) {
  return splat_i32(kBits == 8 ? 0 : minus_offset_sum);
}
ORRERY_INLINE __m256i pairs_to_i32(__m256i s, __m256i pairs) { return _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }
template <int kBits>
ORRERY_INLINE I32x16 add_dot(I32x16 s, Codes w, const int8_t* q) {
  int32_t four;
  __builtin_memcpy(&four, q, 4);
  const __m256i a = _mm256_set1_epi32(four);
  if constexpr (kBits == 8) {
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
    const __m256i lo = _mm256_xor_si256(w.lo, flip), hi = _mm256_xor_si256(w.hi, flip);
    return {pairs_to_i32(s.lo, _mm256_maddubs_epi16(_mm256_abs_epi8(lo), _mm256_sign_epi8(a, lo))),
            pairs_to_i32(s.hi, _mm256_maddubs_epi16(_mm256_abs_epi8(hi), _mm256_sign_epi8(a, hi)))};
  }
  return {pairs_to_i32(s.lo, _mm256_maddubs_epi16(w.lo, a)), pairs_to_i32(s.hi, _mm256_maddubs_epi16(w.hi, a))};
}

#endif

template <int kBits>
ORRERY_INLINE void unpack_codes(const uint8_t* block, Codes (&w)[8]) {
  if constexpr (kBits == 8) {
    for (int g = 0; g < 8; ++g) w[g] = load_codes(block + 64 * g);
    return;
  }
  for (int g = 0; g < 4; ++g) {
    const Codes both = load_codes(block + 64 * g);
    w[g] = and_codes(both, 15);
    w[g + 4] = and_codes(shift_codes<4>(both), 15);
  }
  if constexpr (kBits == 5) {
    const Codes high = load_codes(block + 256);
    w[0] = or_codes(w[0], and_codes(shift_codes<-4>(high), 16));
    w[1] = or_codes(w[1], and_codes(shift_codes<-3>(high), 16));
    w[2] = or_codes(w[2], and_codes(shift_codes<-2>(high), 16));
    w[3] = or_codes(w[3], and_codes(shift_codes<-1>(high), 16));
    w[4] = or_codes(w[4], and_codes(high, 16));
    w[5] = or_codes(w[5], and_codes(shift_codes<1>(high), 16));
    w[6] = or_codes(w[6], and_codes(shift_codes<2>(high), 16));
    w[7] = or_codes(w[7], and_codes(shift_codes<3>(high), 16));
  }
  if constexpr (kBits == 6) {
    for (int half = 0; half < 2; ++half) {
      const Codes high = load_codes(block + 256 + 64 * half);
      Codes* to = w + 4 * half;
      to[0] = or_codes(to[0], and_codes(shift_codes<-4>(high), 0x30));
      to[1] = or_codes(to[1], and_codes(shift_codes<-2>(high), 0x30));
      to[2] = or_codes(to[2], and_codes(high, 0x30));
      to[3] = or_codes(to[3], and_codes(shift_codes<2>(high), 0x30));
    }
  }
}

// ---- one panel, kRows rows of x --------------------------------------------------------------------------------------------------

template <WeightFormat kFormat, int kRows>
void panel_rows(const std::byte* panel, int64_t k, const QuantizedBlock* x, float* y, int64_t ldy) {
  constexpr WeightFormatInfo kInfo = weight_format_info(kFormat);
  constexpr bool kHalves = kInfo.scales == ScaleKind::kHalf;
  const int64_t num_blocks = k / kQuantBlock;
  const auto* codes = reinterpret_cast<const uint8_t*>(panel);
  const uint8_t* scales = codes + quantized_code_bytes(kFormat, k);
  // Panels lie one after the other: while this one is used, the next comes to L2. The processor's own prefetchers lose the thread where
  // codes end and scales begin.
  const auto* next = reinterpret_cast<const char*>(panel + quantized_panel_bytes(kFormat, k));
  constexpr int64_t kStep = 64 * kInfo.bits;
  const int64_t scale_lines = (quantized_panel_bytes(kFormat, k) - quantized_code_bytes(kFormat, k)) / 64;
  F32x16 acc[kRows];
  for (int r = 0; r < kRows; ++r) acc[r] = zero();
  F32x16 super_d = zero(), super_m = zero();
  for (int64_t block = 0; block < num_blocks; ++block) {
    F32x16 d0 = zero(), d1 = zero(), m0 = zero(), m1 = zero();
    if constexpr (kInfo.scales == ScaleKind::kBlock) {
      d0 = load_halves(scales);
      if constexpr (kInfo.has_min) m0 = zero() - load_halves(scales + 32);
    } else {
      if (block % kQuantSuperBlocks == 0) {
        super_d = load_halves(scales);
        if constexpr (kInfo.has_min) super_m = load_halves(scales + 32);
        scales += quantized_super_scale_bytes(kFormat);
      }
      d0 = super_d * (kHalves ? load_i8(scales) : load_u8(scales));
      if constexpr (kHalves) d1 = super_d * load_i8(scales + 16);
      if constexpr (kInfo.has_min) m0 = super_m * load_u8(scales + (kHalves ? 32 : 16));
      if constexpr (kInfo.has_min && kHalves) m1 = super_m * load_u8(scales + 48);
    }
    scales += quantized_block_scale_bytes(kFormat);
    Codes w[8];
    unpack_codes<kInfo.bits>(codes, w);
    codes += kStep;
#pragma GCC unroll 8
    for (int line = 0; line < kInfo.bits; ++line) __builtin_prefetch(next + block * kStep + 64 * line, 0, 2);
    if (block < scale_lines) __builtin_prefetch(next + num_blocks * kStep + 64 * block, 0, 2);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const QuantizedBlock& a = x[r * num_blocks + block];
      const F32x16 scale = splat(a.scale);
      if constexpr (!kHalves) {
        I32x16 s = start_sum<kInfo.bits>(kInfo.offset == 0 ? 0 : -kInfo.offset * (a.sum[0] + a.sum[1]));
#pragma GCC unroll 8
        for (int g = 0; g < 8; ++g) s = add_dot<kInfo.bits>(s, w[g], a.q + 4 * g);
        acc[r] = fma(to_f32(s), d0 * scale, acc[r]);
        if constexpr (kInfo.has_min) acc[r] = fma(m0, splat(a.minus_sum), acc[r]);
      } else {
        I32x16 s0 = start_sum<kInfo.bits>(-kInfo.offset * a.sum[0]), s1 = start_sum<kInfo.bits>(-kInfo.offset * a.sum[1]);
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) {
          s0 = add_dot<kInfo.bits>(s0, w[g], a.q + 4 * g);
          s1 = add_dot<kInfo.bits>(s1, w[g + 4], a.q + 4 * g + 16);
        }
        acc[r] = fma(to_f32(s0), d0 * scale, acc[r]);
        if constexpr (kInfo.has_min) acc[r] = fma(m0, splat(-(a.scale * static_cast<float>(a.sum[0]))), acc[r]);
        acc[r] = fma(to_f32(s1), d1 * scale, acc[r]);
        if constexpr (kInfo.has_min) acc[r] = fma(m1, splat(-(a.scale * static_cast<float>(a.sum[1]))), acc[r]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) store(y + r * ldy, acc[r]);
}

template <WeightFormat kFormat>
void panel_product_of(const std::byte* panel, int64_t k, const QuantizedBlock* x, int64_t m, float* y, int64_t ldy) {
  const int64_t stride = k / kQuantBlock;
  while (m > 0) {
    int64_t rows = 1;
    const auto go = [&]<int kRows>() {
      rows = kRows;
      panel_rows<kFormat, kRows>(panel, k, x, y, ldy);
    };
#if ORRERY_SIMD_AVX512
    if (m >= 16 || m == 12) go.template operator()<12>();
    else if (m >= 8) go.template operator()<8>();
    else if (m >= 6) go.template operator()<6>();
    else
#endif
    // Sixteen registers do not even hold a block's codes: more rows than 4 gain nothing with AVX2.
    if (m >= 4) go.template operator()<4>();
    else if (m >= 2) go.template operator()<2>();
    else go.template operator()<1>();
    m -= rows;
    x += rows * stride;
    y += rows * ldy;
  }
}

void panel_product(WeightFormat format, const std::byte* panel, int64_t k, const QuantizedBlock* x, int64_t m, float* y, int64_t ldy) {
  switch (format) {
    case WeightFormat::kDense: return;
    case WeightFormat::kQ4_0: return panel_product_of<WeightFormat::kQ4_0>(panel, k, x, m, y, ldy);
    case WeightFormat::kQ4_1: return panel_product_of<WeightFormat::kQ4_1>(panel, k, x, m, y, ldy);
    case WeightFormat::kQ5_0: return panel_product_of<WeightFormat::kQ5_0>(panel, k, x, m, y, ldy);
    case WeightFormat::kQ5_1: return panel_product_of<WeightFormat::kQ5_1>(panel, k, x, m, y, ldy);
    case WeightFormat::kQ8_0: return panel_product_of<WeightFormat::kQ8_0>(panel, k, x, m, y, ldy);
    case WeightFormat::kQ2_K: return panel_product_of<WeightFormat::kQ2_K>(panel, k, x, m, y, ldy);
    case WeightFormat::kQ3_K: return panel_product_of<WeightFormat::kQ3_K>(panel, k, x, m, y, ldy);
    case WeightFormat::kQ4_K: return panel_product_of<WeightFormat::kQ4_K>(panel, k, x, m, y, ldy);
    case WeightFormat::kQ5_K: return panel_product_of<WeightFormat::kQ5_K>(panel, k, x, m, y, ldy);
    case WeightFormat::kQ6_K: return panel_product_of<WeightFormat::kQ6_K>(panel, k, x, m, y, ldy);
  }
}

// ---- rows of x ---------------------------------------------------------------------------------------------------------------------

ORRERY_INLINE int32_t store_i8(int8_t* out, I32x16 a) {
#if ORRERY_SIMD_AVX512
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(a.v));
  return _mm512_reduce_add_epi32(a.v);
#else
  alignas(32) int32_t lanes[16];
  store(lanes, a);
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<int8_t>(lanes[i]);
    sum += lanes[i];
  }
  return sum;
#endif
}

template <typename T>
void quantize_row(const void* row, int64_t k, QuantizedBlock* blocks) {
  const T* x = static_cast<const T*>(row);
  F32x16 poison = zero();  // x - x is 0, and NaN where x is not finite
  for (int64_t block = 0; block < k / kQuantBlock; ++block) {
    const F32x16 a = load(x + block * kQuantBlock), b = load(x + block * kQuantBlock + 16);
    poison = poison + ((a - a) + (b - b));
    const float amax = reduce_max(max(max(a, zero() - a), max(b, zero() - b)));
    const F32x16 inverse = splat(amax > 0 ? 127.0f / amax : 0.0f);
    QuantizedBlock& out = blocks[block];
    out.sum[0] = store_i8(out.q, to_i32(a * inverse));
    out.sum[1] = store_i8(out.q + 16, to_i32(b * inverse));
    out.scale = amax / 127.0f;
    out.minus_sum = -(out.scale * static_cast<float>(out.sum[0] + out.sum[1]));
  }
  // Codes have no way to say NaN or infinity: one scale does, and with it every product of the row.
  if (k > 0 && !(reduce_add(poison) == 0)) blocks[0].scale = __builtin_nanf("");
}

}  // namespace

extern const QuantizedKernels kQuantized;
const QuantizedKernels kQuantized = {{quantize_row<float>, quantize_row<uint16_t>}, panel_product};

}  // namespace orrery::ORRERY_SIMD
