// amx32 by AMX tiles: 2 x 2 accumulators of 16 x 16, so that each loaded tile is used twice. K runs in one order, one tile of
// 32 at a time; a row count that is no multiple of 16 is done with a configuration of fewer rows, so that nothing is read or
// written beyond the operands.
#include <immintrin.h>

#include "backend/cpu/tile_gemm_isa.h"

namespace orrery {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t column_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Accumulators 0..3, A tiles 4 (upper rows) and 5 (lower rows), B tiles 6 and 7.
void configure(int upper_rows, int lower_rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.column_bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  config.rows[0] = config.rows[1] = config.rows[4] = static_cast<uint8_t>(upper_rows);
  config.rows[2] = config.rows[3] = config.rows[5] = static_cast<uint8_t>(lower_rows);
  // GCC's intrinsics name only the first bytes as read, or none: without the barrier the stores before them may be dropped.
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

constexpr int64_t kPanel = 16;

// 17 to 32 rows, two panels.
void block_2x2(int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b0, const uint16_t* b1, float* c, int64_t ldc,
               bool accumulate) {
  if (accumulate) {
    _tile_loadd(0, c, ldc * 4);
    _tile_loadd(1, c + kPanel, ldc * 4);
    _tile_loadd(2, c + 16 * ldc, ldc * 4);
    _tile_loadd(3, c + 16 * ldc + kPanel, ldc * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < k; i += 32) {
    _tile_loadd(4, a + i, lda * 2);
    _tile_loadd(6, b0 + i * kPanel, 64);
    _tile_loadd(7, b1 + i * kPanel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + 16 * lda + i, lda * 2);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, ldc * 4);
  _tile_stored(1, c + kPanel, ldc * 4);
  _tile_stored(2, c + 16 * ldc, ldc * 4);
  _tile_stored(3, c + 16 * ldc + kPanel, ldc * 4);
}

void block_2x1(int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b, float* c, int64_t ldc, bool accumulate) {
  if (accumulate) {
    _tile_loadd(0, c, ldc * 4);
    _tile_loadd(2, c + 16 * ldc, ldc * 4);
  } else {
    _tile_zero(0);
    _tile_zero(2);
  }
  for (int64_t i = 0; i < k; i += 32) {
    _tile_loadd(4, a + i, lda * 2);
    _tile_loadd(5, a + 16 * lda + i, lda * 2);
    _tile_loadd(6, b + i * kPanel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
  }
  _tile_stored(0, c, ldc * 4);
  _tile_stored(2, c + 16 * ldc, ldc * 4);
}

// At most 16 rows, two panels or one.
void block_1x2(int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b0, const uint16_t* b1, float* c, int64_t ldc,
               bool accumulate) {
  if (accumulate) {
    _tile_loadd(0, c, ldc * 4);
    _tile_loadd(1, c + kPanel, ldc * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  for (int64_t i = 0; i < k; i += 32) {
    _tile_loadd(4, a + i, lda * 2);
    _tile_loadd(6, b0 + i * kPanel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b1 + i * kPanel, 64);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, c, ldc * 4);
  _tile_stored(1, c + kPanel, ldc * 4);
}

void block_1x1(int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b, float* c, int64_t ldc, bool accumulate) {
  if (accumulate)
    _tile_loadd(0, c, ldc * 4);
  else
    _tile_zero(0);
  for (int64_t i = 0; i < k; i += 32) {
    _tile_loadd(4, a + i, lda * 2);
    _tile_loadd(6, b + i * kPanel, 64);
    _tile_dpbf16ps(0, 4, 6);
  }
  _tile_stored(0, c, ldc * 4);
}

// All panels of at most 32 rows under the present configuration.
void row_band(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b, int64_t panel_stride,
              float* c, int64_t ldc, bool accumulate) {
  int64_t j = 0;
  for (; j + 32 <= n; j += 32) {
    const uint16_t* b0 = b + j / kPanel * panel_stride;
    if (m > 16)
      block_2x2(k, a, lda, b0, b0 + panel_stride, c + j, ldc, accumulate);
    else
      block_1x2(k, a, lda, b0, b0 + panel_stride, c + j, ldc, accumulate);
  }
  if (j == n) return;
  const uint16_t* b0 = b + j / kPanel * panel_stride;
  if (m > 16)
    block_2x1(k, a, lda, b0, c + j, ldc, accumulate);
  else
    block_1x1(k, a, lda, b0, c + j, ldc, accumulate);
}

}  // namespace

void amx_begin_thread() { configure(16, 16); }
void amx_end_thread() { _tile_release(); }

void tile_gemm_amx_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                          int64_t panel_stride, float* c, int64_t ldc, bool accumulate) {
  __asm__ volatile("" : : : "memory");  // operands written just before must be in memory: see configure()
  int64_t i = 0;
  for (; i + 32 <= m; i += 32) row_band(32, n, k, a + i * lda, lda, b_panels, panel_stride, c + i * ldc, ldc, accumulate);
  const int64_t rest = m - i;
  if (rest == 0) return;
  const bool odd_rows = rest % 16 != 0;
  if (odd_rows) configure(rest > 16 ? 16 : static_cast<int>(rest), rest > 16 ? static_cast<int>(rest - 16) : 16);
  row_band(rest, n, k, a + i * lda, lda, b_panels, panel_stride, c + i * ldc, ldc, accumulate);
  if (odd_rows) configure(16, 16);
}

}  // namespace orrery
