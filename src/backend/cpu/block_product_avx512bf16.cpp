// The block product with vdpbf16ps.
#include "backend/cpu/block_product.h"
#include "backend/cpu/block_product_table.h"
#include "backend/cpu/simd.h"

namespace orrery {
namespace {

template <int kPanels>
void tile_dp2(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t panel_stride, int64_t k, float* c, int64_t ldc,
              bool accumulate) {
  constexpr int kRows = 8;
  __m512 sum[kRows][kPanels];
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) sum[r][p] = accumulate ? _mm512_loadu_ps(c + r * ldc + p * 16) : _mm512_setzero_ps();
  for (int64_t i = 0; i < k; i += 2) {
    __m512bh column[kPanels];
    for (int p = 0; p < kPanels; ++p) column[p] = (__m512bh)_mm512_loadu_si512(b + p * panel_stride + i * 16);
    for (int r = 0; r < kRows; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, a + r * lda + i, sizeof pair);
      const __m512bh row = (__m512bh)_mm512_set1_epi32(pair);
      for (int p = 0; p < kPanels; ++p) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], row, column[p]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) _mm512_storeu_ps(c + r * ldc + p * 16, sum[r][p]);
}

}  // namespace

void product_dp2_native(const ProductArgs& p) {
  const uint16_t* a = static_cast<const uint16_t*>(p.a);
  const uint16_t* b = static_cast<const uint16_t*>(p.b);
  for (int64_t n = 0; n < p.n; n += 32)
    for (int64_t m = 0; m < p.m; m += 8) {
      const uint16_t* panels = b + n / 16 * p.panel_stride;
      if (n + 32 <= p.n)
        tile_dp2<2>(a + m * p.lda, p.lda, panels, p.panel_stride, p.k, p.c + m * p.ldc + n, p.ldc, p.accumulate);
      else
        tile_dp2<1>(a + m * p.lda, p.lda, panels, p.panel_stride, p.k, p.c + m * p.ldc + n, p.ldc, p.accumulate);
    }
}

}  // namespace orrery
