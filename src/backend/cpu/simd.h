// Sixteen f32 lanes with one meaning on every instruction set: one zmm register on AVX-512, two ymm registers on AVX2. Every
// operation is exactly rounded or purely bitwise and every reduction has one order, so a kernel written with it gives the same
// bits on both (NUMERICS rule 1).
//
// Included only by files compiled for one instruction set (x_avx2.cpp, x_avx512.cpp, ...). All functions have internal linkage,
// so that no copy compiled for AVX-512 can be chosen by the linker for a caller on an older machine; for the same reason
// kernel bodies use nothing inline from headers that baseline code includes too.
//
// bf16 numbers in memory are uint16_t. Loading widens them exactly, storing rounds to nearest even (NaN stays NaN).
#pragma once

// GCC 12 warns about its own headers' deliberately undefined operands (its bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define ORRERY_SIMD simd_avx512
#define ORRERY_SIMD_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__)
#define ORRERY_SIMD simd_avx2
#define ORRERY_SIMD_AVX512 0
#else
#error "simd.h belongs in files named x_avx2.cpp, x_avx512.cpp, x_avx512bf16.cpp or x_amx.cpp"
#endif

#define ORRERY_INLINE static inline __attribute__((always_inline))
#define ORRERY_MEMBER inline __attribute__((always_inline))  // of a class

