// quantized_kernels_amx.cpp over tiles in software (amx_in_software.h); quantized_linear_test.cpp compares.
#include "backend/cpu/amx_in_software.h"
#include "backend/cpu/quantized_blocks.h"

namespace orrery::amx_in_software {

static void multiply_i8(int sum, int a, int b) {
  require_product(sum, a, b);
  for (int row = 0; row < tiles[sum].rows; ++row)
    for (int column = 0; column < tiles[sum].column_bytes / 4; ++column) {
      int32_t total;
      std::memcpy(&total, tiles[sum].data[row] + 4 * column, 4);
      for (int k = 0; k < tiles[a].column_bytes; ++k)
        total += static_cast<int8_t>(tiles[a].data[row][k]) * static_cast<int8_t>(tiles[b].data[k / 4][4 * column + k % 4]);
      std::memcpy(tiles[sum].data[row] + 4 * column, &total, 4);
    }
}

}  // namespace orrery::amx_in_software

#define _tile_dpbssd(sum, a, b) amx_in_software::multiply_i8(sum, a, b)
#define quantized_kernels_amx_native quantized_kernels_amx_in_software
#include "backend/cpu/quantized_kernels_amx.cpp"
