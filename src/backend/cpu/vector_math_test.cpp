// Proves that the vector functions are as accurate as vector_math.h says, against f64 libm over dense sweeps and edge values,
// and that AVX2 and AVX-512 give the same bits for every input tried.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/cpu/math_arrays.h"
#include "base/bfloat16.h"
#include "base/philox.h"
#include "base/thread_pool.h"

namespace orrery {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Case {
  const char* name;
  MathArrayFn MathArrays::*function;
  double (*oracle)(double);
  double low, high;
  double max_ulp;       // of the result, where |result| >= 2^-126; 0: not checked
  double max_absolute;  // 0: not checked
};

double gelu64(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
double sigmoid64(double x) { return 1 / (1 + std::exp(-x)); }
double gelu_derivative64(double x) {
  const double u = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
  const double t = std::tanh(u);
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}
double silu64(double x) { return x * sigmoid64(x); }
double silu_derivative64(double x) { return sigmoid64(x) * (1 + x * sigmoid64(-x)); }

const Case kCases[] = {
    {"exp", &MathArrays::exp, std::exp, -87.0, 88.7, 1.0, 0},
    {"exp_nonpositive", &MathArrays::exp_nonpositive, std::exp, -87.0, 0.0, 1.0, 0},
    {"exp2_nonpositive", &MathArrays::exp2_nonpositive, std::exp2, -126.0, 0.0, 1.0, 0},
    {"log", &MathArrays::log, std::log, 1e-30, 0.5, 1.0, 0},
    {"log", &MathArrays::log, std::log, 0.5, 2.0, 1.0, 0},
    {"log", &MathArrays::log, std::log, 2.0, 1e30, 1.0, 0},
    {"tanh", &MathArrays::tanh, std::tanh, -12.0, 12.0, 2.0, 0},
    {"sigmoid", &MathArrays::sigmoid, sigmoid64, -80.0, 80.0, 3.0, 0},
    {"silu", &MathArrays::silu, silu64, -80.0, 80.0, 3.0, 0},
    {"silu_derivative", &MathArrays::silu_derivative, silu_derivative64, -80.0, 80.0, 0, 3e-7},
    {"gelu", &MathArrays::gelu, gelu64, -3.0, 40.0, 0, 0},
    {"gelu_derivative", &MathArrays::gelu_derivative, gelu_derivative64, -40.0, 40.0, 0, 1e-6},
};

// Evenly spaced, plus uniformly over the bit patterns of the same range so that small magnitudes are covered too.
std::vector<float> sweep(double low, double high) {
  std::vector<float> x;
  const PhiloxStream random(7, RandomPurpose::kInit, 1, 0);
  constexpr int kCount = 200003;
  for (int i = 0; i < kCount; ++i) x.push_back(static_cast<float>(low + (high - low) * i / (kCount - 1)));
  for (int i = 0; i < kCount; ++i) {
    const float value = std::bit_cast<float>(random.bits(i));
    if (value >= low && value <= high && std::fabs(value) > 1e-30f) x.push_back(value);
  }
  return x;
}

double ulp_of(double exact) {
  int exponent = 0;
  std::frexp(exact, &exponent);
  return std::ldexp(1.0, std::max(exponent, -125) - 24);
}

class VectorMathTest : public testing::TestWithParam<VectorIsa> {
 protected:
  void SetUp() override {
    if (GetParam() == VectorIsa::kAvx512 && !cpu_features().avx512) GTEST_SKIP() << "no AVX-512 here";
    set_floating_point_mode();
  }
};

TEST_P(VectorMathTest, IsAsAccurateAsTheHeaderSays) {
  for (const Case& c : kCases) {
    const std::vector<float> x = sweep(c.low, c.high);
    std::vector<float> y(x.size());
    (math_arrays(GetParam()).*c.function)(x.data(), y.data(), static_cast<int64_t>(x.size()));
    double worst_ulp = 0, worst_absolute = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double exact = c.oracle(x[i]);
      const double error = std::fabs(y[i] - exact);
      worst_absolute = std::max(worst_absolute, error);
      if (std::fabs(exact) > 1.2e-38) worst_ulp = std::max(worst_ulp, error / ulp_of(exact));
    }
    RecordProperty(std::string(c.name) + "_ulp", std::to_string(worst_ulp));
    if (c.max_ulp > 0) {
      EXPECT_LE(worst_ulp, c.max_ulp) << c.name << " on [" << c.low << ", " << c.high << "]";
    }
    if (c.max_absolute > 0) {
      EXPECT_LE(worst_absolute, c.max_absolute) << c.name << " on [" << c.low << ", " << c.high << "]";
    }
  }
}

TEST_P(VectorMathTest, GeluKeepsItsRelativeError) {
  const std::vector<float> x = sweep(-9.0, 40.0);
  std::vector<float> y(x.size());
  math_arrays(GetParam()).gelu(x.data(), y.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const double two_u = 2 * std::sqrt(2 / M_PI) * (x[i] + 0.044715 * std::pow(double{x[i]}, 3));
    const double exact = x[i] / (1 + std::exp(-two_u));
    ASSERT_LE(std::fabs(y[i] - exact), 2e-7 * (2 + std::fabs(two_u)) * std::fabs(exact) + 1e-37) << x[i];
  }
}

TEST_P(VectorMathTest, EdgeValues) {
  const MathArrays& f = math_arrays(GetParam());
  const std::vector<float> x = {0.0f, -0.0f, kInf, -kInf, NAN, 1e30f, -1e30f, 89.0f, -110.0f, 1.0f};
  const int64_t n = static_cast<int64_t>(x.size());
  std::vector<float> y(x.size());
  f.exp(x.data(), y.data(), n);
  EXPECT_EQ(y[0], 1.0f);
  EXPECT_EQ(y[2], kInf);
  EXPECT_EQ(y[3], 0.0f);
  EXPECT_TRUE(std::isnan(y[4]));
  EXPECT_EQ(y[7], kInf);
  EXPECT_EQ(y[8], 0.0f);
  f.exp_nonpositive(x.data(), y.data(), n);
  EXPECT_EQ(y[0], 1.0f);
  EXPECT_EQ(y[3], 0.0f);
  f.log(x.data(), y.data(), n);
  EXPECT_EQ(y[0], -kInf);
  EXPECT_EQ(y[2], kInf);
  EXPECT_TRUE(std::isnan(y[3]) && std::isnan(y[4]));
  EXPECT_EQ(y[9], 0.0f);
  f.tanh(x.data(), y.data(), n);
  EXPECT_EQ(std::bit_cast<uint32_t>(y[1]), 0x80000000u);
  EXPECT_EQ(y[2], 1.0f);
  EXPECT_EQ(y[3], -1.0f);
  EXPECT_TRUE(std::isnan(y[4]));
  for (const auto function : {&MathArrays::silu, &MathArrays::gelu}) {
    (f.*function)(x.data(), y.data(), n);
    EXPECT_EQ(y[0], 0.0f);
    EXPECT_EQ(y[5], 1e30f);
    EXPECT_EQ(y[6], 0.0f);
  }
  for (const auto function : {&MathArrays::silu_derivative, &MathArrays::gelu_derivative}) {
    (f.*function)(x.data(), y.data(), n);
    EXPECT_EQ(y[0], 0.5f);
    EXPECT_EQ(y[2], 1.0f);
    EXPECT_EQ(y[3], 0.0f);
    EXPECT_TRUE(std::isnan(y[4]));
  }
}

TEST_P(VectorMathTest, Bf16RoundsAsTheScalarDoes) {
  std::vector<float> x;
  const PhiloxStream random(9, RandomPurpose::kInit, 1, 0);
  for (int i = 0; i < 100003; ++i) x.push_back(std::bit_cast<float>(random.bits(i)));
  for (uint32_t bits : {0x3F808000u, 0x3F818000u, 0x3F807FFFu, 0x3F808001u, 0x7F7FFFFFu, 0x7F800000u, 0xFF800001u, 0x80000000u})
    x.push_back(std::bit_cast<float>(bits));
  std::vector<uint16_t> y(x.size());
  math_arrays(GetParam()).to_bf16(x.data(), y.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], f32_to_bf16(x[i])) << std::bit_cast<uint32_t>(x[i]);
}

