#include "base/bfloat16.h"

namespace orrery {

float f16_to_f32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  uint32_t exponent = (bits >> 10) & 0x1F;
  uint32_t mantissa = bits & 0x3FF;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  if (exponent == 0) {
    if (mantissa == 0) return std::bit_cast<float>(sign);
    // A denormal: shift the leading one into place.
    exponent = 1;
    while (!(mantissa & 0x400)) {
      mantissa <<= 1;
      --exponent;
    }
    mantissa &= 0x3FF;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return sign | 0x7E00;       // NaN
  if (magnitude >= 0x477FF000) return sign | 0x7C00;      // rounds to 65536 or more: infinity
  if (magnitude < 0x33000001) return sign;                // at most half the smallest denormal
  uint32_t mantissa = (magnitude & 0x7FFFFF) | 0x800000;  // with its leading one
  const int exponent = static_cast<int>(magnitude >> 23) - 127;
  int shift = 13;
  uint32_t result = 0;
  if (exponent < -14) {
    shift += -14 - exponent;  // denormal: the leading one is part of the mantissa
  } else {
    result = static_cast<uint32_t>(exponent + 15 - 1) << 10;  // the leading one adds the last 1 << 10
  }
  const uint32_t half = 1u << (shift - 1);
  const uint32_t rest = mantissa & ((1u << shift) - 1);
  result += mantissa >> shift;
  if (rest > half || (rest == half && (result & 1))) ++result;
  return static_cast<uint16_t>(sign | result);
}

}  // namespace orrery
