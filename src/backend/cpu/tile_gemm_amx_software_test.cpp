// tile_gemm_amx.cpp over tiles in software, so that its blocking, edges and finishing are tested on processors without AMX too; the
// instruction itself is held to amx32's emulation on those that have it. tile_gemm_test.cpp compares. No test library here: this file is
// compiled for AVX-512.
#include "backend/cpu/amx_in_software.h"
#include "backend/cpu/gemm_finish.h"
#include "backend/cpu/tile_gemm_isa.h"

namespace orrery::amx_in_software {

static void multiply_bf16(int sum, int a, int b) {
  require_product(sum, a, b);
  require(tiles[sum].column_bytes == 64 && tiles[b].rows == 16);
  tile_gemm({nullptr, VectorIsa::kAvx512, Arithmetic::kAmx32, false})
      .bf16(tiles[sum].rows, 16, 32, reinterpret_cast<const uint16_t*>(tiles[a].data), 32, reinterpret_cast<const uint16_t*>(tiles[b].data), 16 * 32,
            reinterpret_cast<float*>(tiles[sum].data), 16, /*accumulate=*/true);
}

}  // namespace orrery::amx_in_software

#define _tile_dpbf16ps(sum, a, b) amx_in_software::multiply_bf16(sum, a, b)
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