INSTANTIATE_TEST_SUITE_P(Isa, VectorMathTest, testing::Values(VectorIsa::kAvx2, VectorIsa::kAvx512),
                         [](const auto& instance) { return std::string(vector_isa_name(instance.param)); });

// Which NaN comes out of two is the compiler's choice (the operand order of an FMA), so a NaN counts as a NaN whatever its bits: no
// weight ever takes one (a step with a non-finite gradient is skipped).
void expect_same_bits(const std::vector<float>& a, const std::vector<float>& b, const char* name) {
  for (size_t i = 0; i < a.size(); ++i)
    if (!(std::isnan(a[i]) && std::isnan(b[i]))) {
      ASSERT_EQ(std::bit_cast<uint32_t>(a[i]), std::bit_cast<uint32_t>(b[i])) << name << " at " << i;
    }
}

TEST(VectorMathBits, Avx2AndAvx512Agree) {
  if (!cpu_features().avx512) GTEST_SKIP() << "no AVX-512 here";
  set_floating_point_mode();
  std::vector<float> x;
  const PhiloxStream random(11, RandomPurpose::kInit, 1, 0);
  for (int i = 0; i < 300007; ++i) x.push_back(std::bit_cast<float>(random.bits(i)));
  for (int i = 0; i < 300007; ++i) x.push_back((random.uniform(i + 1000000) - 0.5f) * 200.0f);
  const int64_t n = static_cast<int64_t>(x.size());
  std::vector<float> narrow(x.size()), wide(x.size());
  for (const Case& c : kCases) {
    (math_arrays(VectorIsa::kAvx2).*c.function)(x.data(), narrow.data(), n);
    (math_arrays(VectorIsa::kAvx512).*c.function)(x.data(), wide.data(), n);
    expect_same_bits(narrow, wide, c.name);
  }
  for (int64_t count : {0, 1, 15, 16, 17, 1000})
    EXPECT_EQ(std::bit_cast<uint32_t>(math_arrays(VectorIsa::kAvx2).sum(x.data() + 400000, count)),
              std::bit_cast<uint32_t>(math_arrays(VectorIsa::kAvx512).sum(x.data() + 400000, count)));
}

}  // namespace
}  // namespace orrery
