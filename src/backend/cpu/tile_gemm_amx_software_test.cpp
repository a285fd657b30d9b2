// tile_gemm_amx.cpp over tiles in software, so that its blocking, edges and finishing are tested on processors without AMX too; the
// instruction itself is held to amx32's emulation on those that have it. tile_gemm_test.cpp compares. No test library here: this file is
// compiled for AVX-512.
#include <cstdlib>
#include <cstring>

#include "backend/cpu/gemm_finish.h"
#include "backend/cpu/tile_gemm_isa.h"

namespace orrery::amx_in_software {

struct Tile {
  int rows = 0, column_bytes = 0;
  alignas(64) std::byte data[16][64];
};
thread_local Tile tiles[8];

// As the processor does: another shape than the instruction wants is an error.
void require(bool holds) {
  if (!holds) std::abort();
}

void load_config(const void* config) {
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
void load(int tile, const void* base, int64_t stride) {
  require(tiles[tile].rows > 0);
  for (int row = 0; row < tiles[tile].rows; ++row)
    std::memcpy(tiles[tile].data[row], static_cast<const std::byte*>(base) + row * stride, static_cast<size_t>(tiles[tile].column_bytes));
}
void store(int tile, void* base, int64_t stride) {
  require(tiles[tile].rows > 0);
  for (int row = 0; row < tiles[tile].rows; ++row)
    std::memcpy(static_cast<std::byte*>(base) + row * stride, tiles[tile].data[row], static_cast<size_t>(tiles[tile].column_bytes));
}
void zero(int tile) { std::memset(tiles[tile].data, 0, sizeof tiles[tile].data); }
void multiply(int sum, int a, int b) {
  require(tiles[sum].rows == tiles[a].rows && tiles[sum].column_bytes == 64 && tiles[a].column_bytes == 64 && tiles[b].column_bytes == 64 && tiles[b].rows == 16);
  tile_gemm({nullptr, VectorIsa::kAvx512, Arithmetic::kAmx32, false})
      .bf16(tiles[sum].rows, 16, 32, reinterpret_cast<const uint16_t*>(tiles[a].data), 32, reinterpret_cast<const uint16_t*>(tiles[b].data), 16 * 32,
            reinterpret_cast<float*>(tiles[sum].data), 16, /*accumulate=*/true);
}

}  // namespace orrery::amx_in_software

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) amx_in_software::load_config(config)
#define _tile_release() amx_in_software::zero(0)
#define _tile_loadd(tile, base, stride) amx_in_software::load(tile, base, stride)
#define _tile_stored(tile, base, stride) amx_in_software::store(tile, base, stride)
#define _tile_zero(tile) amx_in_software::zero(tile)
#define _tile_dpbf16ps(sum, a, b) amx_in_software::multiply(sum, a, b)
#define amx_begin_thread amx_begin_thread_in_software
#define amx_end_thread amx_end_thread_in_software
#define tile_gemm_amx_native tile_gemm_amx_in_software
#define tile_gemm_ahead_amx_native tile_gemm_ahead_amx_in_software
#define tile_gemm_finish_amx_native tile_gemm_finish_amx_in_software
#include "backend/cpu/tile_gemm_amx.cpp"

namespace orrery {

TileGemm amx_tile_gemm_in_software() {
  TileGemm table = tile_gemm({nullptr, VectorIsa::kAvx512, Arithmetic::kAmx32, false});
  table.bf16 = tile_gemm_amx_in_software;
  table.ahead_bf16 = tile_gemm_ahead_amx_in_software;
  table.finish_bf16 = tile_gemm_finish_amx_in_software;
  table.begin_thread = amx_begin_thread_in_software;
  table.end_thread = amx_end_thread_in_software;
  return table;
}

}  // namespace orrery
