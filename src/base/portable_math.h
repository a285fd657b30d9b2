// Elementary functions in plain f64 arithmetic: the same bits on every processor and C library (NUMERICS rule 1). For values made
// once, like initial weights and rope tables; kernels have their own vectors.
#pragma once

namespace orrery {

/// Relative error below 1e-15 for normal positive x.
double portable_log(double x);
/// Relative error below 1e-14 for |x| < 700.
double portable_exp(double x);
struct SinCos {
  double sin, cos;
};
/// Absolute error below 1e-11 for |x| < 1e7: the reduction subtracts multiples of pi/2 in three parts.
SinCos portable_sincos(double x);

}  // namespace orrery
