// dp2 by vdpbf16ps, which adds the odd product of a pair and then the even one to the accumulator, each with one rounding, and
// flushes denormals whatever the mode: what tile_gemm.inl emulates with FMAs.
#include <immintrin.h>

#include "backend/cpu/tile_gemm_isa.h"

namespace orrery {
namespace {

template <int R>
void rows(int64_t k, const uint16_t* a, int64_t lda, const uint16_t* panel, float* c, int64_t ldc, bool accumulate) {
  __m512 sum[R];
  for (int r = 0; r < R; ++r) sum[r] = accumulate ? _mm512_loadu_ps(c + r * ldc) : _mm512_setzero_ps();
  for (int64_t i = 0; i < k; i += 2) {
    const auto b = (__m512bh)_mm512_loadu_si512(panel + i * 16);
    for (int r = 0; r < R; ++r) {
      int pair;
      __builtin_memcpy(&pair, a + r * lda + i, 4);
      sum[r] = _mm512_dpbf16_ps(sum[r], (__m512bh)_mm512_set1_epi32(pair), b);
    }
  }
  for (int r = 0; r < R; ++r) _mm512_storeu_ps(c + r * ldc, sum[r]);
}

}  // namespace

void tile_gemm_dp2_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                          int64_t panel_stride, float* c, int64_t ldc, bool accumulate) {
  for (int64_t j = 0; j < n; j += 16) {
    const uint16_t* panel = b_panels + j / 16 * panel_stride;
    int64_t i = 0;
    for (; i + 12 <= m; i += 12) rows<12>(k, a + i * lda, lda, panel, c + i * ldc + j, ldc, accumulate);
    for (; i + 4 <= m; i += 4) rows<4>(k, a + i * lda, lda, panel, c + i * ldc + j, ldc, accumulate);
    for (; i < m; ++i) rows<1>(k, a + i * lda, lda, panel, c + i * ldc + j, ldc, accumulate);
  }
}

}  // namespace orrery
