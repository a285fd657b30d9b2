// The products by f32 FMA, and packing, for one instruction set; included by tile_gemm_avx2.cpp and tile_gemm_avx512.cpp.
#include "backend/cpu/simd.h"
#include "backend/cpu/tile_gemm_isa.h"

namespace orrery::ORRERY_SIMD {
namespace {

constexpr int64_t kPanel = 16, kGranule = 32;

// The two bf16 of each 32-bit lane as f32: the lower, even one and the upper, odd one.
ORRERY_INLINE F32x16 even_half(I32x16 pairs) { return as_f32(shift_left<16>(pairs)); }
ORRERY_INLINE F32x16 odd_half(I32x16 pairs) { return as_f32(pairs & splat_i32(static_cast<int32_t>(0xFFFF0000u))); }

ORRERY_INLINE int32_t pair_at(const uint16_t* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, 4);
  return pair;
}

// R rows of one panel. amx32: per granule of 32 an even and an odd chain from +0, then c += even + odd. dp2: per pair the odd
// product, then the even one, into c. fma1: element by element into c.
template <Arithmetic kArithmetic, int R>
void rows_bf16(int64_t k, const uint16_t* a, int64_t lda, const uint16_t* panel, float* c, int64_t ldc, bool accumulate) {
  F32x16 sum[R];
  for (int r = 0; r < R; ++r) sum[r] = accumulate ? load(c + r * ldc) : zero();
  for (int64_t k0 = 0; k0 < k; k0 += kGranule) {
    F32x16 even[R], odd[R];
    for (int r = 0; r < R; ++r) even[r] = odd[r] = zero();
    for (int64_t pair = 0; pair < kGranule; pair += 2) {
      const I32x16 b = load(reinterpret_cast<const int32_t*>(panel + (k0 + pair) * kPanel));
      const F32x16 b_even = even_half(b), b_odd = odd_half(b);
      for (int r = 0; r < R; ++r) {
        const I32x16 both = splat_i32(pair_at(a + r * lda + k0 + pair));
        const F32x16 a_even = even_half(both), a_odd = odd_half(both);
        if constexpr (kArithmetic == Arithmetic::kAmx32) {
          even[r] = fma(a_even, b_even, even[r]);
          odd[r] = fma(a_odd, b_odd, odd[r]);
        } else if constexpr (kArithmetic == Arithmetic::kDp2) {
          sum[r] = fma(a_even, b_even, fma(a_odd, b_odd, sum[r]));
        } else {
          sum[r] = fma(a_odd, b_odd, fma(a_even, b_even, sum[r]));
        }
      }
    }
    if constexpr (kArithmetic == Arithmetic::kAmx32)
      for (int r = 0; r < R; ++r) sum[r] = sum[r] + (even[r] + odd[r]);
  }
  for (int r = 0; r < R; ++r) store(c + r * ldc, sum[r]);
}

// Chains of kChainF32, each from +0, met in order: a sum that has grown large takes K / 256 roundings of its size, not K.
template <int R>
void rows_f32(int64_t k, const float* a, int64_t lda, const float* panel, float* c, int64_t ldc, bool accumulate) {
  for (int64_t k0 = 0; k0 < k || k0 == 0; k0 += kChainF32) {
    const int64_t end = k - k0 < kChainF32 ? k : k0 + kChainF32;
    F32x16 sum[R];
    for (int r = 0; r < R; ++r) sum[r] = zero();
    for (int64_t i = k0; i < end; ++i) {
      const F32x16 b = load(panel + i * kPanel);
      for (int r = 0; r < R; ++r) sum[r] = fma(splat(a[r * lda + i]), b, sum[r]);
    }
    for (int r = 0; r < R; ++r) store(c + r * ldc, accumulate || k0 > 0 ? load(c + r * ldc) + sum[r] : sum[r]);
  }
}

constexpr int kRows = ORRERY_SIMD_AVX512 ? 6 : 3;

template <Arithmetic kArithmetic>
void gemm_bf16(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b, int64_t panel_stride,
               float* c, int64_t ldc, bool accumulate) {
  for (int64_t j = 0; j < n; j += kPanel) {
    const uint16_t* panel = b + j / kPanel * panel_stride;
    int64_t i = 0;
    for (; i + kRows <= m; i += kRows) rows_bf16<kArithmetic, kRows>(k, a + i * lda, lda, panel, c + i * ldc + j, ldc, accumulate);
    for (; i < m; ++i) rows_bf16<kArithmetic, 1>(k, a + i * lda, lda, panel, c + i * ldc + j, ldc, accumulate);
  }
}

void gemm_f32(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t panel_stride, float* c,
              int64_t ldc, bool accumulate) {
  constexpr int kF32Rows = ORRERY_SIMD_AVX512 ? 12 : 6;
  for (int64_t j = 0; j < n; j += kPanel) {
    const float* panel = b + j / kPanel * panel_stride;
    int64_t i = 0;
    for (; i + kF32Rows <= m; i += kF32Rows) rows_f32<kF32Rows>(k, a + i * lda, lda, panel, c + i * ldc + j, ldc, accumulate);
    for (; i < m; ++i) rows_f32<1>(k, a + i * lda, lda, panel, c + i * ldc + j, ldc, accumulate);
  }
}

// 16 x 16 transposition of 32-bit lanes: dst[j] = lane j of every source row.
ORRERY_INLINE void transpose_16x16(const int32_t* const* rows, int32_t* dst, int64_t dst_stride) {
#if ORRERY_SIMD_AVX512
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(rows[i]);
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(dst + i * dst_stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_si512(dst + (i + 8) * dst_stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
    _mm512_storeu_si512(dst + (i + 4) * dst_stride, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
    _mm512_storeu_si512(dst + (i + 12) * dst_stride, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
  }
#else
  for (int half = 0; half < 2; ++half)
    for (int block = 0; block < 2; ++block) {
      __m256i r[8], t[8];
      for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[half * 8 + i] + block * 8));
      for (int i = 0; i < 4; ++i) {
        t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
      }
      for (int i = 0; i < 2; ++i) {
        r[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
      }
      for (int i = 0; i < 4; ++i) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + (block * 8 + i) * dst_stride + half * 8),
                            _mm256_permute2x128_si256(r[i], r[i + 4], 0x20));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + (block * 8 + i + 4) * dst_stride + half * 8),
                            _mm256_permute2x128_si256(r[i], r[i + 4], 0x31));
      }
    }
