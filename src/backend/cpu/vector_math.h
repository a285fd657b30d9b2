// Orrery's own exp, log, tanh and the activations made of them, sixteen lanes at a time. libm differs by processor; these do
// not: one sequence of exactly rounded operations per function, the same on AVX2 and AVX-512 (NUMERICS rule 1). Scalar callers
// and tests use math_arrays.h. Errors against f64 are measured in vector_math_test.cpp; the bounds it enforces stand here in
// ulp of the result, for results in the normal range. Subnormal results are flushed to zero in the mode that kernels run in.
//
// Coefficients: weighted minimax fits (Lawson iteration) of the remainder named beside them, on the reduced interval.
#pragma once

#include "backend/cpu/simd.h"

namespace orrery::ORRERY_SIMD {

/// 2^n for integral n in [-126, 127].
ORRERY_INLINE F32x16 pow2_integral(F32x16 n) { return as_f32(shift_left<23>(to_i32(n) + splat_i32(127))); }

/// e^x, at most 1 ulp; +inf above 88.73, 0 below -87.34 (flushed), NaN for NaN.
ORRERY_INLINE F32x16 exp(F32x16 x) {
  // At +-104 the result has left the range of f32 on both sides, and n / 2 still fits the exponent field.
  x = max(splat(-104.0f), min(splat(104.0f), x));
  const F32x16 n = round(x * splat(1.44269504088896341f));
  // ln 2 in two parts: the first has 9 significant bits, so that n * part is exact.
  F32x16 r = fnma(n, splat(0.693359375f), x);
  r = fnma(n, splat(-2.12194440e-4f), r);
  // (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2, degree 4: relative error of e^r 3.1e-9.
  F32x16 p = splat(0.0013814599f);
  p = fma(p, r, splat(0.008368717f));
  p = fma(p, r, splat(0.04166839f));
  p = fma(p, r, splat(0.16666521f));
  p = fma(p, r, splat(0.49999994f));
  const F32x16 e = splat(1.0f) + fma(r * r, p, r);
  // Two factors, because 2^n alone overflows at both ends where the product does not.
  const F32x16 half = round(n * splat(0.5f));
  return (e * pow2_integral(half)) * pow2_integral(n - half);
}

/// e^x for x <= 0, the case of softmax: 2^n is one factor, and below -87.33 the result is +0 rather than subnormal. The same
/// bits as exp() in flush-to-zero mode above that.
ORRERY_INLINE F32x16 exp_nonpositive(F32x16 x) {
  const Mask16 tiny = x < splat(-87.33f);
  const F32x16 clamped = max(splat(-87.33f), x);
  const F32x16 n = round(clamped * splat(1.44269504088896341f));
  F32x16 r = fnma(n, splat(0.693359375f), clamped);
  r = fnma(n, splat(-2.12194440e-4f), r);
  F32x16 p = splat(0.0013814599f);
  p = fma(p, r, splat(0.008368717f));
  p = fma(p, r, splat(0.04166839f));
  p = fma(p, r, splat(0.16666521f));
  p = fma(p, r, splat(0.49999994f));
  const F32x16 e = splat(1.0f) + fma(r * r, p, r);
  return select(tiny, zero(), e * pow2_integral(n));
}

/// 2^x for x <= 0 (and a little above), at most 1 ulp down to -126; below that +0, or a subnormal number that kernels' mode
/// reads as 0. The cheapest exponential: no constant has to be split, because x - round(x) is exact.
ORRERY_INLINE F32x16 exp2_nonpositive(F32x16 x) {
  // At -127 the fraction is 0 and the exponent field of 1.0 minus 127 is empty: +0.
  x = max(splat(-127.0f), x);
  const F32x16 n = round(x);
  const F32x16 r = x - n;
  // (2^r - 1) / r for |r| <= 1/2, degree 5: relative error of 2^r 2.0e-9.
  F32x16 p = splat(0.00015353282f);
  p = fma(p, r, splat(0.0013399001f));
  p = fma(p, r, splat(0.009618439f));
  p = fma(p, r, splat(0.05550332f));
  p = fma(p, r, splat(0.24022648f));
  p = fma(p, r, splat(0.6931472f));
  p = fma(p, r, splat(1.0f));
  return as_f32(as_i32(p) + shift_left<23>(to_i32(n)));
}

/// ln x, at most 1 ulp; -inf for 0 and subnormals, NaN below, +inf for +inf.
ORRERY_INLINE F32x16 log(F32x16 x) {
  // x = m * 2^e with m in [sqrt(1/2), sqrt(2)): adding the distance from sqrt(1/2) to 1 carries into the exponent where m would
  // be larger.
  const I32x16 bits = as_i32(x) + splat_i32(0x3F800000 - 0x3F3504F3);
  const F32x16 e = to_f32(shift_right<23>(bits) - splat_i32(127));
  const F32x16 m = as_f32((bits & splat_i32(0x007FFFFF)) + splat_i32(0x3F3504F3));
  const F32x16 f = m - splat(1.0f);
  // (ln(1 + f) - f + f^2 / 2) / f^3, degree 8: error 7.6e-10 relative to ln(1 + f).
  F32x16 p = splat(0.06921045482158661f);
  p = fma(p, f, splat(-0.11780698597431183f));
  p = fma(p, f, splat(0.11865131556987762f));
  p = fma(p, f, splat(-0.12385552376508713f));
  p = fma(p, f, splat(0.14220021665096283f));
  p = fma(p, f, splat(-0.16669216752052307f));
  p = fma(p, f, splat(0.20002146065235138f));
  p = fma(p, f, splat(-0.24999986588954926f));
  p = fma(p, f, splat(0.3333331048488617f));
  const F32x16 f2 = f * f;
  F32x16 y = fma(f2 * f, p, e * splat(-2.12194440e-4f));
  y = fnma(splat(0.5f), f2, y);
  y = fma(e, splat(0.693359375f), f + y);
  const float infinity = __builtin_inff();
  y = select(x < splat(1.17549435e-38f), splat(-infinity), y);
  y = select(x < zero(), splat(__builtin_nanf("")), y);
  y = select(splat(3.40282347e38f) < x, splat(infinity), y);
  return select(is_nan(x), x, y);
}

/// 1 / (1 + e^-x), at most 3 ulp.
ORRERY_INLINE F32x16 sigmoid(F32x16 x) { return splat(1.0f) / (splat(1.0f) + exp(zero() - x)); }

/// tanh x, at most 2 ulp.
ORRERY_INLINE F32x16 tanh(F32x16 x) {
  const I32x16 sign = as_i32(x) & splat_i32(static_cast<int32_t>(0x80000000u));
  const F32x16 a = as_f32(as_i32(x) & splat_i32(0x7FFFFFFF));
  // Below 0.625 the odd polynomial of Cephes tanhf; above it 1 - 2 / (e^2a + 1), where nothing cancels.
  const F32x16 z = a * a;
  F32x16 p = splat(-5.70498872745e-3f);
  p = fma(p, z, splat(2.06390887954e-2f));
  p = fma(p, z, splat(-5.37397155531e-2f));
  p = fma(p, z, splat(1.33314422036e-1f));
  p = fma(p, z, splat(-3.33332819422e-1f));
  const F32x16 small = fma(p * z, a, a);
  const F32x16 large = splat(1.0f) - splat(2.0f) / (exp(a + a) + splat(1.0f));
  const F32x16 magnitude = select(a < splat(0.625f), small, large);
  return select(is_nan(x), x, as_f32(as_i32(magnitude) | sign));
}

/// s = sigmoid(x) and s (1 - s), both from e^-|x|, so that neither 1 - s nor 1 + e^-x loses digits.
struct SigmoidPair {
  F32x16 value, slope;
};
ORRERY_INLINE SigmoidPair sigmoid_pair(F32x16 x) {
  const F32x16 e = exp_nonpositive(as_f32(as_i32(x) | splat_i32(static_cast<int32_t>(0x80000000u))));
  const F32x16 d = splat(1.0f) / (splat(1.0f) + e);
  const F32x16 ed = e * d;
  return {select(x < zero(), ed, d), ed * d};
}

/// x sigmoid(x), at most 3 ulp.
ORRERY_INLINE F32x16 silu(F32x16 x, const SigmoidPair& s) { return x * s.value; }
ORRERY_INLINE F32x16 silu(F32x16 x) { return silu(x, sigmoid_pair(x)); }

/// d silu / dx = s + x s (1 - s) with s = sigmoid(x); absolute error at most 3e-7.
ORRERY_INLINE F32x16 silu_derivative(F32x16 x, const SigmoidPair& s) {
  // Clamped so that an infinite x, where the slope is 0, does not become inf * 0.
  const F32x16 clamped = max(splat(-3.0e38f), min(splat(3.0e38f), x));
  return fma(clamped, s.slope, s.value);
}
ORRERY_INLINE F32x16 silu_derivative(F32x16 x) { return silu_derivative(x, sigmoid_pair(x)); }

/// The argument of the sigmoid that gelu is made of: 0.5 (1 + tanh u) = sigmoid(2 u), which does not cancel for negative x as
/// 1 + tanh u would. 2 u = 2 sqrt(2 / pi) (x + 0.044715 x^3).
ORRERY_INLINE F32x16 gelu_argument(F32x16 x) {
  return x * fma(x * x, splat(1.5957691216057308f * 0.044715f), splat(1.5957691216057308f));
}

/// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); relative error at most 1e-6 * (1 + |2 u|): the argument's rounding is
/// amplified by the exponential.
ORRERY_INLINE F32x16 gelu(F32x16 x) { return x * sigmoid_pair(gelu_argument(x)).value; }

/// d gelu / dx = s + x s (1 - s) 2u' with s = sigmoid(2 u); absolute error at most 1e-6.
ORRERY_INLINE F32x16 gelu_derivative(F32x16 x) {
  const SigmoidPair s = sigmoid_pair(gelu_argument(x));
  // Beyond 16 the slope of the sigmoid is 0 in f32, and x^3 must not overflow against it.
  const F32x16 c = max(splat(-16.0f), min(splat(16.0f), x));
  const F32x16 inner = fma(c * c, splat(3.0f * 1.5957691216057308f * 0.044715f), splat(1.5957691216057308f));
  return fma(c * inner, s.slope, s.value);
}

}  // namespace orrery::ORRERY_SIMD
