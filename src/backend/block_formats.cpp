#include "backend/block_formats.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/bfloat16.h"
#include "base/error.h"

namespace orrery {
namespace {

using Bytes = const uint8_t*;

float half_at(Bytes at) { return f16_to_f32(static_cast<uint16_t>(at[0] | (at[1] << 8))); }
uint32_t u32_at(Bytes at) {
  uint32_t value;
  std::memcpy(&value, at, 4);
  return value;
}

/// Turns a decoder of one block into one of many.
template <int64_t kElements, int64_t kBytes, void (*kDecodeOne)(Bytes, float*)>
void decode_many(const std::byte* blocks, int64_t num_blocks, float* out) {
  Bytes at = reinterpret_cast<Bytes>(blocks);
  for (int64_t i = 0; i < num_blocks; ++i) kDecodeOne(at + i * kBytes, out + i * kElements);
}

template <typename T>
void decode_number(Bytes at, float* out) {
  T value;
  std::memcpy(&value, at, sizeof value);
  *out = static_cast<float>(value);
}
void decode_f16(Bytes at, float* out) { *out = half_at(at); }
void decode_bf16(Bytes at, float* out) { *out = bf16_to_f32(static_cast<uint16_t>(at[0] | (at[1] << 8))); }

// half d; u8 qs[16]: low nibbles are elements 0..15, high nibbles 16..31; x = (q - 8) d.
void decode_q4_0(Bytes b, float* out) {
  const float d = half_at(b);
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>((b[2 + j] & 15) - 8) * d;
    out[j + 16] = static_cast<float>((b[2 + j] >> 4) - 8) * d;
  }
}

// half d, m; qs as Q4_0; x = q d + m.
void decode_q4_1(Bytes b, float* out) {
  const float d = half_at(b), m = half_at(b + 2);
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>(b[4 + j] & 15) * d + m;
    out[j + 16] = static_cast<float>(b[4 + j] >> 4) * d + m;
  }
}

// half d; u32 qh: bit j is the fifth bit of element j; qs as Q4_0; x = (q - 16) d.
void decode_q5_0(Bytes b, float* out) {
  const float d = half_at(b);
  const uint32_t high = u32_at(b + 2);
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>(static_cast<int>((b[6 + j] & 15) | ((high >> j & 1) << 4)) - 16) * d;
    out[j + 16] = static_cast<float>(static_cast<int>((b[6 + j] >> 4) | ((high >> (j + 16) & 1) << 4)) - 16) * d;
  }
}

// half d, m; u32 qh; qs; x = q d + m.
void decode_q5_1(Bytes b, float* out) {
  const float d = half_at(b), m = half_at(b + 2);
  const uint32_t high = u32_at(b + 4);
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>((b[8 + j] & 15) | ((high >> j & 1) << 4)) * d + m;
    out[j + 16] = static_cast<float>((b[8 + j] >> 4) | ((high >> (j + 16) & 1) << 4)) * d + m;
  }
}

// half d; i8 qs[32].
void decode_q8_0(Bytes b, float* out) {
  const float d = half_at(b);
  for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(static_cast<int8_t>(b[2 + j])) * d;
}

// u8 scales[16] (low nibble scale, high nibble minimum, per 16 elements); u8 qs[64], two bits an element; half d, dmin.
void decode_q2_k(Bytes b, float* out) {
  const float d = half_at(b + 80), dmin = half_at(b + 82);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, plane = i / 32 % 4, l = i % 32;
    const int q = b[16 + 32 * half + l] >> (2 * plane) & 3;
    const uint8_t scale = b[i / 16];
    out[i] = d * static_cast<float>(scale & 15) * static_cast<float>(q) - dmin * static_cast<float>(scale >> 4);
  }
}

// u8 hmask[32] (a clear bit subtracts 4); u8 qs[64]; 16 six-bit scales in 12 bytes, biased by 32; half d.
void decode_q3_k(Bytes b, float* out) {
  const float d = half_at(b + 108);
  Bytes packed = b + 96;
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, plane = i / 32 % 4, l = i % 32, s = i / 16;
    const int low = s < 8 ? packed[s] & 15 : packed[s - 8] >> 4;
    const int scale = (low | (packed[8 + s % 4] >> (2 * (s / 4)) & 3) << 4) - 32;
    const int q = (b[32 + 32 * half + l] >> (2 * plane) & 3) - ((b[l] >> (i / 32) & 1) != 0 ? 0 : 4);
    out[i] = d * static_cast<float>(scale) * static_cast<float>(q);
  }
}

