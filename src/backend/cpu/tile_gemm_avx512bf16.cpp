// dp2 by vdpbf16ps, which adds the odd product of a pair and then the even one to the accumulator, each with one rounding, and
// flushes denormals whatever the mode: what tile_gemm.inl emulates with FMAs.
//
// Blocks   R rows by P panels of accumulators in registers, R * P = 24: Zen 4 starts one vdpbf16ps of 64 bytes and one such load a
//          cycle, so one panel alone (13 loads for 12 products) waits for loads, 8 rows by 3 panels (11 for 24) do not, nor 6 by 4
//          for what threes leave over. From L2
//          that runs at 225 to 230 of 232 GFLOP/s a core. Slices of 256 of K, whose panels stay in L1, were slower with panels
//          behind L2: the prefetchers follow long streams. Rows a multiple of 1 KiB apart share few cache sets and are copied
//          side by side first, in slices of 1,024; c goes through memory between slices, exactly.
#include <immintrin.h>

#include <algorithm>

#include "backend/cpu/tile_gemm_isa.h"

namespace orrery {
namespace {

constexpr int64_t kSlice = 1024, kBand = 64, kCopyStride = kSlice + 32;  // elements, rows, elements

struct Slice {
  int64_t k;  // even
  const uint16_t* a;
  int64_t lda;
  const uint16_t* b;  // the first panel
  int64_t panel_stride;
  float* c;
  int64_t ldc;
  bool accumulate;
  bool ahead = false;  // the panels behind those of the first rows come to L2 meanwhile
};

template <int R, int P, bool kAhead = false>
inline __attribute__((always_inline)) void block(const Slice& s, int64_t row, int64_t panel) {
  const uint16_t* a = s.a + row * s.lda;
  const uint16_t* b = s.b + panel * s.panel_stride;
  float* c = s.c + row * s.ldc + panel * 16;
  __m512 sum[R][P];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) sum[r][p] = s.accumulate ? _mm512_loadu_ps(c + r * s.ldc + p * 16) : _mm512_setzero_ps();
  for (int64_t i = 0; i < s.k; i += 2) {
    __m512bh columns[P];
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) {
      columns[p] = (__m512bh)_mm512_loadu_si512(b + p * s.panel_stride + i * 16);
      if constexpr (kAhead) _mm_prefetch(reinterpret_cast<const char*>(b + (P + p) * s.panel_stride + i * 16), _MM_HINT_T1);
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      int pair;
      __builtin_memcpy(&pair, a + r * s.lda + i, 4);
      const auto both = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], both, columns[p]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) _mm512_storeu_ps(c + r * s.ldc + p * 16, sum[r][p]);
}

// P panels of all rows, in blocks of R rows and then fewer.
template <int R, int P>
void panels(const Slice& s, int64_t m, int64_t panel) {
  int64_t row = 0;
  if (s.ahead && m >= R) {
    block<R, P, true>(s, 0, panel);
    row = R;
  }
  for (; row + R <= m; row += R) block<R, P>(s, row, panel);
  for (; row + 4 <= m; row += 4) block<4, P>(s, row, panel);
  for (; row < m; ++row) block<1, P>(s, row, panel);
}

// Few rows read b once, at the speed of memory: one panel after the other is one stream, which the prefetchers follow as they follow a
// read loop; two or four panels side by side are a fifth slower, and requests ahead by instruction a tenth. Its chain of sums takes 64
// bytes in six cycles, no more than memory gives; from cache, and where the rows take most of L1, four panels are passed at once.
template <int R>
void few_rows(const Slice& s, int64_t num_panels, bool cached) {
  constexpr int64_t kRowElements = 8 << 10;  // 16 KiB
  int64_t panel = 0;
  if (cached || R * s.k > kRowElements)
    for (; panel + 4 <= num_panels; panel += 4) block<R, 4>(s, 0, panel);
  for (; panel < num_panels; ++panel) block<R, 1>(s, 0, panel);
}

void slice_product(const Slice& s, int64_t m, int64_t num_panels, bool cached = false) {
  switch (m) {
    case 1: return few_rows<1>(s, num_panels, cached);
    case 2: return few_rows<2>(s, num_panels, cached);
    case 3: return few_rows<3>(s, num_panels, cached);
    case 4: return few_rows<4>(s, num_panels, cached);
    default: break;
  }
  int64_t panel = 0;
  for (; num_panels - panel >= 5 || num_panels - panel == 3; panel += 3) panels<8, 3>(s, m, panel);
  switch (num_panels - panel) {
    case 4: return panels<6, 4>(s, m, panel);
    case 2: return panels<12, 2>(s, m, panel);
    case 1: return panels<12, 1>(s, m, panel);
    default: return;
  }
}

constexpr int64_t kFewRows = 4;
// So few rows do not hide the time in which panels come from memory, and three streams side by side lose the prefetchers where panels end.
constexpr int64_t kAheadRows = 32;

}  // namespace

void tile_gemm_dp2_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                          int64_t panel_stride, float* c, int64_t ldc, bool accumulate) {
  constexpr int64_t kShallow = 64;
  const int64_t num_panels = n / 16;
  if (m <= kFewRows || k <= kShallow) return slice_product({k, a, lda, b_panels, panel_stride, c, ldc, accumulate}, m, num_panels);
  alignas(64) uint16_t copy[kBand * kCopyStride];
  const bool copies = lda % 512 == 0;
  for (int64_t row = 0; row < m; row += kBand) {
    const int64_t rows = std::min(kBand, m - row);
    for (int64_t d = 0; d < k; d += kSlice) {
      const int64_t depth = std::min(kSlice, k - d);
      Slice s{depth, a + row * lda + d, lda, b_panels + d * 16, panel_stride, c + row * ldc, ldc, accumulate || d > 0, m <= kAheadRows};
      if (copies) {
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t i = 0; i < depth; i += 32)
            _mm512_store_si512(copy + r * kCopyStride + i, _mm512_loadu_si512(s.a + r * lda + i));
        s.a = copy;
        s.lda = kCopyStride;
      }
      slice_product(s, rows, num_panels);
    }
  }
}

void tile_gemm_cached_rows_dp2_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                                      int64_t panel_stride, float* c, int64_t ldc, bool accumulate) {
  if (m > kFewRows) return tile_gemm_dp2_native(m, n, k, a, lda, b_panels, panel_stride, c, ldc, accumulate);
  slice_product({k, a, lda, b_panels, panel_stride, c, ldc, accumulate}, m, n / 16, true);
}

}  // namespace orrery
