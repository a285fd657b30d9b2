// The functions of vector_math.h over arrays, for code that is not compiled for one instruction set (the sampler, tests). The
// bits do not depend on `isa`.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"

namespace orrery {

/// y[i] = f(x[i]) for i in [0, n); x and y may be the same.
using MathArrayFn = void (*)(const float* x, float* y, int64_t n);

struct MathArrays {
  MathArrayFn exp, exp_nonpositive, exp2_nonpositive, log, tanh, sigmoid, silu, silu_derivative, gelu, gelu_derivative;
  void (*to_bf16)(const float* x, uint16_t* y, int64_t n);  // round to nearest even
  void (*from_bf16)(const uint16_t* x, float* y, int64_t n);
  float (*sum)(const float* x, int64_t n);  // lane i sums x[i], x[i + 16], ... from +0; then the fixed tree of reduce_add
  float (*max)(const float* x, int64_t n);  // -inf for n = 0
};

const MathArrays& math_arrays(VectorIsa isa);

}  // namespace orrery