/// The six-bit scale and minimum of sub-block j of Q4_K and Q5_K, packed in 12 bytes.
struct ScaleMin {
  float scale, min;
};
ScaleMin scale_min(Bytes s, int j) {
  if (j < 4) return {static_cast<float>(s[j] & 63), static_cast<float>(s[j + 4] & 63)};
  return {static_cast<float>((s[j + 4] & 15) | (s[j - 4] >> 6) << 4), static_cast<float>((s[j + 4] >> 4) | (s[j] >> 6) << 4)};
}

// half d, dmin; u8 scales[12]; u8 qs[128]: every 64 elements use 32 bytes, low nibbles first; x = d sc q - dmin m.
void decode_q4_k(Bytes b, float* out) {
  const float d = half_at(b), dmin = half_at(b + 2);
  for (int j = 0; j < 8; ++j) {
    const ScaleMin s = scale_min(b + 4, j);
    const float scale = d * s.scale, min = dmin * s.min;
    Bytes qs = b + 16 + 32 * (j / 2);
    for (int l = 0; l < 32; ++l) out[32 * j + l] = scale * static_cast<float>(j % 2 == 0 ? qs[l] & 15 : qs[l] >> 4) - min;
  }
}

// As Q4_K with u8 qh[32] before qs: the fifth bit of sub-block j, element l is bit j of qh[l].
void decode_q5_k(Bytes b, float* out) {
  const float d = half_at(b), dmin = half_at(b + 2);
  Bytes qh = b + 16;
  for (int j = 0; j < 8; ++j) {
    const ScaleMin s = scale_min(b + 4, j);
    const float scale = d * s.scale, min = dmin * s.min;
    Bytes qs = b + 48 + 32 * (j / 2);
    for (int l = 0; l < 32; ++l) {
      const int q = (j % 2 == 0 ? qs[l] & 15 : qs[l] >> 4) | (qh[l] >> j & 1) << 4;
      out[32 * j + l] = scale * static_cast<float>(q) - min;
    }
  }
}

// u8 ql[128]; u8 qh[64]; i8 scales[16] (per 16 elements); half d, last; q biased by 32.
void decode_q6_k(Bytes b, float* out) {
  const float d = half_at(b + 208);
  Bytes ql = b, qh = b + 128;
  const auto* scales = reinterpret_cast<const int8_t*>(b + 192);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, quarter = i / 32 % 4, l = i % 32;
    const uint8_t low_byte = ql[64 * half + 32 * (quarter % 2) + l];
    const int low = quarter < 2 ? low_byte & 15 : low_byte >> 4;
    const int q = (low | (qh[32 * half + l] >> (2 * quarter) & 3) << 4) - 32;
    out[i] = d * static_cast<float>(scales[i / 16]) * static_cast<float>(q);
  }
}

constexpr std::array<int8_t, 16> kE2M1Doubled = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
constexpr std::array<int8_t, 16> kIq4Values = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// u8 exponent e; qs[16] in Q4_0's order; x = table[q] 2^(e - 127) / 2, with the halved scale denormal for e < 2.
void decode_mxfp4(Bytes b, float* out) {
  const uint32_t e = b[0];
  const float d = std::bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>(kE2M1Doubled[b[1 + j] & 15]);
    out[j + 16] = d * static_cast<float>(kE2M1Doubled[b[1 + j] >> 4]);
  }
}

// u8 scales[4], unsigned E4M3 per 16 elements, used halved, 0x7F meaning 0; per group 8 bytes, low nibbles first.
void decode_nvfp4(Bytes b, float* out) {
  for (int group = 0; group < 4; ++group) {
    const int code = b[group], exponent = code >> 3 & 15;
    const float mantissa = static_cast<float>(code & 7);
    const float value = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1.0f + mantissa / 8.0f, exponent - 7);
    const float d = code == 0 || code == 0x7F ? 0.0f : value * 0.5f;
    Bytes qs = b + 4 + 8 * group;
    for (int j = 0; j < 8; ++j) {
      out[16 * group + j] = d * static_cast<float>(kE2M1Doubled[qs[j] & 15]);
      out[16 * group + 8 + j] = d * static_cast<float>(kE2M1Doubled[qs[j] >> 4]);
    }
  }
}