#endif
}

// Sixteen or more rows are read side by side, which the hardware's prefetchers do not follow.
constexpr int64_t kPackAhead = 256;  // elements
constexpr int64_t kRowsAhead = 32;
ORRERY_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// Up to 16 rows of 32-bit lanes, transposed, with zero rows for those that are missing.
ORRERY_INLINE void transpose_block(int64_t num_rows, int64_t num_lanes, const int32_t* src, int64_t ld_lanes_bytes,
                                   int32_t* dst, int64_t dst_stride) {
  alignas(64) int32_t edge[16][16];
  const int32_t* rows[16];
  const bool whole = num_rows >= 16 && num_lanes >= 16;
  for (int i = 0; i < 16; ++i) {
    const auto* row = reinterpret_cast<const int32_t*>(reinterpret_cast<const char*>(src) + i * ld_lanes_bytes);
    if (whole) {
      rows[i] = row;
      continue;
    }
    for (int j = 0; j < 16; ++j) edge[i][j] = 0;
    if (i < num_rows) __builtin_memcpy(edge[i], row, static_cast<size_t>(num_lanes < 16 ? num_lanes : 16) * 4);
    rows[i] = edge[i];
  }
  transpose_16x16(rows, dst, dst_stride);
}

void pack_transposed_bf16(int64_t n, int64_t k, const uint16_t* src, int64_t ld, uint16_t* panels, int64_t panel_stride) {
  const int64_t padded = (k + kGranule - 1) / kGranule * kGranule, even_k = k & ~int64_t{1};
  for (int64_t j = 0; j < n; j += kPanel) {
    auto* panel = reinterpret_cast<int32_t*>(panels + j / kPanel * panel_stride);
    const int64_t rows = n - j < kPanel ? n - j : kPanel;
    for (int64_t i = 0; i < padded; i += 32) {
      for (int64_t r = 0; r < rows; ++r) prefetch(src + (j + r) * ld + i + kPackAhead);
      const int64_t lanes = i < even_k ? (even_k - i) / 2 : 0;
      transpose_block(lanes > 0 ? rows : 0, lanes, reinterpret_cast<const int32_t*>(src + j * ld + i), ld * 2,
                      panel + i / 2 * kPanel, kPanel);
    }
    if (k & 1)
      for (int64_t r = 0; r < rows; ++r) panel[k / 2 * kPanel + r] = src[(j + r) * ld + k - 1];
  }
}

