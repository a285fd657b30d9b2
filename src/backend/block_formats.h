// The element and block types of GGUF tensors: their sizes, their decoding to f32, and the encoding of Q8_0. One block holds a fixed
// number of consecutive elements of a row. The byte layouts stand beside each decoder in block_formats.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace orrery {

/// The numbers are GGUF's.
enum class BlockType : uint32_t {
  kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ2_K = 10, kQ3_K = 11, kQ4_K = 12, kQ5_K = 13,
  kQ6_K = 14, kIQ2_XXS = 16, kIQ2_XS = 17, kIQ3_XXS = 18, kIQ1_S = 19, kIQ4_NL = 20, kIQ3_S = 21, kIQ2_S = 22, kIQ4_XS = 23,
  kI8 = 24, kI16 = 25, kI32 = 26, kI64 = 27, kF64 = 28, kIQ1_M = 29, kBF16 = 30, kTQ1_0 = 34, kTQ2_0 = 35, kMXFP4 = 39, kNVFP4 = 40,
};

struct BlockTypeInfo {
  BlockType type;
  std::string_view name;
  int64_t block_elements;
  int64_t block_bytes;
  /// Decodes `num_blocks` blocks; null for the types that Orrery knows by size only.
  void (*decode)(const std::byte* blocks, int64_t num_blocks, float* out);
};

/// Null for numbers that are unknown, were removed from GGUF, or never stand in a file (Q8_1, Q8_K).
const BlockTypeInfo* find_block_type(uint32_t type);
const BlockTypeInfo& block_type_info(BlockType type);
inline std::string_view block_type_name(BlockType type) { return block_type_info(type).name; }

/// Every known type, for tests and messages.
std::span<const BlockTypeInfo> all_block_types();

/// Bytes of `num_elements` elements, which must be whole blocks.
int64_t block_bytes(BlockType type, int64_t num_elements);

/// Decodes whole blocks to f32 with the operations, in the order, of ggml's reference, so the bits are equal to its.
/// Shapes  blocks: block_bytes(type, num_elements) bytes, any alignment; out: num_elements.
/// Errors  kUnsupported: a type known by size only.
void decode_blocks(BlockType type, const std::byte* blocks, int64_t num_elements, float* out);

/// Q8_0: per 32 elements a half scale amax / 127 and 32 signed bytes round(x / scale), half away from zero, as ggml's reference.
void encode_q8_0(const float* values, int64_t num_elements, std::byte* blocks);

}  // namespace orrery