namespace orrery::ORRERY_SIMD {

constexpr int64_t kLanes = 16;

#if ORRERY_SIMD_AVX512

struct F32x16 {
  __m512 v;
};
struct I32x16 {
  __m512i v;
};
struct Mask16 {
  __mmask16 v;
};

ORRERY_INLINE F32x16 splat(float x) { return {_mm512_set1_ps(x)}; }
ORRERY_INLINE F32x16 zero() { return {_mm512_setzero_ps()}; }
ORRERY_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
ORRERY_INLINE void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
ORRERY_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
ORRERY_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
ORRERY_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
ORRERY_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
/// a * b + c, rounded once.
ORRERY_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
/// c - a * b, rounded once.
ORRERY_INLINE F32x16 fnma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
/// The second operand where either is NaN, as the x86 instruction defines it.
ORRERY_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
ORRERY_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
ORRERY_INLINE F32x16 sqrt(F32x16 a) { return {_mm512_sqrt_ps(a.v)}; }
/// To the nearest integer, ties to even.
ORRERY_INLINE F32x16 round(F32x16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

ORRERY_INLINE I32x16 splat_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
ORRERY_INLINE I32x16 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
ORRERY_INLINE void store(int32_t* p, I32x16 a) { _mm512_storeu_si512(p, a.v); }
ORRERY_INLINE I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
ORRERY_INLINE I32x16 operator-(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
ORRERY_INLINE I32x16 operator&(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
ORRERY_INLINE I32x16 operator|(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int kBits>
ORRERY_INLINE I32x16 shift_left(I32x16 a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
/// Logical: zeros come in.
template <int kBits>
ORRERY_INLINE I32x16 shift_right(I32x16 a) {
  return {_mm512_srli_epi32(a.v, kBits)};
}
ORRERY_INLINE I32x16 as_i32(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
ORRERY_INLINE F32x16 as_f32(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
ORRERY_INLINE I32x16 to_i32(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
ORRERY_INLINE F32x16 to_f32(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }

ORRERY_INLINE Mask16 operator<(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
ORRERY_INLINE Mask16 is_nan(F32x16 a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
ORRERY_INLINE F32x16 select(Mask16 mask, F32x16 yes, F32x16 no) { return {_mm512_mask_blend_ps(mask.v, no.v, yes.v)}; }
ORRERY_INLINE I32x16 select(Mask16 mask, I32x16 yes, I32x16 no) { return {_mm512_mask_blend_epi32(mask.v, no.v, yes.v)}; }
/// Lanes 0 .. n - 1, for 0 <= n <= 16.
ORRERY_INLINE Mask16 first_lanes(int64_t n) { return {static_cast<__mmask16>((1u << n) - 1)}; }

/// Lanes [0, n) from memory, +0 in the others; touches only n elements.
ORRERY_INLINE F32x16 load_first(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n).v, p)}; }
ORRERY_INLINE void store_first(float* p, F32x16 a, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n).v, a.v); }

/// Sixteen u16 to the low or high half of sixteen 32-bit lanes and back.
ORRERY_INLINE I32x16 load_u16(const uint16_t* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
ORRERY_INLINE I32x16 load_u16_first(const uint16_t* p, int64_t n) {
  return {_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n).v, p))};
}
ORRERY_INLINE I32x16 load_i16(const int16_t* p) {
  return {_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
ORRERY_INLINE void store_u16(uint16_t* p, I32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
ORRERY_INLINE void store_u16_first(uint16_t* p, I32x16 a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n).v, _mm512_cvtepi32_epi16(a.v));
}

#else

struct F32x16 {
  __m256 lo, hi;
};
struct I32x16 {
  __m256i lo, hi;
};
struct Mask16 {
  __m256 lo, hi;
};

ORRERY_INLINE F32x16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
ORRERY_INLINE F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
ORRERY_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
ORRERY_INLINE void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
ORRERY_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
ORRERY_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
ORRERY_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
ORRERY_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
ORRERY_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
ORRERY_INLINE F32x16 fnma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
ORRERY_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
ORRERY_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
ORRERY_INLINE F32x16 sqrt(F32x16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
ORRERY_INLINE F32x16 round(F32x16 a) {
  return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

ORRERY_INLINE I32x16 splat_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
ORRERY_INLINE I32x16 load(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
ORRERY_INLINE void store(int32_t* p, I32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.hi);
}
ORRERY_INLINE I32x16 operator+(I32x16 a, I32x16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
ORRERY_INLINE I32x16 operator-(I32x16 a, I32x16 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
ORRERY_INLINE I32x16 operator&(I32x16 a, I32x16 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
ORRERY_INLINE I32x16 operator|(I32x16 a, I32x16 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
template <int kBits>
ORRERY_INLINE I32x16 shift_left(I32x16 a) {
  return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)};
}
template <int kBits>
ORRERY_INLINE I32x16 shift_right(I32x16 a) {
  return {_mm256_srli_epi32(a.lo, kBits), _mm256_srli_epi32(a.hi, kBits)};
}
ORRERY_INLINE I32x16 as_i32(F32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
ORRERY_INLINE F32x16 as_f32(I32x16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
ORRERY_INLINE I32x16 to_i32(F32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
ORRERY_INLINE F32x16 to_f32(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }

ORRERY_INLINE Mask16 operator<(F32x16 a, F32x16 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
ORRERY_INLINE Mask16 is_nan(F32x16 a) {
  return {_mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q), _mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q)};
}
ORRERY_INLINE F32x16 select(Mask16 mask, F32x16 yes, F32x16 no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, mask.lo), _mm256_blendv_ps(no.hi, yes.hi, mask.hi)};
}
ORRERY_INLINE I32x16 select(Mask16 mask, I32x16 yes, I32x16 no) { return as_i32(select(mask, as_f32(yes), as_f32(no))); }
ORRERY_INLINE Mask16 first_lanes(int64_t n) {
  const __m256i count = _mm256_set1_epi32(static_cast<int32_t>(n));
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))),
          _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)))};
}

ORRERY_INLINE F32x16 load_first(const float* p, int64_t n) {
  const Mask16 mask = first_lanes(n);
  return {_mm256_maskload_ps(p, _mm256_castps_si256(mask.lo)), _mm256_maskload_ps(p + 8, _mm256_castps_si256(mask.hi))};
}
ORRERY_INLINE void store_first(float* p, F32x16 a, int64_t n) {
  const Mask16 mask = first_lanes(n);
  _mm256_maskstore_ps(p, _mm256_castps_si256(mask.lo), a.lo);
  _mm256_maskstore_ps(p + 8, _mm256_castps_si256(mask.hi), a.hi);
}

ORRERY_INLINE I32x16 load_u16(const uint16_t* p) {
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
ORRERY_INLINE I32x16 load_u16_first(const uint16_t* p, int64_t n) {
  alignas(32) uint16_t buffer[16] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return load_u16(buffer);
}
ORRERY_INLINE I32x16 load_i16(const int16_t* p) {
  return {_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
ORRERY_INLINE void store_u16(uint16_t* p, I32x16 a) {
  // packus saturates, so the upper halves are cleared first; it also interleaves 128-bit lanes, which the permute undoes.
  const __m256i low16 = _mm256_set1_epi32(0xFFFF);
  const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(a.lo, low16), _mm256_and_si256(a.hi, low16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xD8));
}
ORRERY_INLINE void store_u16_first(uint16_t* p, I32x16 a, int64_t n) {
  alignas(32) uint16_t buffer[16];
  store_u16(buffer, a);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}

#endif

// ---- the same text for both ---------------------------------------------------------------------------------------------

/// bf16 bits of a in the low half of each lane: round to nearest even, NaN stays NaN.
ORRERY_INLINE I32x16 to_bf16_bits(F32x16 a) {
  const I32x16 bits = as_i32(a);
  const I32x16 odd = shift_right<16>(bits) & splat_i32(1);
  const I32x16 rounded = bits + splat_i32(0x7FFF) + odd;
  return shift_right<16>(select(is_nan(a), bits | splat_i32(0x400000), rounded));
}
/// The same for numbers that are not NaN, or are NaN with an empty low half, as every NaN made from bf16 operands is.
ORRERY_INLINE I32x16 number_to_bf16_bits(F32x16 a) {
  const I32x16 bits = as_i32(a);
  return shift_right<16>(bits + splat_i32(0x7FFF) + (shift_right<16>(bits) & splat_i32(1)));
}
/// a rounded to bf16, as f32: what storing and loading again would give.
ORRERY_INLINE F32x16 round_to_bf16(F32x16 a) { return as_f32(shift_left<16>(to_bf16_bits(a))); }

ORRERY_INLINE F32x16 load(const uint16_t* p) { return as_f32(shift_left<16>(load_u16(p))); }
ORRERY_INLINE F32x16 load_first(const uint16_t* p, int64_t n) { return as_f32(shift_left<16>(load_u16_first(p, n))); }
#if defined(__AVX512BF16__)
// One instruction; it differs in denormals alone, which it reads as 0, as all arithmetic in kernels' mode does.
ORRERY_INLINE __m256i bf16_bits_of(F32x16 a) { return (__m256i)_mm512_cvtneps_pbh(a.v); }
ORRERY_INLINE void store(uint16_t* p, F32x16 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bf16_bits_of(a)); }
ORRERY_INLINE void store_first(uint16_t* p, F32x16 a, int64_t n) { _mm256_mask_storeu_epi16(p, first_lanes(n).v, bf16_bits_of(a)); }
#else
ORRERY_INLINE void store(uint16_t* p, F32x16 a) { store_u16(p, to_bf16_bits(a)); }
ORRERY_INLINE void store_first(uint16_t* p, F32x16 a, int64_t n) { store_u16_first(p, to_bf16_bits(a), n); }
#endif

/// What a store to a T and a load again give: identity for f32, bf16 rounding for uint16_t.
template <typename T>
ORRERY_INLINE F32x16 round_to(F32x16 a) {
  if constexpr (sizeof(T) == 2)
    return round_to_bf16(a);
  else
    return a;
}

/// Sum of the lanes in the order ((i) + (i + 8)), then + 4, + 2, + 1.
ORRERY_INLINE float reduce_add(F32x16 a) {
#if ORRERY_SIMD_AVX512
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
#else
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
#endif
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
ORRERY_INLINE float reduce_max(F32x16 a) {
#if ORRERY_SIMD_AVX512
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
#else
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
#endif
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/// Calls body(offset, n) over [0, count) in steps of 16 lanes; n < 16 only in the last call. The body loads and stores with
/// load_n and store_n.
template <typename Body>
ORRERY_INLINE void for_lanes(int64_t count, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, kLanes);
  if (i < count) body(i, count - i);
}
/// For n known to be 16 the test disappears after inlining.
template <typename T>
ORRERY_INLINE F32x16 load_n(const T* p, int64_t n) {
  return n == kLanes ? load(p) : load_first(p, n);
}
template <typename T>
ORRERY_INLINE void store_n(T* p, F32x16 a, int64_t n) {
  if (n == kLanes)
    store(p, a);
  else
    store_first(p, a, n);
}

}  // namespace orrery::ORRERY_SIMD
