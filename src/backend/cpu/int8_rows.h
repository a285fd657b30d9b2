// A head's numbers in 8 bits, as paged_int8.h says. Included only by files compiled for one instruction set (simd.h).
#pragma once

#include "backend/cpu/paged_int8.h"
#include "backend/cpu/simd.h"

namespace orrery::ORRERY_SIMD {

/// Codes of H numbers; returns their scale, which is NaN where one of them is not finite: codes have no way to say so.
template <typename T>
ORRERY_INLINE float quantize_head(const T* x, int64_t H, int8_t* codes) {
  F32x16 top = zero(), poison = zero();  // 0 x is 0, and NaN where x is not finite
  for_lanes(H, [&](int64_t i, int64_t n) {
    const F32x16 a = load_n(x + i, n);
    top = max(top, max(a, zero() - a));
    poison = fma(a, zero(), poison);
  });
  const float amax = reduce_max(top);
  const F32x16 inverse = splat(amax > 0 ? kInt8Most / amax : 0.0f);
  for_lanes(H, [&](int64_t i, int64_t n) {
    alignas(64) int32_t lanes[16];
    store(lanes, to_i32(load_n(x + i, n) * inverse));
    for (int64_t j = 0; j < n; ++j) codes[i + j] = static_cast<int8_t>(lanes[j]);
  });
  return reduce_add(poison) == 0 ? amax / kInt8Most : __builtin_nanf("");
}

ORRERY_INLINE float scale_of_head(const int8_t* codes, int64_t H) {
  float scale;
  __builtin_memcpy(&scale, codes + kv_int8_head_bytes(H) - 4, 4);
  return scale;
}

}  // namespace orrery::ORRERY_SIMD
