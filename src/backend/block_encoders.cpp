#include "backend/block_encoders.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/bfloat16.h"
#include "base/error.h"

namespace orrery {
namespace {

constexpr int kSuper = 256;  // elements of a block of the K types

void put_half(float value, uint8_t* at) {
  const uint16_t half = f32_to_f16(value);
  std::memcpy(at, &half, 2);
}
float as_half(float value) { return f16_to_f32(f32_to_f16(value)); }

int to_code(float value, int low, int high) { return std::clamp(static_cast<int>(std::lrint(value)), low, high); }

/// Finite copies of a block's elements and the weights of their squared errors.
struct Elements {
  std::array<float, kSuper> x, weight;

  Elements(const float* values, int count) {
    float sum = 0;
    for (int i = 0; i < count; ++i) {
      x[static_cast<size_t>(i)] = std::isfinite(values[i]) ? values[i] : 0.0f;
      sum += x[static_cast<size_t>(i)] * x[static_cast<size_t>(i)];
    }
    const float rms = std::sqrt(sum / static_cast<float>(count));
    for (int i = 0; i < count; ++i) weight[static_cast<size_t>(i)] = rms + std::fabs(x[static_cast<size_t>(i)]);
  }
};

/// The d with the smallest sum of w (x - d q)^2, q = round(x / d') in [low, high], over trial steps d' near the one that puts the
/// largest |x| at `low`. For given codes the best d is sum(w x q) / sum(w q q), and the error falls by sum(w x q)^2 / sum(w q q).
float fit_scale(const float* x, const float* w, int count, int low, int high) {
  float extreme = 0;
  for (int i = 0; i < count; ++i)
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  if (std::fabs(extreme) < 1e-30f) return 0;
  float best_gain = 0, best = 0;
  for (int trial = -9; trial <= 9; ++trial) {
    const float inverse = (static_cast<float>(low) + 0.1f * static_cast<float>(trial)) / extreme;
    float xq = 0, qq = 0;
    for (int i = 0; i < count; ++i) {
      const auto q = static_cast<float>(to_code(inverse * x[i], low, high));
      xq += w[i] * x[i] * q;
      qq += w[i] * q * q;
    }
    if (qq > 0 && xq * xq > best_gain * qq) {
      best_gain = xq * xq / qq;
      best = xq / qq;
    }
  }
  return best;
}

struct ScaleAndMinimum {
  float scale = 0, minimum = 0;  // x is scale q + minimum
};

/// The scale >= 0 and minimum (<= 0 where `below_zero`) with the smallest sum of w (x - scale q - minimum)^2, q in [0, high], likewise. For
/// given codes it is a line through points: two normal equations.
ScaleAndMinimum fit_line(const float* x, const float* w, int count, int high, bool below_zero) {
  float least = x[0], most = x[0], sw = 0, sx = 0;
  for (int i = 0; i < count; ++i) {
    least = std::min(least, x[i]);
    most = std::max(most, x[i]);
    sw += w[i];
    sx += w[i] * x[i];
  }
  if (below_zero) least = std::min(least, 0.0f);
  if (most - least < 1e-30f) return {0, below_zero ? least : x[0]};
  ScaleAndMinimum best;
  float best_error = INFINITY;
  for (int trial = -10; trial <= 10; ++trial) {
    const float inverse = (static_cast<float>(high) + 0.1f * static_cast<float>(trial)) / (most - least);
    std::array<float, 32> q{};
    float sq = 0, sqq = 0, sxq = 0;
    for (int i = 0; i < count; ++i) {
      const auto code = static_cast<float>(to_code(inverse * (x[i] - least), 0, high));
      q[static_cast<size_t>(i)] = code;
      sq += w[i] * code;
      sqq += w[i] * code * code;
      sxq += w[i] * code * x[i];
    }
    const float determinant = sw * sqq - sq * sq;
    if (determinant <= 0) continue;
    ScaleAndMinimum line{(sw * sxq - sx * sq) / determinant, (sqq * sx - sq * sxq) / determinant};
    if (below_zero && line.minimum > 0) line = {sqq > 0 ? sxq / sqq : 0, 0};
    float error = 0;
    for (int i = 0; i < count; ++i) {
      const float difference = x[i] - line.scale * q[static_cast<size_t>(i)] - line.minimum;
      error += w[i] * difference * difference;
    }
    if (error < best_error) {
      best_error = error;
      best = line;
    }
  }
  return best;
}

// ---- blocks of 32 -----------------------------------------------------------------------------------------------------------

/// Codes of 4 or 5 bits to the nibbles, and the fifth bits.
void put_nibbles(const std::array<int, 32>& q, uint8_t* nibbles, uint8_t* fifth) {
  uint32_t high = 0;
  for (size_t j = 0; j < 16; ++j) {
    nibbles[j] = static_cast<uint8_t>((q[j] & 15) | (q[j + 16] & 15) << 4);
    high |= static_cast<uint32_t>(q[j] >> 4) << j | static_cast<uint32_t>(q[j + 16] >> 4) << (j + 16);
  }
  if (fifth != nullptr) std::memcpy(fifth, &high, 4);
}

template <int kBits>
void encode_symmetric(const float* values, uint8_t* out) {
  constexpr int kOffset = 1 << (kBits - 1);
  const Elements e(values, 32);
  const float d = as_half(fit_scale(e.x.data(), e.weight.data(), 32, -kOffset, kOffset - 1));
  std::array<int, 32> q;
  for (size_t i = 0; i < 32; ++i) q[i] = kOffset + (d != 0 ? to_code(e.x[i] / d, -kOffset, kOffset - 1) : 0);
  put_half(d, out);
  put_nibbles(q, out + (kBits == 5 ? 6 : 2), kBits == 5 ? out + 2 : nullptr);
}

template <int kBits>
void encode_with_minimum(const float* values, uint8_t* out) {
  constexpr int kHigh = (1 << kBits) - 1;
  const Elements e(values, 32);
  const ScaleAndMinimum line = fit_line(e.x.data(), e.weight.data(), 32, kHigh, false);
  const float d = as_half(line.scale), m = as_half(line.minimum);
  std::array<int, 32> q;
  for (size_t i = 0; i < 32; ++i) q[i] = d != 0 ? to_code((e.x[i] - m) / d, 0, kHigh) : 0;
  put_half(d, out);
  put_half(m, out + 2);
  put_nibbles(q, out + (kBits == 5 ? 8 : 4), kBits == 5 ? out + 4 : nullptr);
}

// ---- super-blocks of 256 ----------------------------------------------------------------------------------------------------

/// Six-bit scales and minima of 8 sub-blocks in 12 bytes: scale_min() of block_formats.cpp backwards.
void put_scale_mins(const std::array<int, 8>& scales, const std::array<int, 8>& mins, uint8_t* s) {
  for (size_t j = 0; j < 4; ++j) {
    s[j] = static_cast<uint8_t>(scales[j] | (scales[j + 4] >> 4) << 6);
    s[j + 4] = static_cast<uint8_t>(mins[j] | (mins[j + 4] >> 4) << 6);
    s[j + 8] = static_cast<uint8_t>((scales[j + 4] & 15) | (mins[j + 4] & 15) << 4);
  }
}

template <int kBits>
void encode_k_with_minimum(const float* values, uint8_t* out) {
  constexpr int kHigh = (1 << kBits) - 1;
  const Elements e(values, kSuper);
  std::array<ScaleAndMinimum, 8> lines;
  float most_scale = 0, most_minimum = 0;
  for (size_t j = 0; j < 8; ++j) {
    lines[j] = fit_line(e.x.data() + 32 * j, e.weight.data() + 32 * j, 32, kHigh, true);
    most_scale = std::max(most_scale, lines[j].scale);
    most_minimum = std::max(most_minimum, -lines[j].minimum);
  }
  const float d = as_half(most_scale / 63), dmin = as_half(most_minimum / 63);
  std::array<int, 8> scales{}, mins{};
  std::array<uint8_t, kSuper> q{};
  for (size_t j = 0; j < 8; ++j) {
    scales[j] = d != 0 ? to_code(lines[j].scale / d, 0, 63) : 0;
    mins[j] = dmin != 0 ? to_code(-lines[j].minimum / dmin, 0, 63) : 0;
    const float step = d * static_cast<float>(scales[j]), minimum = dmin * static_cast<float>(mins[j]);
    for (size_t i = 32 * j; i < 32 * j + 32; ++i) q[i] = static_cast<uint8_t>(step != 0 ? to_code((e.x[i] + minimum) / step, 0, kHigh) : 0);
  }
  put_half(d, out);
  put_half(dmin, out + 2);
  put_scale_mins(scales, mins, out + 4);
  uint8_t* qh = out + 16;
  uint8_t* qs = kBits == 5 ? out + 48 : out + 16;
  if (kBits == 5) std::memset(qh, 0, 32);
  for (size_t j = 0; j < 8; j += 2)
    for (size_t l = 0; l < 32; ++l) {
      const uint8_t low = q[32 * j + l], high = q[32 * j + 32 + l];
      qs[16 * j + l] = static_cast<uint8_t>((low & 15) | (high & 15) << 4);
      if (kBits == 5) qh[l] = static_cast<uint8_t>(qh[l] | (low >> 4) << j | (high >> 4) << (j + 1));
    }
}

void encode_q6_k(const float* values, uint8_t* out) {
  const Elements e(values, kSuper);
  std::array<float, 16> steps;
  float extreme = 0;
  for (size_t j = 0; j < 16; ++j) {
    steps[j] = fit_scale(e.x.data() + 16 * j, e.weight.data() + 16 * j, 16, -32, 31);
    if (std::fabs(steps[j]) > std::fabs(extreme)) extreme = steps[j];
  }
  const float d = as_half(extreme / -128);
  std::memset(out, 0, 192);
  for (size_t j = 0; j < 16; ++j) {
    const int scale = d != 0 ? to_code(steps[j] / d, -128, 127) : 0;
    out[192 + j] = static_cast<uint8_t>(static_cast<int8_t>(scale));
    const float step = d * static_cast<float>(scale);
    for (size_t i = 16 * j; i < 16 * j + 16; ++i) {
      const int q = 32 + (step != 0 ? to_code(e.x[i] / step, -32, 31) : 0);
      const size_t half = i / 128, quarter = i / 32 % 4, l = i % 32;
      uint8_t& low = out[64 * half + 32 * (quarter % 2) + l];
      low = static_cast<uint8_t>(low | (q & 15) << (quarter < 2 ? 0 : 4));
      uint8_t& high = out[128 + 32 * half + l];
      high = static_cast<uint8_t>(high | (q >> 4) << (2 * quarter));
    }
  }
  put_half(d, out + 208);
}

template <typename EncodeOne>
void each_block(const BlockTypeInfo& info, const float* values, int64_t num_elements, std::byte* blocks, EncodeOne&& encode_one) {
  auto* out = reinterpret_cast<uint8_t*>(blocks);
  for (int64_t i = 0; i < num_elements / info.block_elements; ++i) encode_one(values + i * info.block_elements, out + i * info.block_bytes);
}

}  // namespace

bool can_encode(BlockType type) {
  switch (type) {
    case BlockType::kF32:
    case BlockType::kBF16:
    case BlockType::kF16:
    case BlockType::kQ4_0:
    case BlockType::kQ4_1:
    case BlockType::kQ5_0:
    case BlockType::kQ5_1:
    case BlockType::kQ8_0:
    case BlockType::kQ4_K:
    case BlockType::kQ5_K:
    case BlockType::kQ6_K: return true;
    default: return false;
  }
}

void encode_blocks(BlockType type, const float* values, int64_t num_elements, std::byte* blocks) {
  const BlockTypeInfo& info = block_type_info(type);
  ORRERY_CHECK(num_elements % info.block_elements == 0, "{} elements of {}", num_elements, info.name);
  const auto each = [&](auto&& encode_one) { each_block(info, values, num_elements, blocks, encode_one); };
  switch (type) {
    case BlockType::kF32: std::memcpy(blocks, values, static_cast<size_t>(num_elements) * 4); return;
    case BlockType::kBF16: return each([](const float* x, uint8_t* out) { const uint16_t half = f32_to_bf16(*x); std::memcpy(out, &half, 2); });
    case BlockType::kF16: return each([](const float* x, uint8_t* out) { put_half(*x, out); });
    case BlockType::kQ4_0: return each(encode_symmetric<4>);
    case BlockType::kQ4_1: return each(encode_with_minimum<4>);
    case BlockType::kQ5_0: return each(encode_symmetric<5>);
    case BlockType::kQ5_1: return each(encode_with_minimum<5>);
    case BlockType::kQ8_0: return encode_q8_0(values, num_elements, blocks);
    case BlockType::kQ4_K: return each(encode_k_with_minimum<4>);
    case BlockType::kQ5_K: return each(encode_k_with_minimum<5>);
    case BlockType::kQ6_K: return each(encode_q6_k);
    default: throw Error(ErrorCode::kUnsupported, "tensors of type {} are not written; use F32, BF16, F16, Q8_0, Q6_K, Q5_K, Q4_K or a type of 4 or 5 bits with blocks of 32", info.name);
  }
}

}  // namespace orrery
