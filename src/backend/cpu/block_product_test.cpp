// Proves that emulated arithmetic equals the native instructions bit for bit (NUMERICS rule 1), that AVX2 and AVX-512 agree,
// that a chain goes on across calls, and that an element depends only on its row and column.
#include "backend/cpu/block_product.h"

#include <random>

#include "backend/cpu/op_test_util.h"

namespace orrery {
namespace {

struct Operands {
  std::vector<uint16_t> a, b;
  std::vector<float> a32, b32, c;
};

Operands make(int64_t m, int64_t n, int64_t k) {
  Operands o;
  const PhiloxStream random(4, RandomPurpose::kInit, 1, 0);
  uint64_t counter = 0;
  // Exponents over a range of 2^16, so that additions round in every possible way.
  const auto value = [&] {
    const uint32_t bits = random.bits(counter++);
    return std::ldexp(static_cast<float>(bits & 0xFFFF) / 65536.0f - 0.5f, static_cast<int>((bits >> 16) % 17) - 8);
  };
  for (int64_t i = 0; i < m * k; ++i) o.a.push_back(f32_to_bf16(o.a32.emplace_back(value())));
  for (int64_t i = 0; i < n * k; ++i) o.b.push_back(f32_to_bf16(o.b32.emplace_back(value())));
  for (int64_t i = 0; i < m * n; ++i) o.c.push_back(value());
  return o;
}

std::vector<float> run(const BlockProduct& product, const Operands& o, bool bf16, int64_t m, int64_t n, int64_t k,
                       bool accumulate, int64_t split = 0) {
  std::vector<float> c = o.c;
  const int64_t bytes = bf16 ? 2 : 4;
  const auto part = [&](int64_t begin, int64_t end, bool go_on) {
    const char* a = bf16 ? reinterpret_cast<const char*>(o.a.data()) : reinterpret_cast<const char*>(o.a32.data());
    const char* b = bf16 ? reinterpret_cast<const char*>(o.b.data()) : reinterpret_cast<const char*>(o.b32.data());
    product.run({a + begin * bytes, k, b + begin * 16 * bytes, k * 16, c.data(), n, m, n, end - begin, go_on});
  };
  set_floating_point_mode();
  product.begin();
  part(0, split > 0 ? split : k, accumulate);
  if (split > 0) part(split, k, true);
  product.end();
  return c;
}

TEST(BlockProduct, EmulationEqualsNativeAndInstructionSetsAgree) {
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{{32, 16, 32}, {64, 48, 96}, {32, 64, 256}})
    for (bool accumulate : {false, true}) {
      const Operands o = make(m, n, k);
      for (Arithmetic arithmetic : {Arithmetic::kAmx32, Arithmetic::kDp2, Arithmetic::kFma1}) {
        const auto plain = run(block_product(DType::kBF16, VectorIsa::kAvx2, arithmetic, false), o, true, m, n, k, accumulate);
        EXPECT_EQ(plain, run(block_product(DType::kBF16, VectorIsa::kAvx2, arithmetic, false), o, true, m, n, k, accumulate,
                             32 * (k / 64)));
        if (cpu_features().avx512) {
          EXPECT_EQ(plain,
                    run(block_product(DType::kBF16, VectorIsa::kAvx512, arithmetic, false), o, true, m, n, k, accumulate));
          EXPECT_EQ(plain, run(block_product(DType::kBF16, VectorIsa::kAvx512, arithmetic, true), o, true, m, n, k, accumulate))
              << "native " << arithmetic_name(arithmetic);
        }
      }
      const auto f32 =
          run(block_product(DType::kF32, VectorIsa::kAvx2, Arithmetic::kFma1, false), o, false, m, n, k, accumulate);
      if (cpu_features().avx512) {
        EXPECT_EQ(f32,
                  run(block_product(DType::kF32, VectorIsa::kAvx512, Arithmetic::kFma1, false), o, false, m, n, k, accumulate));
      }
      for (int64_t row : {int64_t{0}, m - 1})
        for (int64_t column : {int64_t{0}, n - 1}) {
          float expected = accumulate ? o.c[row * n + column] : 0.0f;
          for (int64_t i = 0; i < k; ++i)
            expected = std::fma(o.a32[row * k + i], o.b32[(column / 16 * k + i) * 16 + column % 16], expected);
          EXPECT_EQ(f32[row * n + column], expected);
        }
    }
}

}  // namespace
}  // namespace orrery