// half d; qs[16] in Q4_0's order, codes into a table.
void decode_iq4_nl(Bytes b, float* out) {
  const float d = half_at(b);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>(kIq4Values[b[2 + j] & 15]);
    out[j + 16] = d * static_cast<float>(kIq4Values[b[2 + j] >> 4]);
  }
}

// half d; u16 scales_h (two bits per sub-block of 32); u8 scales_l[4] (four bits); qs[128]; scale biased by 32.
void decode_iq4_xs(Bytes b, float* out) {
  const float d = half_at(b);
  const uint32_t high = b[2] | b[3] << 8;
  for (int j = 0; j < 8; ++j) {
    const int low = j % 2 == 0 ? b[4 + j / 2] & 15 : b[4 + j / 2] >> 4;
    const float scale = d * static_cast<float>(static_cast<int>(low | (high >> (2 * j) & 3) << 4) - 32);
    Bytes qs = b + 8 + 16 * j;
    for (int l = 0; l < 16; ++l) {
      out[32 * j + l] = scale * static_cast<float>(kIq4Values[qs[l] & 15]);
      out[32 * j + 16 + l] = scale * static_cast<float>(kIq4Values[qs[l] >> 4]);
    }
  }
}

constexpr std::array kTypes = {
    BlockTypeInfo{BlockType::kF32, "F32", 1, 4, decode_many<1, 4, decode_number<float>>},
    BlockTypeInfo{BlockType::kF16, "F16", 1, 2, decode_many<1, 2, decode_f16>},
    BlockTypeInfo{BlockType::kQ4_0, "Q4_0", 32, 18, decode_many<32, 18, decode_q4_0>},
    BlockTypeInfo{BlockType::kQ4_1, "Q4_1", 32, 20, decode_many<32, 20, decode_q4_1>},
    BlockTypeInfo{BlockType::kQ5_0, "Q5_0", 32, 22, decode_many<32, 22, decode_q5_0>},
    BlockTypeInfo{BlockType::kQ5_1, "Q5_1", 32, 24, decode_many<32, 24, decode_q5_1>},
    BlockTypeInfo{BlockType::kQ8_0, "Q8_0", 32, 34, decode_many<32, 34, decode_q8_0>},
    BlockTypeInfo{BlockType::kQ2_K, "Q2_K", 256, 84, decode_many<256, 84, decode_q2_k>},
    BlockTypeInfo{BlockType::kQ3_K, "Q3_K", 256, 110, decode_many<256, 110, decode_q3_k>},
    BlockTypeInfo{BlockType::kQ4_K, "Q4_K", 256, 144, decode_many<256, 144, decode_q4_k>},
    BlockTypeInfo{BlockType::kQ5_K, "Q5_K", 256, 176, decode_many<256, 176, decode_q5_k>},
    BlockTypeInfo{BlockType::kQ6_K, "Q6_K", 256, 210, decode_many<256, 210, decode_q6_k>},
    BlockTypeInfo{BlockType::kIQ2_XXS, "IQ2_XXS", 256, 66, nullptr},
    BlockTypeInfo{BlockType::kIQ2_XS, "IQ2_XS", 256, 74, nullptr},
    BlockTypeInfo{BlockType::kIQ3_XXS, "IQ3_XXS", 256, 98, nullptr},
    BlockTypeInfo{BlockType::kIQ1_S, "IQ1_S", 256, 50, nullptr},
    BlockTypeInfo{BlockType::kIQ4_NL, "IQ4_NL", 32, 18, decode_many<32, 18, decode_iq4_nl>},
    BlockTypeInfo{BlockType::kIQ3_S, "IQ3_S", 256, 110, nullptr},
    BlockTypeInfo{BlockType::kIQ2_S, "IQ2_S", 256, 82, nullptr},
    BlockTypeInfo{BlockType::kIQ4_XS, "IQ4_XS", 256, 136, decode_many<256, 136, decode_iq4_xs>},
    BlockTypeInfo{BlockType::kI8, "I8", 1, 1, decode_many<1, 1, decode_number<int8_t>>},
    BlockTypeInfo{BlockType::kI16, "I16", 1, 2, decode_many<1, 2, decode_number<int16_t>>},
    BlockTypeInfo{BlockType::kI32, "I32", 1, 4, decode_many<1, 4, decode_number<int32_t>>},
    BlockTypeInfo{BlockType::kI64, "I64", 1, 8, decode_many<1, 8, decode_number<int64_t>>},
    BlockTypeInfo{BlockType::kF64, "F64", 1, 8, decode_many<1, 8, decode_number<double>>},
    BlockTypeInfo{BlockType::kIQ1_M, "IQ1_M", 256, 56, nullptr},
    BlockTypeInfo{BlockType::kBF16, "BF16", 1, 2, decode_many<1, 2, decode_bf16>},
    BlockTypeInfo{BlockType::kTQ1_0, "TQ1_0", 256, 54, nullptr},
    BlockTypeInfo{BlockType::kTQ2_0, "TQ2_0", 256, 66, nullptr},
    BlockTypeInfo{BlockType::kMXFP4, "MXFP4", 32, 17, decode_many<32, 17, decode_mxfp4>},
    BlockTypeInfo{BlockType::kNVFP4, "NVFP4", 64, 36, decode_many<64, 36, decode_nvfp4>},
};

}  // namespace

