// From a file's quantized blocks to the panels of ir/weight_format.h, and single rows of panels back to f32. The products over panels
// are in quantized_linear.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "backend/block_formats.h"
#include "ir/weight_format.h"

namespace orrery {

/// The run-time format of a file's block type; nullopt: the type is decoded to the compute dtype instead.
std::optional<WeightFormat> weight_format_of(BlockType type);
/// Whether rows of k numbers are whole blocks of the format (and of 8 blocks, where they share scales).
bool weight_format_fits(WeightFormat format, int64_t k);

/// panel (quantized_panel_bytes, 64-byte aligned) = `num_rows` <= 16 rows of the file's blocks, row_bytes apart.
/// Exact: every code and scale is kept.
void pack_quantized_panel(WeightFormat format, const std::byte* rows, int64_t row_bytes, int64_t num_rows, int64_t k, std::byte* panel);

/// out[k] = the row (column of the panels) as f32, the bits of decode_blocks().
void unpack_quantized_row(WeightFormat format, const std::byte* panels, int64_t row, int64_t k, float* out);

}  // namespace orrery
