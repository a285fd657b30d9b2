// The inner product over quantized panels: one arithmetic for every number of rows (NUMERICS rule 13), one table per instruction set.
//
// Arithmetic   x's row is cut in blocks of 32: scale = amax / 127, q = x (127 / amax) to nearest even. For a column, in K order, for each
//              block (each half of 16, where the format has a scale for each):
//                s   = sum of (code - offset) q, exact in i32
//                acc = fma(f32(s), d * scale, acc)
//                acc = fma(m, -(scale * f32(sum of q)), acc)      formats with a minimum; m is what is subtracted
//              with d and m the products of the stored scales, in f32. acc starts from +0. (A scale for 128 numbers would save 7 % of the time
//              and cost SmolLM2-135M 0.9 % of perplexity.)
#pragma once

#include <cstdint>

#include "backend/kernel.h"
#include "ir/weight_format.h"

namespace orrery {

/// Rows of x are multiplied tile by tile: two panels by six rows keep all of AVX-512's registers at work, and what a smaller number of rows
/// is cut into wastes at most one row. Rows of the next tile when `remaining` rows are left; the tile may have one row more than is left.
constexpr int64_t quantized_tile_rows(int64_t remaining) {
  if (remaining >= 9 || remaining == 5 || remaining == 6) return 6;
  return remaining >= 3 ? 4 : remaining;
}
constexpr int64_t kMaxTileRows = 6, kMaxPanels = 2;
/// One row waits for memory and has registers to spare: four panels are four streams, which the processor's prefetchers run ahead of each.
constexpr int64_t kPanelsOfOneRow = 4;
/// AMX takes tiles of so many rows, as long as there are more than six; up to nine of the rows are then beyond what is left.
constexpr int64_t kTallTileRows = 16;

/// A tile of quantized rows, block of 32 after block, the same part of each row side by side. A block of R rows:
///   i8 q[8][R][4]       group g of four numbers; in a tall tile i8 q[R][32]
///   f32 scale[R]
///   i32 minus_sum[R]    of q
///   i32 minus_half[R]   of the first sixteen q
///   f32 minus_min[R]    -(scale * f32(sum of q)): what a minimum is multiplied with
constexpr int64_t kQuantizedRowBytes = 48;  // of a row and block

/// y[r, 16 p + c] = row r of the tile . column c of panel p.
struct PanelProduct {
  WeightFormat format{};
  int64_t k = 0;
  const std::byte* panels = nullptr;  // one or two, with a tile of one row also four; one after the other
  int64_t num_panels = 0;
  const std::byte* tile = nullptr;
  int64_t tile_rows = 0, num_rows = 0;  // the first num_rows of the tile count
  void* y = nullptr;                    // bf16 (rounded) or f32
  int64_t ldy = 0;                      // elements from row to row
  bool bf16 = false;
  const std::byte* codes = nullptr;  // those of the panels, unpacked; null: as they stand
  // What will be read next, to come to L2 meanwhile: the processor's own prefetchers lose the thread where a panel's codes end.
  const std::byte* ahead = nullptr;
  int64_t ahead_bytes = 0;
};

/// So many rows, three tiles, share the work of unpacking.
constexpr int64_t kUnpackRows = 2 * kMaxTileRows + 1;
/// Of one panel: a byte a code, in the order of 8-bit codes (ir/weight_format.h).
constexpr int64_t quantized_unpacked_bytes(int64_t k) { return k * kQuantPanelColumns; }

struct QuantizedKernels {
  /// A row of k numbers of f32 or bf16 into place `row` of a tile of `tile_rows`.
  void (*quantize_row[2])(const void* x, int64_t k, std::byte* tile, int64_t tile_rows, int64_t row);  // by is-bf16
  void (*panel_product)(const PanelProduct& product);
  int64_t (*tile_rows)(int64_t remaining) = quantized_tile_rows;
  /// The codes of a product's panels as bytes: quantized_unpacked_bytes of each, 64-byte aligned.
  void (*unpack)(const PanelProduct& product, std::byte* codes) = nullptr;
  /// Whether, from kUnpackRows rows of x on, codes of fewer than 8 bits are unpacked once for all tiles.
  bool unpacks = false;
  // AMX: a thread's products stand between these. Null: nothing to do.
  void (*begin_thread)() = nullptr;
  void (*end_thread)() = nullptr;
};

/// AMX's where the processor has it and the context wants native arithmetic; the bits are the same everywhere.
const QuantizedKernels& quantized_kernels(const KernelContext& context);

}  // namespace orrery