void pack_transposed_f32(int64_t n, int64_t k, const float* src, int64_t ld, float* panels, int64_t panel_stride) {
  for (int64_t j = 0; j < n; j += kPanel) {
    float* panel = panels + j / kPanel * panel_stride;
    const int64_t rows = n - j < kPanel ? n - j : kPanel;
    int64_t i = 0;
    for (; i + 16 <= k; i += 16)
      transpose_block(rows, 16, reinterpret_cast<const int32_t*>(src + j * ld + i), ld * 4,
                      reinterpret_cast<int32_t*>(panel + i * kPanel), kPanel);
    for (; i < k; ++i)
      for (int64_t r = 0; r < kPanel; ++r) panel[i * kPanel + r] = r < rows ? src[(j + r) * ld + i] : 0.0f;
  }
}

// Two rows of 16 bf16 side by side: lane j holds (low[j], high[j]).
ORRERY_INLINE void interleave_16(const uint16_t* low, const uint16_t* high, uint16_t* dst) {
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
  const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high));
  const __m256i lo = _mm256_unpacklo_epi16(a, b), hi = _mm256_unpackhi_epi16(a, b);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), _mm256_permute2x128_si256(lo, hi, 0x20));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + 16), _mm256_permute2x128_si256(lo, hi, 0x31));
}

#if ORRERY_SIMD_AVX512
// The same for 32 columns, two panels.
ORRERY_INLINE void interleave_32(const uint16_t* low, const uint16_t* high, uint16_t* left, uint16_t* right) {
  alignas(64) static constexpr uint16_t kPlaces[64] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                       11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
                                                       22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  const __m512i a = _mm512_loadu_si512(low), b = _mm512_loadu_si512(high);
  _mm512_storeu_si512(left, _mm512_permutex2var_epi16(a, _mm512_load_si512(kPlaces), b));
  _mm512_storeu_si512(right, _mm512_permutex2var_epi16(a, _mm512_load_si512(kPlaces + 32), b));
}
#else
ORRERY_INLINE void interleave_32(const uint16_t* low, const uint16_t* high, uint16_t* left, uint16_t* right) {
  interleave_16(low, high, left);
  interleave_16(low + 16, high + 16, right);
}
#endif

// Pairs of panels one after the other: two streams are written, and whole lines of src are read, row after row.
void pack_rows_bf16(int64_t k, int64_t n, const uint16_t* src, int64_t ld, uint16_t* panels, int64_t panel_stride) {
  static const uint16_t kZeros[32] = {};
  const int64_t padded = (k + kGranule - 1) / kGranule * kGranule;
  const auto row = [&](int64_t r, int64_t j) { return r < k ? src + r * ld + j : kZeros; };
  int64_t j = 0;
  for (; j + 2 * kPanel <= n; j += 2 * kPanel) {
    uint16_t* dst = panels + j / kPanel * panel_stride;
    for (int64_t i = 0; i < padded; i += 2) {
      for (int64_t r = 0; r < 2; ++r) prefetch(src + (i + r + kRowsAhead) * ld + j);
      interleave_32(row(i, j), row(i + 1, j), dst + i * kPanel, dst + i * kPanel + panel_stride);
    }
  }
  for (; j < n; j += kPanel)
    for (int64_t i = 0; i < padded; i += 2) {
      uint16_t* dst = panels + j / kPanel * panel_stride + i * kPanel;
      if (j + kPanel <= n) {
        interleave_16(row(i, j), row(i + 1, j), dst);
        continue;
      }
      for (int64_t r = 0; r < kPanel; ++r) {
        dst[2 * r] = i < k && j + r < n ? src[i * ld + j + r] : uint16_t{0};
        dst[2 * r + 1] = i + 1 < k && j + r < n ? src[(i + 1) * ld + j + r] : uint16_t{0};
      }
    }
}

