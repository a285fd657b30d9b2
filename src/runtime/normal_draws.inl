// Body of normal_draws_avx2.cpp and normal_draws_avx512.cpp: the operations of philox.h and portable_math.cpp in their order, on many lanes
// side by side. IEEE arithmetic rounds a lane as it rounds a scalar, so the bits are theirs; initialize_test.cpp compares.
#include <array>
#include <bit>
#include <cstdint>

#include "runtime/normal_draws_isa.h"

namespace {

constexpr int kPairs = orrery::kPairsAtOnce;

// Loops over lanes without branches, so that each becomes vector instructions.
void draw_pairs(const std::array<uint32_t, 2>& key, uint32_t op_id, uint64_t first_group, float std, float* out) {
  uint32_t c0[kPairs], c1[kPairs], c2[kPairs], c3[kPairs];
  for (int i = 0; i < kPairs; ++i) {
    const uint64_t group = first_group + static_cast<uint64_t>(i);
    c0[i] = static_cast<uint32_t>(group);
    c1[i] = static_cast<uint32_t>(group >> 32);
    c2[i] = op_id;
    c3[i] = 0;
  }
  uint32_t key0 = key[0], key1 = key[1];
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kPairs; ++i) {
      const uint64_t product0 = uint64_t{0xD2511F53} * c0[i], product1 = uint64_t{0xCD9E8D57} * c2[i];
      const uint32_t high1 = static_cast<uint32_t>(product1 >> 32) ^ c1[i] ^ key0, high0 = static_cast<uint32_t>(product0 >> 32) ^ c3[i] ^ key1;
      c0[i] = high1;
      c1[i] = static_cast<uint32_t>(product1);
      c2[i] = high0;
      c3[i] = static_cast<uint32_t>(product0);
    }
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  constexpr double kPio2_1 = 1.57079632673412561417e+00, kPio2_2 = 6.07710050630396597660e-11, kPio2_3 = 2.02226624879595063154e-21;
  constexpr double kShift = 6755399441055744.0, kTwoPi = 6.283185307179586;
  double radius[kPairs];
  for (int i = 0; i < kPairs; ++i) {
    const double u = (static_cast<double>(c0[i]) + 1.0) * 0x1p-32;
    const auto bits = std::bit_cast<uint64_t>(u);
    double exponent = static_cast<double>(static_cast<int32_t>(bits >> 52) - 1023);
    double mantissa = std::bit_cast<double>((bits & 0xFFFFFFFFFFFFFull) | 0x3FF0000000000000ull);
    const bool upper = mantissa > 1.4142135623730951;
    mantissa = upper ? mantissa * 0.5 : mantissa;
    exponent = upper ? exponent + 1.0 : exponent;
    const double s = (mantissa - 1.0) / (mantissa + 1.0), square = s * s;
    double series = 0.0;
#pragma GCC unroll 16
    for (int k = 23; k >= 3; k -= 2) series = (series + 1.0 / k) * square;
    const double log_mantissa = 2.0 * s + 2.0 * s * series;
    radius[i] = -2.0 * (exponent * kLn2High + (exponent * kLn2Low + log_mantissa));
  }
  for (int i = 0; i < kPairs; ++i) radius[i] = static_cast<double>(std) * __builtin_sqrt(radius[i]);
  for (int i = 0; i < kPairs; ++i) {
    const double x = kTwoPi * (static_cast<double>(c1[i]) * 0x1p-32), n = (x / (kPio2_1 + kPio2_2) + kShift) - kShift;
    const double r = ((x - n * kPio2_1) - n * kPio2_2) - n * kPio2_3, square = r * r;
    double sine = 1.0, cosine = 1.0;
#pragma GCC unroll 16
    for (int k = 20; k >= 2; k -= 2) {
      sine = 1.0 - sine * square / (k * (k + 1.0));
      cosine = 1.0 - cosine * square / (k * (k - 1.0));
    }
    sine *= r;
    // n is 0 to 4: a quarter turn exchanges the two, and the half turns negate.
    const bool odd = n == 1.0 || n == 3.0;
    const double sin0 = odd ? cosine : sine, cos0 = odd ? sine : cosine;
    const double sin1 = n == 2.0 || n == 3.0 ? -sin0 : sin0, cos1 = n == 1.0 || n == 2.0 ? -cos0 : cos0;
    out[2 * i] = static_cast<float>(radius[i] * cos1);
    out[2 * i + 1] = static_cast<float>(radius[i] * sin1);
  }
}

}  // namespace
