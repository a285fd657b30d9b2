// The shapes of AMX's tiles. Included only by files compiled for AMX.
#pragma once

#include <cstdint>

#include "backend/cpu/simd.h"

namespace orrery {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t column_bytes[16] = {};
  uint8_t rows[16] = {};

  void shape(int tile, int64_t num_rows, int64_t bytes_a_row) {
    rows[tile] = static_cast<uint8_t>(num_rows);
    column_bytes[tile] = static_cast<uint16_t>(bytes_a_row);
  }
  void load() const {
    // GCC's intrinsics name only the first bytes as read, or none: without the barrier the stores before them may be dropped.
    __asm__ volatile("" : : "r"(this) : "memory");
    _tile_loadconfig(this);
  }
};

}  // namespace
}  // namespace orrery