void pack_rows_f32(int64_t k, int64_t n, const float* src, int64_t ld, float* panels, int64_t panel_stride) {
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < n; j += kPanel) {
      float* dst = panels + j / kPanel * panel_stride + i * kPanel;
      if (j + kPanel <= n) {
        store(dst, load(src + i * ld + j));
        continue;
      }
      for (int64_t r = 0; r < kPanel; ++r) dst[r] = j + r < n ? src[i * ld + j + r] : 0.0f;
    }
}

// By way of 32-bit lanes: rows k and k + 1 interleaved give lanes (k, k + 1) per column, whose transposition is row-major in k.
void transpose_bf16(int64_t k, int64_t n, const uint16_t* src, int64_t ld, uint16_t* dst, int64_t ldd) {
  static const uint16_t kZeros[16] = {};
  const int64_t padded = (k + kGranule - 1) / kGranule * kGranule;
  alignas(64) uint16_t pairs[16][32];
  for (int64_t i = 0; i < padded; i += 32)
    for (int64_t j = 0; j < n; j += 16) {
      if (j + 16 <= n) {
        for (int p = 0; p < 16; ++p) {
          const int64_t row = i + 2 * p;
          if (j % 32 == 0) {
            prefetch(src + (row + 32) * ld + j);
            prefetch(src + (row + 33) * ld + j);
          }
          interleave_16(row < k ? src + row * ld + j : kZeros, row + 1 < k ? src + (row + 1) * ld + j : kZeros, pairs[p]);
        }
        const int32_t* rows[16];
        for (int p = 0; p < 16; ++p) rows[p] = reinterpret_cast<const int32_t*>(pairs[p]);
        transpose_16x16(rows, reinterpret_cast<int32_t*>(dst + j * ldd + i), ldd / 2);
        continue;
      }
      for (int64_t c = j; c < n; ++c)
        for (int64_t r = i; r < i + 32; ++r) dst[c * ldd + r] = r < k ? src[r * ld + c] : uint16_t{0};
    }
}

void transpose_f32(int64_t k, int64_t n, const float* src, int64_t ld, float* dst, int64_t ldd) {
  for (int64_t i = 0; i < k; i += 16)
    for (int64_t j = 0; j < n; j += 16)
      for (int64_t c = j; c < n && c < j + 16; ++c)
        for (int64_t r = i; r < k && r < i + 16; ++r) dst[c * ldd + r] = src[r * ld + c];
}

}  // namespace

TileGemm tile_gemm_without_bf16() {
  TileGemm table;
  table.f32 = gemm_f32;
  table.pack_transposed_bf16 = pack_transposed_bf16;
  table.pack_transposed_f32 = pack_transposed_f32;
  table.pack_rows_bf16 = pack_rows_bf16;
  table.pack_rows_f32 = pack_rows_f32;
  table.transpose_bf16 = transpose_bf16;
  table.transpose_f32 = transpose_f32;
  return table;
}

void set_rows_by_fma(TileGemm& table, Arithmetic arithmetic) {
  if (arithmetic == Arithmetic::kAmx32) table.bf16 = gemm_bf16<Arithmetic::kAmx32>;
#if !ORRERY_SIMD_AVX512
  if (arithmetic == Arithmetic::kDp2) table.bf16 = gemm_bf16<Arithmetic::kDp2>;
  if (arithmetic == Arithmetic::kFma1) table.bf16 = gemm_bf16<Arithmetic::kFma1>;
#endif
}

}  // namespace orrery::ORRERY_SIMD
