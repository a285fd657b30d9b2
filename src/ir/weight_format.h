// How a weight that stays quantized at run time lies in memory: the packed panels that kLinearPacked and kEmbeddingPacked read.
// Not the bytes of a file: backend/cpu/quantized_pack.h makes the one from the other.
//
// Panels   16 columns (rows of the weight) each, n padded to 16 with zero scales. A panel is its codes, block of 32 numbers of K after
//          block, then its scales; both areas start on 64 bytes.
// Codes    Unsigned, value = code - offset. A register is 64 bytes: column c, K 4g .. 4g + 3, g = 0..7 the group inside a block.
//          4 bit   registers 0..3: low nibbles group i, high nibbles group i + 4
//          5 bit   the same and one register of fifth bits: bit g of a byte belongs to group g
//          6 bit   the same and two registers of upper bits: groups 0..3 and 4..7, two bits each
//          8 bit   registers 0..7: group i
// Scales   kBlock: per block f16 d[16] (, f16 m[16]); value = (code - offset) d (+ m).
//          kSuper: per 8 blocks f16 d[16], f16 dmin[16], then per block u8 scale[16], u8 min[16]; value = code (d scale) - dmin min.
//          kHalf:  per 8 blocks f16 d[16], f16 dmin[16], then per block i8 scale[2][16], u8 min[2][16] (without minimum: neither dmin nor
//          min), one for each 16 numbers of K.
#pragma once

#include <cstdint>
#include <string_view>

namespace orrery {

enum class WeightFormat : uint8_t { kDense, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K };

enum class ScaleKind : uint8_t { kBlock, kSuper, kHalf };

struct WeightFormatInfo {
  std::string_view name;
  int bits = 0;       // of a code
  int offset = 0;     // value 0 of a signed format
  bool has_min = false;
  ScaleKind scales = ScaleKind::kBlock;
};

constexpr WeightFormatInfo weight_format_info(WeightFormat format) {
  switch (format) {
    case WeightFormat::kDense: return {"dense"};
    case WeightFormat::kQ4_0: return {"Q4_0", 4, 8, false, ScaleKind::kBlock};
    case WeightFormat::kQ4_1: return {"Q4_1", 4, 0, true, ScaleKind::kBlock};
    case WeightFormat::kQ5_0: return {"Q5_0", 5, 16, false, ScaleKind::kBlock};
    case WeightFormat::kQ5_1: return {"Q5_1", 5, 0, true, ScaleKind::kBlock};
    case WeightFormat::kQ8_0: return {"Q8_0", 8, 128, false, ScaleKind::kBlock};
    case WeightFormat::kQ2_K: return {"Q2_K", 4, 0, true, ScaleKind::kHalf};
    case WeightFormat::kQ3_K: return {"Q3_K", 4, 4, false, ScaleKind::kHalf};
    case WeightFormat::kQ4_K: return {"Q4_K", 4, 0, true, ScaleKind::kSuper};
    case WeightFormat::kQ5_K: return {"Q5_K", 5, 0, true, ScaleKind::kSuper};
    case WeightFormat::kQ6_K: return {"Q6_K", 6, 32, false, ScaleKind::kHalf};
  }
  return {};
}

constexpr int64_t kQuantBlock = 32;        // numbers of K that share an activation scale
constexpr int64_t kQuantSuperBlocks = 8;   // blocks of 256 numbers
constexpr int64_t kQuantPanelColumns = 16;

constexpr int64_t quantized_code_bytes(WeightFormat format, int64_t k) { return k / kQuantBlock * 64 * weight_format_info(format).bits; }
/// Bytes of scales of one block, and of what 8 blocks share.
constexpr int64_t quantized_block_scale_bytes(WeightFormat format) {
  const WeightFormatInfo info = weight_format_info(format);
  const int64_t pair = info.has_min ? 2 : 1;
  return info.scales == ScaleKind::kSuper ? 16 * pair : 32 * pair;
}
constexpr int64_t quantized_super_scale_bytes(WeightFormat format) {
  const WeightFormatInfo info = weight_format_info(format);
  return info.scales == ScaleKind::kBlock ? 0 : info.has_min ? 64 : 32;
}
constexpr int64_t quantized_panel_bytes(WeightFormat format, int64_t k) {
  const int64_t blocks = k / kQuantBlock;
  const int64_t scales = blocks * quantized_block_scale_bytes(format) + blocks / kQuantSuperBlocks * quantized_super_scale_bytes(format);
  return quantized_code_bytes(format, k) + (scales + 63) / 64 * 64;
}
/// Bytes of a weight [n, k] in panels; k is whole blocks (of 256 where scales are kSuper or kHalf).
constexpr int64_t quantized_weight_bytes(WeightFormat format, int64_t n, int64_t k) {
  return (n + kQuantPanelColumns - 1) / kQuantPanelColumns * quantized_panel_bytes(format, k);
}

}  // namespace orrery
