#include "base/portable_math.h"

#include <bit>
#include <cstdint>

namespace orrery {
namespace {
// ln 2 and pi/2 in parts whose leading ones have trailing zeros, so that small integer multiples are exact (fdlibm's constants).
constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
constexpr double kPio2_1 = 1.57079632673412561417e+00, kPio2_2 = 6.07710050630396597660e-11, kPio2_3 = 2.02226624879595063154e-21;

double round_to_integer(double x) {
  constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves the nearest integer
  volatile double shifted = x + kShift;
  return shifted - kShift;
}
}  // namespace

double portable_log(double x) {
  const auto bits = std::bit_cast<uint64_t>(x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double mantissa = std::bit_cast<double>((bits & 0xFFFFFFFFFFFFFull) | 0x3FF0000000000000ull);
  if (mantissa > 1.4142135623730951) {
    mantissa *= 0.5;
    ++exponent;
  }
  // log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172: the odd series to s^23 leaves 1e-18.
  const double s = (mantissa - 1.0) / (mantissa + 1.0), square = s * s;
  double series = 0.0;
  for (int k = 23; k >= 3; k -= 2) series = (series + 1.0 / k) * square;
  const double log_mantissa = 2.0 * s + 2.0 * s * series;
  return exponent * kLn2High + (exponent * kLn2Low + log_mantissa);
}

double portable_exp(double x) {
  const double n = round_to_integer(x / (kLn2High + kLn2Low));
  const double r = (x - n * kLn2High) - n * kLn2Low;
  double sum = 1.0;
  for (int k = 18; k >= 1; --k) sum = 1.0 + sum * r / k;
  return sum * std::bit_cast<double>(static_cast<uint64_t>(static_cast<int64_t>(n) + 1023) << 52);
}

SinCos portable_sincos(double x) {
  const double n = round_to_integer(x / (kPio2_1 + kPio2_2));
  const double r = ((x - n * kPio2_1) - n * kPio2_2) - n * kPio2_3;
  const double square = r * r;
  double sine = 1.0, cosine = 1.0;
  for (int k = 20; k >= 2; k -= 2) {
    sine = 1.0 - sine * square / (k * (k + 1.0));
    cosine = 1.0 - cosine * square / (k * (k - 1.0));
  }
  sine *= r;
  switch (static_cast<int64_t>(n) & 3) {
    case 0: return {sine, cosine};
    case 1: return {cosine, -sine};
    case 2: return {-sine, -cosine};
    default: return {-cosine, sine};
  }
}

}  // namespace orrery
