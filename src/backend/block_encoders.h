// From f32 to GGUF's quantized blocks: for each block the scale (and minimum) that makes the weighted squared error small, found by trying
// several and solving each in closed form. The layouts are those of block_formats.cpp. What type a tensor gets is decided in compress/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/block_formats.h"

namespace orrery {

/// The types that encode_blocks makes: F32, BF16, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K.
bool can_encode(BlockType type);

/// Encodes whole blocks. A block's bytes depend on its own elements alone.
/// Shapes  values: num_elements; blocks: block_bytes(type, num_elements).
/// Errors  of an element e: every type but Q8_0 weighs its square by rms(block) + |e|, so that large weights, which products feel most, are
///         kept best. Not finite: read as 0 by the types below 8 bits; the caller is the one who can name the tensor.
void encode_blocks(BlockType type, const float* values, int64_t num_elements, std::byte* blocks);

}  // namespace orrery
