// AMX's tiles as memory, so that kernels are tested on processors without AMX too. A file that includes this and then a kernel's source
// gets that kernel over tiles in software; what a product of tiles does it defines by itself (_tile_dp...). No test library here: such files
// are compiled for AVX-512.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "backend/cpu/simd.h"

namespace orrery::amx_in_software {
namespace {

struct Tile {
  int rows = 0, column_bytes = 0;
  alignas(64) std::byte data[16][64];
};
thread_local Tile tiles[8];

// As the processor does: another shape than the instruction wants is an error.
inline void require(bool holds) {
  if (!holds) std::abort();
}

inline void load_config(const void* config) {
  const auto* bytes = static_cast<const uint8_t*>(config);
  require(bytes[0] == 1);
  for (int tile = 0; tile < 8; ++tile) {
    uint16_t column_bytes;
    std::memcpy(&column_bytes, bytes + 16 + 2 * tile, 2);
    tiles[tile].column_bytes = column_bytes;
    tiles[tile].rows = bytes[48 + tile];
    require(column_bytes <= 64 && tiles[tile].rows <= 16);
    std::memset(tiles[tile].data, 0, sizeof tiles[tile].data);
  }
}
/// As releasing does: no tile may be used before the next configuration.
inline void release() {
  for (Tile& tile : tiles) tile.rows = tile.column_bytes = 0;
}
inline void load(int tile, const void* base, int64_t stride) {
  require(tiles[tile].rows > 0);
  std::memset(tiles[tile].data, 0, sizeof tiles[tile].data);
  for (int row = 0; row < tiles[tile].rows; ++row)
    std::memcpy(tiles[tile].data[row], static_cast<const std::byte*>(base) + row * stride, static_cast<size_t>(tiles[tile].column_bytes));
}
inline void store(int tile, void* base, int64_t stride) {
  require(tiles[tile].rows > 0);
  for (int row = 0; row < tiles[tile].rows; ++row)
    std::memcpy(static_cast<std::byte*>(base) + row * stride, tiles[tile].data[row], static_cast<size_t>(tiles[tile].column_bytes));
}
inline void zero(int tile) {
  require(tiles[tile].rows > 0);
  std::memset(tiles[tile].data, 0, sizeof tiles[tile].data);
}
/// Four bytes, or two halves, of a row's K are one column of `a` and one row of `b`.
inline void require_product(int sum, int a, int b) {
  require(tiles[sum].rows == tiles[a].rows && tiles[sum].column_bytes == tiles[b].column_bytes && tiles[a].column_bytes == 4 * tiles[b].rows);
}

}  // namespace
}  // namespace orrery::amx_in_software

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig(config) amx_in_software::load_config(config)
#define _tile_release() amx_in_software::release()
#define _tile_loadd(tile, base, stride) amx_in_software::load(tile, base, stride)
#define _tile_stored(tile, base, stride) amx_in_software::store(tile, base, stride)
#define _tile_zero(tile) amx_in_software::zero(tile)
