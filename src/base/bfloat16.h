// Scalar conversions between f32 and the 16-bit floats, bit-exact and free of the FPU's mode.
#pragma once

#include <bit>
#include <cstdint>

namespace orrery {

inline float bf16_to_f32(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

/// Round to nearest even; NaN stays NaN. The rounding of activations and gradients.
inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

/// NUMERICS rule 2: an f32 master weight is the bf16 compute weight, (bits + 0x8000) >> 16, and a signed low half; lossless
/// for every finite value below the largest bf16.
inline uint16_t master_high(float master) { return static_cast<uint16_t>((std::bit_cast<uint32_t>(master) + 0x8000u) >> 16); }
inline int16_t master_low(float master) {
  const uint32_t bits = std::bit_cast<uint32_t>(master);
  return static_cast<int16_t>(bits - (((bits + 0x8000u) >> 16) << 16));
}
inline float join_master(uint16_t high, int16_t low) {
  return std::bit_cast<float>((static_cast<uint32_t>(high) << 16) + static_cast<uint32_t>(static_cast<int32_t>(low)));
}

/// IEEE binary16 to f32, denormals included.
float f16_to_f32(uint16_t bits);
/// Round to nearest even, overflow to infinity.
uint16_t f32_to_f16(float value);

}  // namespace orrery
