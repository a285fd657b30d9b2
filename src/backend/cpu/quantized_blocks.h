// The blocks that quantized kernels read, in registers: codes and scales of a panel, and what is beside the codes of a tile of rows.
// Included only by files compiled for one instruction set (simd.h).
#pragma once

#include "backend/cpu/quantized_kernels.h"
#include "backend/cpu/simd.h"

namespace orrery::ORRERY_SIMD {
namespace {

// ---- registers of codes: 16 columns by 4 numbers of K ------------------------------------------------------------------------

#if ORRERY_SIMD_AVX512

using Codes = __m512i;
ORRERY_INLINE Codes load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
ORRERY_INLINE void store_codes(uint8_t* p, Codes a) { _mm512_storeu_si512(p, a); }
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

/// Four numbers of a row, for every column.
using Four = __m512i;
ORRERY_INLINE Four splat_four(int32_t four) { return _mm512_set1_epi32(four); }
template <int kBits>
ORRERY_INLINE I32x16 add_dot(I32x16 s, Codes w, Four q) {
  return {_mm512_dpbusd_epi32(s.v, w, q)};
}
constexpr bool kDotsTakeTheOffset[9] = {true, true, true, true, true, true, true, true, true};  // by bits

#else

struct Codes {
  __m256i lo, hi;
};
ORRERY_INLINE Codes load_codes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
ORRERY_INLINE void store_codes(uint8_t* p, Codes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), a.hi);
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
constexpr bool kDotsTakeTheOffset[9] = {true, true, true, true, true, true, true, true, false};  // by bits
using Four = __m256i;
ORRERY_INLINE Four splat_four(int32_t four) { return _mm256_set1_epi32(four); }
ORRERY_INLINE __m256i pairs_to_i32(__m256i s, __m256i pairs) { return _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }
template <int kBits>
ORRERY_INLINE I32x16 add_dot(I32x16 s, Codes w, Four a) {
  if constexpr (kBits == 8) {
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
    const __m256i lo = _mm256_xor_si256(w.lo, flip), hi = _mm256_xor_si256(w.hi, flip);
    return {pairs_to_i32(s.lo, _mm256_maddubs_epi16(_mm256_abs_epi8(lo), _mm256_sign_epi8(a, lo))),
            pairs_to_i32(s.hi, _mm256_maddubs_epi16(_mm256_abs_epi8(hi), _mm256_sign_epi8(a, hi)))};
  }
  return {pairs_to_i32(s.lo, _mm256_maddubs_epi16(w.lo, a)), pairs_to_i32(s.hi, _mm256_maddubs_epi16(w.hi, a))};
}

#endif

/// Codes of group kGroup of a block.
template <int kBits, int kGroup>
ORRERY_INLINE Codes unpack_group(const uint8_t* block) {
  if constexpr (kBits == 8) return load_codes(block + 64 * kGroup);
  constexpr int kLow = kGroup % 4, kHalf = kGroup / 4;
  const Codes low = and_codes(shift_codes<4 * kHalf>(load_codes(block + 64 * kLow)), 15);
  if constexpr (kBits == 5) return or_codes(low, and_codes(shift_codes<kGroup - 4>(load_codes(block + 256)), 16));
  if constexpr (kBits == 6) return or_codes(low, and_codes(shift_codes<2 * kLow - 4>(load_codes(block + 256 + 64 * kHalf)), 0x30));
  return low;
}

// ---- blocks of a tile of rows and of panels -----------------------------------------------------------------------------------------

template <typename T>
ORRERY_INLINE T word_of(const std::byte* p) {
  T word;
  __builtin_memcpy(&word, p, 4);
  return word;
}

/// The parts of one block of a tile, from the row where the kernel's rows begin.
template <int kTileRows>
struct TileBlock {
  const std::byte* at;
  ORRERY_MEMBER Four group(int g, int row) const { return splat_four(word_of<int32_t>(at + (g * kTileRows + row) * 4)); }
  ORRERY_MEMBER F32x16 scale(int row) const { return splat(word_of<float>(at + (8 * kTileRows + row) * 4)); }
  ORRERY_MEMBER I32x16 minus_sum(int row) const { return splat_i32(word_of<int32_t>(at + (9 * kTileRows + row) * 4)); }
  ORRERY_MEMBER I32x16 minus_half(int row) const { return splat_i32(word_of<int32_t>(at + (10 * kTileRows + row) * 4)); }
  ORRERY_MEMBER F32x16 minus_min(int row) const { return splat(word_of<float>(at + (11 * kTileRows + row) * 4)); }
};

/// Scales of the blocks of kPanels panels, in order.
template <WeightFormat kFormat, int kPanels>
struct BlockScales {
  static constexpr WeightFormatInfo kInfo = weight_format_info(kFormat);
  static constexpr bool kHalves = kInfo.scales == ScaleKind::kHalf;
  const uint8_t* at;
  int64_t panel_bytes, block = 0;
  F32x16 super_d[kPanels], super_m[kPanels];
  F32x16 d[kPanels][2], min[kPanels][2];  // of the present block; by halves

  ORRERY_MEMBER void next() {
    for (int p = 0; p < kPanels; ++p) {
      const uint8_t* s = at + p * panel_bytes;
      if constexpr (kInfo.scales == ScaleKind::kBlock) {
        d[p][0] = load_halves(s);
        if constexpr (kInfo.has_min) min[p][0] = zero() - load_halves(s + 32);
      } else {
        if (block % kQuantSuperBlocks == 0) {
          super_d[p] = load_halves(s);
          if constexpr (kInfo.has_min) super_m[p] = load_halves(s + 32);
          s += quantized_super_scale_bytes(kFormat);
        }
        d[p][0] = super_d[p] * (kHalves ? load_i8(s) : load_u8(s));
        if constexpr (kHalves) d[p][1] = super_d[p] * load_i8(s + 16);
        if constexpr (kInfo.has_min) min[p][0] = super_m[p] * load_u8(s + (kHalves ? 32 : 16));
        if constexpr (kInfo.has_min && kHalves) min[p][1] = super_m[p] * load_u8(s + 48);
      }
    }
    if (kInfo.scales != ScaleKind::kBlock && block % kQuantSuperBlocks == 0) at += quantized_super_scale_bytes(kFormat);
    at += quantized_block_scale_bytes(kFormat);
    ++block;
  }
};

}  // namespace
}  // namespace orrery::ORRERY_SIMD
