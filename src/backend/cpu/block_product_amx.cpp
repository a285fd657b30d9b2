// The block product with tdpbf16ps: 32 x 32 of C in four tiles, two tiles of A and two of B.
#include "backend/cpu/block_product.h"
#include "backend/cpu/block_product_table.h"
#include "backend/cpu/simd.h"

namespace orrery {

namespace {

// All eight tiles 16 rows of 64 bytes. A constant, because GCC's _tile_loadconfig does not tell the compiler that it reads more
// than eight bytes, so that stores to a local would be dropped.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);
constexpr TileConfig kTileConfig;

}  // namespace

void configure_tiles() { _tile_loadconfig(&kTileConfig); }

void release_tiles() { _tile_release(); }

void product_amx_native(const ProductArgs& p) {
  const uint16_t* a0 = static_cast<const uint16_t*>(p.a);
  const uint16_t* b0 = static_cast<const uint16_t*>(p.b);
  const int64_t a_stride = p.lda * 2, c_stride = p.ldc * 4;
  for (int64_t n = 0; n < p.n; n += 32) {
    const uint16_t* left = b0 + n / 16 * p.panel_stride;
    const uint16_t* right = left + p.panel_stride;
    const bool wide = n + 32 <= p.n;
    for (int64_t m = 0; m < p.m; m += 32) {
      const uint16_t* upper = a0 + m * p.lda;
      const uint16_t* lower = upper + 16 * p.lda;
      float* c = p.c + m * p.ldc + n;
      if (p.accumulate) {
        _tile_loadd(0, c, c_stride);
        _tile_loadd(2, c + 16 * p.ldc, c_stride);
      } else {
        _tile_zero(0);
        _tile_zero(2);
      }
      if (wide) {
        if (p.accumulate) {
          _tile_loadd(1, c + 16, c_stride);
          _tile_loadd(3, c + 16 * p.ldc + 16, c_stride);
        } else {
          _tile_zero(1);
          _tile_zero(3);
        }
        for (int64_t k = 0; k < p.k; k += 32) {
          _tile_loadd(4, upper + k, a_stride);
          _tile_loadd(6, left + k * 16, 64);
          _tile_loadd(7, right + k * 16, 64);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
          _tile_loadd(5, lower + k, a_stride);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(1, c + 16, c_stride);
        _tile_stored(3, c + 16 * p.ldc + 16, c_stride);
      } else {
        for (int64_t k = 0; k < p.k; k += 32) {
          _tile_loadd(4, upper + k, a_stride);
          _tile_loadd(6, left + k * 16, 64);
          _tile_loadd(5, lower + k, a_stride);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(2, 5, 6);
        }
      }
      _tile_stored(0, c, c_stride);
      _tile_stored(2, c + 16 * p.ldc, c_stride);
    }
  }
}

}  // namespace orrery
