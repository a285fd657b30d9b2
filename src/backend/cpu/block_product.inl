// Body of block_product_avx2.cpp and block_product_avx512.cpp: every arithmetic id with plain f32 FMAs.
#include "backend/cpu/block_product.h"
#include "backend/cpu/block_product_table.h"
#include "backend/cpu/simd.h"

namespace orrery::ORRERY_SIMD {
namespace {

// Rows of C that a register tile holds beside two panels: 16 accumulators of the 32 (or 8 of 16) registers.
constexpr int kRows = ORRERY_SIMD_AVX512 ? 8 : 2;

enum class Chain { kFma1, kDp2, kAmx32 };

template <int kPanels>
void tile_f32(const float* a, int64_t lda, const float* b, int64_t panel_stride, int64_t k, float* c, int64_t ldc,
              bool accumulate) {
  F32x16 sum[kRows][kPanels];
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) sum[r][p] = accumulate ? load(c + r * ldc + p * 16) : zero();
  for (int64_t i = 0; i < k; ++i) {
    F32x16 column[kPanels];
    for (int p = 0; p < kPanels; ++p) column[p] = load(b + p * panel_stride + i * 16);
    for (int r = 0; r < kRows; ++r)
      for (int p = 0; p < kPanels; ++p) sum[r][p] = fma(splat(a[r * lda + i]), column[p], sum[r][p]);
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) store(c + r * ldc + p * 16, sum[r][p]);
}

ORRERY_INLINE F32x16 low_half(I32x16 pair) { return as_f32(shift_left<16>(pair)); }
ORRERY_INLINE F32x16 high_half(I32x16 pair) { return as_f32(pair & splat_i32(static_cast<int32_t>(0xFFFF0000u))); }

// The pairs of 32-bit words that bf16 operands are read in; int32_t may alias nothing else, hence memcpy.
ORRERY_INLINE int32_t load_pair(const uint16_t* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return pair;
}
ORRERY_INLINE I32x16 load_pairs(const uint16_t* p) {
  I32x16 pairs;
  __builtin_memcpy(&pairs, p, sizeof pairs);
  return pairs;
}

// One panel wide: emulation need not be fast, it needs few registers.
template <Chain kChain>
void tile_bf16(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t k, float* c, int64_t ldc, bool accumulate) {
  constexpr int kTileRows = 2;
  F32x16 sum[kTileRows];
  for (int r = 0; r < kTileRows; ++r) sum[r] = accumulate ? load(c + r * ldc) : zero();
  for (int64_t granule = 0; granule < k; granule += 32) {
    F32x16 even[kTileRows], odd[kTileRows];
    for (int r = 0; r < kTileRows; ++r) even[r] = odd[r] = zero();
    for (int64_t i = granule; i < granule + 32; i += 2) {
      const I32x16 pair_b = load_pairs(b + i * 16);
      const F32x16 b0 = low_half(pair_b), b1 = high_half(pair_b);
      for (int r = 0; r < kTileRows; ++r) {
        const I32x16 pair_a = splat_i32(load_pair(a + r * lda + i));
        const F32x16 a0 = low_half(pair_a), a1 = high_half(pair_a);
        if constexpr (kChain == Chain::kFma1) {
          sum[r] = fma(a1, b1, fma(a0, b0, sum[r]));
        } else if constexpr (kChain == Chain::kDp2) {
          sum[r] = fma(a0, b0, fma(a1, b1, sum[r]));
        } else {
          even[r] = fma(a0, b0, even[r]);
          odd[r] = fma(a1, b1, odd[r]);
        }
      }
    }
    if constexpr (kChain == Chain::kAmx32)
      for (int r = 0; r < kTileRows; ++r) sum[r] = sum[r] + (even[r] + odd[r]);
  }
  for (int r = 0; r < kTileRows; ++r) store(c + r * ldc, sum[r]);
}

void product_f32(const ProductArgs& p) {
  const float* a = static_cast<const float*>(p.a);
  const float* b = static_cast<const float*>(p.b);
  for (int64_t n = 0; n < p.n; n += 32)
    for (int64_t m = 0; m < p.m; m += kRows) {
      const float* panels = b + n / 16 * p.panel_stride;
      if (n + 32 <= p.n)
        tile_f32<2>(a + m * p.lda, p.lda, panels, p.panel_stride, p.k, p.c + m * p.ldc + n, p.ldc, p.accumulate);
      else
        tile_f32<1>(a + m * p.lda, p.lda, panels, p.panel_stride, p.k, p.c + m * p.ldc + n, p.ldc, p.accumulate);
    }
}

template <Chain kChain>
void product_bf16(const ProductArgs& p) {
  const uint16_t* a = static_cast<const uint16_t*>(p.a);
  const uint16_t* b = static_cast<const uint16_t*>(p.b);
  for (int64_t n = 0; n < p.n; n += 16)
    for (int64_t m = 0; m < p.m; m += 2)
      tile_bf16<kChain>(a + m * p.lda, p.lda, b + n / 16 * p.panel_stride, p.k, p.c + m * p.ldc + n, p.ldc, p.accumulate);
}

}  // namespace
}  // namespace orrery::ORRERY_SIMD
