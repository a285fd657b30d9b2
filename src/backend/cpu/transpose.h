// Transposes of 16 x 16 blocks of 32-bit words in registers, and the packings of attention's operands made of them. Included
// only by files compiled for one instruction set (simd.h).
#pragma once

#include "backend/cpu/simd.h"

namespace orrery::ORRERY_SIMD {

/// rows[i] lane j -> rows[j] lane i.
ORRERY_INLINE void transpose_16x16(F32x16 (&rows)[16]) {
#if ORRERY_SIMD_AVX512
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(a[i + j]), high = _mm512_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  // b[4 g + c]: in 128-bit lane l the column 4 l + c of rows 4 g .. 4 g + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512 x0 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88), x1 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xDD);
    const __m512 y0 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88), y1 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xDD);
    rows[c].v = _mm512_shuffle_f32x4(x0, y0, 0x88);
    rows[8 + c].v = _mm512_shuffle_f32x4(x0, y0, 0xDD);
    rows[4 + c].v = _mm512_shuffle_f32x4(x1, y1, 0x88);
    rows[12 + c].v = _mm512_shuffle_f32x4(x1, y1, 0xDD);
  }
#else
  const auto transpose_8x8 = [](__m256(&r)[8]) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
      a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
      for (int j = 0; j < 2; ++j) {
        const __m256d low = _mm256_castps_pd(a[i + j]), high = _mm256_castps_pd(a[i + j + 2]);
        b[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
        b[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
      }
    for (int c = 0; c < 4; ++c) {
      r[c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
      r[4 + c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
    }
  };
  __m256 block[4][8];  // [2 * (upper rows) + (right columns)]
  for (int i = 0; i < 8; ++i) {
    block[0][i] = rows[i].lo;
    block[1][i] = rows[i].hi;
    block[2][i] = rows[i + 8].lo;
    block[3][i] = rows[i + 8].hi;
  }
  for (auto& quarter : block) transpose_8x8(quarter);
  for (int i = 0; i < 8; ++i) {
    rows[i] = {block[0][i], block[2][i]};
    rows[i + 8] = {block[1][i], block[3][i]};
  }
#endif
}

// ---- packing ------------------------------------------------------------------------------------------------------------
// T is uint16_t (bf16) or float. Everything outside the valid range becomes +0. A head's rows are a line or two each and lie a whole
// token apart, which hardware prefetchers do not follow, so every packing asks for the rows it will need next.

constexpr int64_t kRowsAhead = 16;

template <typename T>
ORRERY_INLINE void prefetch_ahead(const T* x, int64_t stride, int64_t r, int64_t i) {
  if (i % (64 / static_cast<int64_t>(sizeof(T))) == 0) _mm_prefetch(reinterpret_cast<const char*>(x + (r + kRowsAhead) * stride + i), _MM_HINT_T0);
}

/// Stores what was loaded from a T: nothing to round.
ORRERY_INLINE void store_same(uint16_t* p, F32x16 a) { store_u16(p, shift_right<16>(as_i32(a))); }
ORRERY_INLINE void store_same(float* p, F32x16 a) { store(p, a); }

/// out[r][i] = x[r][i], rows `padded_width` apart: the left operand of a product.
template <typename T>
ORRERY_INLINE void copy_rows(const T* x, int64_t stride, int64_t rows, int64_t width, int64_t padded_rows, int64_t padded_width,
                             T* out) {
  for (int64_t r = 0; r < padded_rows; ++r)
    for (int64_t i = 0; i < padded_width; i += kLanes) {
      const int64_t valid = r < rows ? (width - i < kLanes ? width - i : kLanes) : 0;
      prefetch_ahead(x, stride, r, i);
      store_same(out + r * padded_width + i, valid > 0 ? load_n(x + r * stride + i, valid) : zero());
    }
}

/// out[i][r] = x[r][i], rows of out `out_stride` apart: the left operand, transposed.
template <typename T>
ORRERY_INLINE void transpose_rows(const T* x, int64_t stride, int64_t rows, int64_t width, int64_t padded_rows,
                                  int64_t padded_width, T* out, int64_t out_stride) {
  for (int64_t r = 0; r < padded_rows; r += 16)
    for (int64_t i = 0; i < padded_width; i += 16) {
      F32x16 block[16];
      const int64_t valid = width - i < kLanes ? width - i : kLanes;
      for (int64_t j = 0; j < 16; ++j) {
        prefetch_ahead(x, stride, r + j, i);
        block[j] = r + j < rows && valid > 0 ? load_n(x + (r + j) * stride + i, valid) : zero();
      }
      transpose_16x16(block);
      for (int64_t j = 0; j < 16; ++j) store_same(out + (i + j) * out_stride + r, block[j]);
    }
}

/// B[k][column] = x[column][k] in panels of 16 columns (block_product.h). bf16 pairs are 32-bit words already; width is even.
template <typename T>
ORRERY_INLINE void pack_transposed(const T* x, int64_t stride, int64_t rows, int64_t width, int64_t padded_rows,
                                   int64_t padded_width, T* out) {
  constexpr int64_t kPerWord = 4 / static_cast<int64_t>(sizeof(T));
  for (int64_t r = 0; r < padded_rows; r += 16)
    for (int64_t word = 0; word < padded_width / kPerWord; word += 16) {
      F32x16 block[16];
      const int64_t valid = width / kPerWord - word < kLanes ? width / kPerWord - word : kLanes;
      for (int64_t j = 0; j < 16; ++j) {
        prefetch_ahead(x, stride, r + j, word * kPerWord);
        block[j] =
            r + j < rows && valid > 0 ? load_n(reinterpret_cast<const float*>(x + (r + j) * stride) + word, valid) : zero();
      }
      transpose_16x16(block);
      float* panel = reinterpret_cast<float*>(out + r * padded_width) + word * 16;
      for (int64_t j = 0; j < 16; ++j) store(panel + j * 16, block[j]);
    }
}

/// The word of a panel that holds k = 2p and 2p + 1 of 16 columns.
ORRERY_INLINE I32x16 pair_words(I32x16 even_bits, I32x16 odd_bits) { return even_bits | shift_left<16>(odd_bits); }

/// B[k][column] = x[k][column] in panels of 16 columns, `padded_rows` of k each.
template <typename T>
ORRERY_INLINE void pack_rows(const T* x, int64_t stride, int64_t rows, int64_t width, int64_t padded_rows, int64_t padded_width,
                             T* out) {
  for (int64_t i = 0; i < padded_width; i += 16) {
    T* panel = out + i * padded_rows;
    const int64_t valid = width - i < kLanes ? width - i : kLanes;
    for (int64_t r = 0; r < padded_rows; r += 2) {
      const F32x16 even = r < rows && valid > 0 ? load_n(x + r * stride + i, valid) : zero();
      const F32x16 odd = r + 1 < rows && valid > 0 ? load_n(x + (r + 1) * stride + i, valid) : zero();
      if constexpr (sizeof(T) == 2) {
        store(reinterpret_cast<int32_t*>(panel + r * 16),
              pair_words(shift_right<16>(as_i32(even)), shift_right<16>(as_i32(odd))));
      } else {
        store(panel + r * 16, even);
        store(panel + (r + 1) * 16, odd);
      }
    }
  }
}

}  // namespace orrery::ORRERY_SIMD
