#include "backend/cpu/quantized_pack.h"

#include <cstring>

#include "base/bfloat16.h"
#include "base/error.h"

namespace orrery {
namespace {

using Bytes = const uint8_t*;

/// One block of a file taken apart: codes in order of K, scales as they are stored.
struct Parts {
  uint8_t codes[256];
  uint16_t d = 0, m = 0;         // halves
  uint8_t scale[16], min[16];    // K types: 8 or 16 of them
};

uint16_t half_bits(Bytes at) { return static_cast<uint16_t>(at[0] | at[1] << 8); }

void take_nibbles(Bytes qs, uint8_t* codes) {
  for (int j = 0; j < 16; ++j) {
    codes[j] = qs[j] & 15;
    codes[j + 16] = qs[j] >> 4;
  }
}
void take_fifth_bits(Bytes qh, uint8_t* codes) {
  uint32_t high;
  std::memcpy(&high, qh, 4);
  for (int j = 0; j < 32; ++j) codes[j] = static_cast<uint8_t>(codes[j] | (high >> j & 1) << 4);
}
void take_six_bit_scales(Bytes s, Parts& parts) {
  for (int j = 0; j < 4; ++j) {
    parts.scale[j] = s[j] & 63;
    parts.min[j] = s[j + 4] & 63;
    parts.scale[j + 4] = static_cast<uint8_t>((s[j + 8] & 15) | (s[j] >> 6) << 4);
    parts.min[j + 4] = static_cast<uint8_t>((s[j + 8] >> 4) | (s[j + 4] >> 6) << 4);
  }
}
void take_k_nibbles(Bytes qs, uint8_t* codes) {
  for (int i = 0; i < 256; ++i) {
    const uint8_t byte = qs[32 * (i / 64) + i % 32];
    codes[i] = i / 32 % 2 == 0 ? byte & 15 : byte >> 4;
  }
}

/// Byte layouts: block_formats.cpp, beside each decoder.
void take_apart(WeightFormat format, Bytes b, Parts& parts) {
  switch (format) {
    case WeightFormat::kQ4_0:
      parts.d = half_bits(b);
      take_nibbles(b + 2, parts.codes);
      return;
    case WeightFormat::kQ4_1:
      parts.d = half_bits(b);
      parts.m = half_bits(b + 2);
      take_nibbles(b + 4, parts.codes);
      return;
    case WeightFormat::kQ5_0:
      parts.d = half_bits(b);
      take_nibbles(b + 6, parts.codes);
      take_fifth_bits(b + 2, parts.codes);
      return;
    case WeightFormat::kQ5_1:
      parts.d = half_bits(b);
      parts.m = half_bits(b + 2);
      take_nibbles(b + 8, parts.codes);
      take_fifth_bits(b + 4, parts.codes);
      return;
    case WeightFormat::kQ8_0:
      parts.d = half_bits(b);
      for (int j = 0; j < 32; ++j) parts.codes[j] = b[2 + j] ^ 0x80;
      return;
    case WeightFormat::kQ2_K:
      parts.d = half_bits(b + 80);
      parts.m = half_bits(b + 82);
      for (int j = 0; j < 16; ++j) {
        parts.scale[j] = b[j] & 15;
        parts.min[j] = b[j] >> 4;
      }
      for (int i = 0; i < 256; ++i) parts.codes[i] = b[16 + 32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3;
      return;
    case WeightFormat::kQ3_K:
      parts.d = half_bits(b + 108);
      for (int s = 0; s < 16; ++s) {
        const int low = s < 8 ? b[96 + s] & 15 : b[96 + s - 8] >> 4;
        parts.scale[s] = static_cast<uint8_t>((low | (b[104 + s % 4] >> (2 * (s / 4)) & 3) << 4) - 32);
      }
      for (int i = 0; i < 256; ++i) {
        const int low = b[32 + 32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3;
        parts.codes[i] = static_cast<uint8_t>(low + ((b[i % 32] >> (i / 32) & 1) != 0 ? 4 : 0));
      }
      return;
    case WeightFormat::kQ4_K:
      parts.d = half_bits(b);
      parts.m = half_bits(b + 2);
      take_six_bit_scales(b + 4, parts);
      take_k_nibbles(b + 16, parts.codes);
      return;
    case WeightFormat::kQ5_K:
      parts.d = half_bits(b);
      parts.m = half_bits(b + 2);
      take_six_bit_scales(b + 4, parts);
      take_k_nibbles(b + 48, parts.codes);
      for (int i = 0; i < 256; ++i) parts.codes[i] = static_cast<uint8_t>(parts.codes[i] | (b[16 + i % 32] >> (i / 32) & 1) << 4);
      return;
    case WeightFormat::kQ6_K:
      parts.d = half_bits(b + 208);
      std::memcpy(parts.scale, b + 192, 16);
      for (int i = 0; i < 256; ++i) {
        const int half = i / 128, quarter = i / 32 % 4, l = i % 32;
        const uint8_t low_byte = b[64 * half + 32 * (quarter % 2) + l];
        const int low = quarter < 2 ? low_byte & 15 : low_byte >> 4;
        parts.codes[i] = static_cast<uint8_t>(low | (b[128 + 32 * half + l] >> (2 * quarter) & 3) << 4);
      }
      return;
    case WeightFormat::kDense: break;
  }
  ORRERY_CHECK(false, "weight format {}", static_cast<int>(format));
}

BlockType block_type_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kDense: break;
    case WeightFormat::kQ4_0: return BlockType::kQ4_0;
    case WeightFormat::kQ4_1: return BlockType::kQ4_1;
    case WeightFormat::kQ5_0: return BlockType::kQ5_0;
    case WeightFormat::kQ5_1: return BlockType::kQ5_1;
    case WeightFormat::kQ8_0: return BlockType::kQ8_0;
    case WeightFormat::kQ2_K: return BlockType::kQ2_K;
    case WeightFormat::kQ3_K: return BlockType::kQ3_K;
    case WeightFormat::kQ4_K: return BlockType::kQ4_K;
    case WeightFormat::kQ5_K: return BlockType::kQ5_K;
    case WeightFormat::kQ6_K: return BlockType::kQ6_K;
  }
  ORRERY_CHECK(false, "weight format {}", static_cast<int>(format));
  return BlockType::kF32;
}

/// Codes of 32 numbers into a block's registers, which were zero.
void put_codes(int bits, const uint8_t* codes, int64_t column, uint8_t* block) {
  for (int k = 0; k < 32; ++k) {
    const int group = k / 4;
    const int64_t byte = column * 4 + k % 4;
    const uint8_t code = codes[k];
    if (bits == 8) {
      block[64 * group + byte] = code;
      continue;
    }
    block[64 * (group % 4) + byte] |= static_cast<uint8_t>((code & 15) << (4 * (group / 4)));
    if (bits == 5) block[256 + byte] |= static_cast<uint8_t>((code >> 4) << group);
    if (bits == 6) block[256 + 64 * (group / 4) + byte] |= static_cast<uint8_t>((code >> 4) << (2 * (group % 4)));
  }
}

int get_code(int bits, const uint8_t* block, int64_t column, int k) {
  const int group = k / 4;
  const int64_t byte = column * 4 + k % 4;
  if (bits == 8) return block[64 * group + byte];
  const int low = block[64 * (group % 4) + byte] >> (4 * (group / 4)) & 15;
  if (bits == 5) return low | (block[256 + byte] >> group & 1) << 4;
  if (bits == 6) return low | (block[256 + 64 * (group / 4) + byte] >> (2 * (group % 4)) & 3) << 4;
  return low;
}

void put_half(uint8_t* at, int64_t column, uint16_t bits) { std::memcpy(at + 2 * column, &bits, 2); }
float get_half(const uint8_t* at, int64_t column) { return f16_to_f32(half_bits(at + 2 * column)); }

}  // namespace

std::optional<WeightFormat> weight_format_of(BlockType type) {
  switch (type) {
    case BlockType::kQ4_0: return WeightFormat::kQ4_0;
    case BlockType::kQ4_1: return WeightFormat::kQ4_1;
    case BlockType::kQ5_0: return WeightFormat::kQ5_0;
    case BlockType::kQ5_1: return WeightFormat::kQ5_1;
    case BlockType::kQ8_0: return WeightFormat::kQ8_0;
    case BlockType::kQ2_K: return WeightFormat::kQ2_K;
    case BlockType::kQ3_K: return WeightFormat::kQ3_K;
    case BlockType::kQ4_K: return WeightFormat::kQ4_K;
    case BlockType::kQ5_K: return WeightFormat::kQ5_K;
    case BlockType::kQ6_K: return WeightFormat::kQ6_K;
    default: return std::nullopt;
  }
}

bool weight_format_fits(WeightFormat format, int64_t k) {
  return format == WeightFormat::kDense || k % block_type_info(block_type_of(format)).block_elements == 0;
}

void pack_quantized_panel(WeightFormat format, const std::byte* rows, int64_t row_bytes, int64_t num_rows, int64_t k, std::byte* panel) {
  const WeightFormatInfo info = weight_format_info(format);
  const BlockTypeInfo& file = block_type_info(block_type_of(format));
  const int64_t per_file_block = file.block_elements / kQuantBlock, code_bytes = 64 * info.bits;
  const int64_t scale_bytes = quantized_block_scale_bytes(format), super_bytes = quantized_super_scale_bytes(format);
  auto* codes = reinterpret_cast<uint8_t*>(panel);
  uint8_t* all_scales = codes + quantized_code_bytes(format, k);
  std::memset(panel, 0, static_cast<size_t>(quantized_panel_bytes(format, k)));
  Parts parts;
  for (int64_t column = 0; column < num_rows; ++column) {
    for (int64_t i = 0; i < k / file.block_elements; ++i) {
      take_apart(format, reinterpret_cast<Bytes>(rows + column * row_bytes + i * file.block_bytes), parts);
      uint8_t* scales = all_scales + i * (super_bytes + per_file_block * scale_bytes);
      if (info.scales != ScaleKind::kBlock) {
        put_half(scales, column, parts.d);
        if (info.has_min) put_half(scales + 32, column, parts.m);
        scales += super_bytes;
      }
      for (int64_t j = 0; j < per_file_block; ++j, scales += scale_bytes) {
        put_codes(info.bits, parts.codes + 32 * j, column, codes + (i * per_file_block + j) * code_bytes);
        if (info.scales == ScaleKind::kBlock) {
          put_half(scales, column, parts.d);
          if (info.has_min) put_half(scales + 32, column, parts.m);
        } else if (info.scales == ScaleKind::kSuper) {
          scales[column] = parts.scale[j];
          scales[16 + column] = parts.min[j];
        } else {
          for (int half = 0; half < 2; ++half) {
            scales[16 * half + column] = parts.scale[2 * j + half];
            if (info.has_min) scales[32 + 16 * half + column] = parts.min[2 * j + half];
          }
        }
      }
    }
  }
}

void unpack_quantized_row(WeightFormat format, const std::byte* panels, int64_t row, int64_t k, float* out) {
  const WeightFormatInfo info = weight_format_info(format);
  const int64_t column = row % kQuantPanelColumns, code_bytes = 64 * info.bits;
  const int64_t scale_bytes = quantized_block_scale_bytes(format), super_bytes = quantized_super_scale_bytes(format);
  const auto* codes = reinterpret_cast<const uint8_t*>(panels + row / kQuantPanelColumns * quantized_panel_bytes(format, k));
  const uint8_t* scales = codes + quantized_code_bytes(format, k);
  float d = 0, m = 0;
  for (int64_t block = 0; block < k / kQuantBlock; ++block, codes += code_bytes, scales += scale_bytes) {
    if (info.scales != ScaleKind::kBlock && block % kQuantSuperBlocks == 0) {
      d = get_half(scales, column);
      m = info.has_min ? get_half(scales + 32, column) : 0.0f;
      scales += super_bytes;
    }
    for (int half = 0; half < 2; ++half) {
      float scale = 0, min = 0;  // value = code * scale - min
      switch (info.scales) {
        case ScaleKind::kBlock:
          scale = get_half(scales, column);
          min = info.has_min ? -get_half(scales + 32, column) : 0.0f;
          break;
        case ScaleKind::kSuper:
          scale = d * static_cast<float>(scales[column]);
          min = m * static_cast<float>(scales[16 + column]);
          break;
        case ScaleKind::kHalf:
          scale = d * static_cast<float>(static_cast<int8_t>(scales[16 * half + column]));
          min = info.has_min ? m * static_cast<float>(scales[32 + 16 * half + column]) : 0.0f;
          break;
      }
      for (int j = 16 * half; j < 16 * half + 16; ++j) {
        const float value = static_cast<float>(get_code(info.bits, codes, column, j) - info.offset) * scale;
        out[block * kQuantBlock + j] = info.has_min ? value - min : value;
      }
    }
  }
}

}  // namespace orrery