std::span<const BlockTypeInfo> all_block_types() { return kTypes; }

const BlockTypeInfo* find_block_type(uint32_t type) {
  for (const BlockTypeInfo& info : kTypes) {
    if (static_cast<uint32_t>(info.type) == type) return &info;
  }
  return nullptr;
}

const BlockTypeInfo& block_type_info(BlockType type) {
  const BlockTypeInfo* info = find_block_type(static_cast<uint32_t>(type));
  ORRERY_CHECK(info != nullptr, "block type {}", static_cast<uint32_t>(type));
  return *info;
}

int64_t block_bytes(BlockType type, int64_t num_elements) {
  const BlockTypeInfo& info = block_type_info(type);
  ORRERY_CHECK(num_elements >= 0 && num_elements % info.block_elements == 0, "{} elements of {}", num_elements, info.name);
  return num_elements / info.block_elements * info.block_bytes;
}

void decode_blocks(BlockType type, const std::byte* blocks, int64_t num_elements, float* out) {
  const BlockTypeInfo& info = block_type_info(type);
  if (info.decode == nullptr) {
    throw Error(ErrorCode::kUnsupported, "tensors of type {} cannot be decoded; quantize the model to Q4_K, Q6_K, Q8_0 or a 4-bit IQ4 type instead",
                info.name);
  }
  ORRERY_CHECK(num_elements % info.block_elements == 0, "{} elements of {}", num_elements, info.name);
  info.decode(blocks, num_elements / info.block_elements, out);
}

void encode_q8_0(const float* values, int64_t num_elements, std::byte* blocks) {
  ORRERY_CHECK(num_elements % 32 == 0, "{} elements", num_elements);
  for (int64_t block = 0; block < num_elements / 32; ++block) {
    const float* x = values + 32 * block;
    float amax = 0;
    for (int j = 0; j < 32; ++j) amax = std::fmax(amax, std::fabs(x[j]));
    const float d = amax / 127.0f;
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    const uint16_t half = f32_to_f16(d);
    std::byte* out = blocks + 34 * block;
    std::memcpy(out, &half, 2);
    // The quotient is at most 127 up to rounding; the clamp keeps an infinite or NaN weight from being undefined behaviour.
    for (int j = 0; j < 32; ++j) {
      const float q = std::round(x[j] * inverse);
      out[2 + j] = static_cast<std::byte>(static_cast<int8_t>(q >= 127.0f ? 127.0f : q >= -127.0f ? q : q < -127.0f ? -127.0f : 0.0f));
    }
  }
}

}  // namespace orrery
