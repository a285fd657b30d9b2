// The in-cache product: every way to compute one arithmetic id (AMX, vdpbf16ps, FMAs of both instruction sets) gives the bits of plain loops in
// its order, cutting K at the granule or taking a in panels changes nothing, and the result is close to f64.
#include "backend/cpu/tile_gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "backend/cpu/tile_gemm_isa.h"
#include "base/bfloat16.h"
#include "base/philox.h"

namespace orrery {

TileGemm amx_tile_gemm_in_software();  // tile_gemm_amx_software_test.cpp

namespace {

float random_value(uint32_t i, uint32_t stream) {
  const auto words = philox4x32({i, stream, 0, 0}, {9, 9});
  const float mantissa = static_cast<float>(words[0]) * 0x1p-31f - 1.0f;
  return mantissa * std::exp2(static_cast<float>(words[1] % 12) - 6.0f);
}

struct Problem {
  int64_t m, n, k;
  std::vector<uint16_t> a, b;  // a [m, k padded], b [n, k]
  std::vector<float> c0;
};

Problem make_problem(int64_t m, int64_t n, int64_t k) {
  const int64_t padded = round_up(k, kGranuleK);
  Problem problem{
      m, n, k, std::vector<uint16_t>(m * padded), std::vector<uint16_t>(n * k), std::vector<float>(m * round_up(n, 16))};
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < k; ++j) problem.a[i * padded + j] = f32_to_bf16(random_value(static_cast<uint32_t>(i * k + j), 1));
  for (size_t i = 0; i < problem.b.size(); ++i) problem.b[i] = f32_to_bf16(random_value(static_cast<uint32_t>(i), 2));
  for (size_t i = 0; i < problem.c0.size(); ++i) problem.c0[i] = random_value(static_cast<uint32_t>(i), 3);
  return problem;
}

std::vector<float> multiply(const TileGemm& gemm, const Problem& problem, bool accumulate, int64_t cut = 0) {
  const int64_t padded = round_up(problem.k, kGranuleK), columns = round_up(problem.n, 16),
                stride = panel_elements_bf16(problem.k);
  std::vector<uint16_t> panels(columns / 16 * stride, 0x7FC0);
  gemm.pack_transposed_bf16(problem.n, problem.k, problem.b.data(), problem.k, panels.data(), stride);
  std::vector<float> c = problem.c0;
  gemm.begin_thread();
  if (cut == 0) {
    gemm.bf16(problem.m, columns, padded, problem.a.data(), padded, panels.data(), stride, c.data(), columns, accumulate);
  } else {
    gemm.bf16(problem.m, columns, cut, problem.a.data(), padded, panels.data(), stride, c.data(), columns, accumulate);
    gemm.bf16(problem.m, columns, padded - cut, problem.a.data() + cut, padded, panels.data() + cut * 16, stride, c.data(),
              columns, true);
  }
  gemm.end_thread();
  return c;
}

// The product in the order that NUMERICS rule 1 gives an arithmetic id, one fma at a time.
std::vector<float> multiply_in_order(Arithmetic arithmetic, const Problem& problem, bool accumulate) {
  const int64_t padded = round_up(problem.k, kGranuleK), columns = round_up(problem.n, 16);
  std::vector<float> c(problem.c0.size());
  for (int64_t i = 0; i < problem.m; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      const auto a = [&](int64_t p) { return bf16_to_f32(problem.a[i * padded + p]); };
      const auto b = [&](int64_t p) { return j < problem.n && p < problem.k ? bf16_to_f32(problem.b[j * problem.k + p]) : 0.0f; };
      float sum = accumulate ? problem.c0[i * columns + j] : 0.0f;
      for (int64_t k0 = 0; k0 < padded; k0 += kGranuleK) {
        float even = 0, odd = 0;
        for (int64_t p = k0; p < k0 + kGranuleK; p += 2) switch (arithmetic) {
            case Arithmetic::kAmx32:
              even = std::fma(a(p), b(p), even);
              odd = std::fma(a(p + 1), b(p + 1), odd);
              break;
            case Arithmetic::kDp2: sum = std::fma(a(p), b(p), std::fma(a(p + 1), b(p + 1), sum)); break;
            case Arithmetic::kFma1: sum = std::fma(a(p + 1), b(p + 1), std::fma(a(p), b(p), sum)); break;
          }
        if (arithmetic == Arithmetic::kAmx32) sum += even + odd;
      }
      c[i * columns + j] = sum;
    }
  return c;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

class TileGemmTest : public testing::Test {
 protected:
  void SetUp() override { set_floating_point_mode(); }
};

constexpr int64_t kShapes[][3] = {{1, 16, 32},   {16, 32, 64}, {17, 16, 33}, {32, 48, 96},
                                  {33, 64, 160}, {7, 80, 257}, {64, 32, 31}, {50, 33, 128},
                                  {1, 144, 96},  {2, 160, 64}, {3, 112, 96}, {4, 112, 64}, {69, 80, 1536}};

// Every way to compute an arithmetic id on this processor.
std::vector<std::pair<std::string, TileGemm>> all_ways(Arithmetic arithmetic) {
  std::vector<std::pair<std::string, TileGemm>> ways = {{"AVX2", tile_gemm({nullptr, VectorIsa::kAvx2, arithmetic, false})}};
  if (cpu_features().avx512) ways.emplace_back("AVX-512", tile_gemm({nullptr, VectorIsa::kAvx512, arithmetic, false}));
  if (arithmetic == Arithmetic::kAmx32 && cpu_features().amx_bf16) ways.emplace_back("AMX", tile_gemm({nullptr, VectorIsa::kAvx512, arithmetic, true}));
  // Asked for by name: where FMAs are faster, the table of the native arithmetic does without it.
  if (arithmetic == Arithmetic::kDp2 && cpu_features().avx512_bf16) {
    ways.emplace_back("vdpbf16ps", ways.back().second);
    set_blocks_by_vdpbf16ps(ways.back().second);
  }
  return ways;
}

TEST_F(TileGemmTest, OneArithmeticOneResult) {
  if (!cpu_features().avx512_bf16 && !cpu_features().amx_bf16) std::puts("no AMX and no vdpbf16ps here: only FMAs are compared");
  for (Arithmetic arithmetic : {Arithmetic::kAmx32, Arithmetic::kDp2, Arithmetic::kFma1})
    for (const auto& shape : kShapes)
      for (bool accumulate : {false, true}) {
        const Problem problem = make_problem(shape[0], shape[1], shape[2]);
        const int64_t cut = shape[2] > 32 ? 32 : 0;
        const auto reference = multiply_in_order(arithmetic, problem, accumulate);
        for (const auto& [name, gemm] : all_ways(arithmetic)) {
          SCOPED_TRACE(testing::Message() << name << " " << arithmetic_name(arithmetic) << " " << shape[0] << "x" << shape[1] << "x" << shape[2]);
          EXPECT_TRUE(same_bits(reference, multiply(gemm, problem, accumulate)));
          EXPECT_TRUE(same_bits(reference, multiply(gemm, problem, accumulate, cut)));
        }
      }
}

// The weight gradient's product: a row by row or in panels, stored or added, is the product in order, with one addition after it.
TEST_F(TileGemmTest, FoldTakesRowsAndPanels) {
  int num_folds = 0;
  for (Arithmetic arithmetic : {Arithmetic::kAmx32, Arithmetic::kDp2, Arithmetic::kFma1})
    for (const auto& shape : kShapes) {
      const Problem problem = make_problem(shape[0], shape[1], shape[2]);
      const std::vector<float> product = multiply_in_order(arithmetic, problem, false);
      std::vector<float> sum = problem.c0;
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += product[i];
      for (const auto& [name, gemm] : all_ways(arithmetic)) {
        if (gemm.fold_bf16 == nullptr) continue;
        ++num_folds;
        const int64_t m = problem.m, padded = round_up(problem.k, kGranuleK), columns = round_up(problem.n, 16), stride = panel_elements_bf16(padded);
        std::vector<uint16_t> b(columns / 16 * stride), a(round_up(m, 16) / 16 * stride);
        gemm.pack_transposed_bf16(problem.n, problem.k, problem.b.data(), problem.k, b.data(), stride);
        gemm.pack_transposed_bf16(m, padded, problem.a.data(), padded, a.data(), stride);
        gemm.begin_thread();
        for (bool packed : {false, true})
          for (bool adds : {false, true}) {
            std::vector<float> c = problem.c0;
            gemm.fold_bf16(m, columns, padded, packed ? a.data() : problem.a.data(), packed ? stride : padded, packed, b.data(), stride, c.data(), columns,
                           adds, {problem.c0.data(), columns * 4, columns * 4, m});
            EXPECT_TRUE(same_bits(adds ? sum : product, c)) << name << " " << m << "x" << columns << "x" << padded << (packed ? " packed" : "") << (adds ? " added" : "");
          }
        gemm.end_thread();
      }
    }
  if (num_folds == 0) GTEST_SKIP() << "no AVX-512 here: the product that adds was not compared";
}

// Against products by FMA that are finished afterwards: products, and products that finish their blocks in whatever way, with rows and
// columns that fill no tile, K in more than one block, and results that lie in the midst of a wider matrix.
void expect_finished_blocks(Arithmetic arithmetic, const TileGemm& gemm) {
  const TileGemm& emulated = tile_gemm({nullptr, VectorIsa::kAvx2, arithmetic, false});
  const GemmRows& rows = gemm_rows(VectorIsa::kAvx512, DType::kBF16);
  std::vector<std::array<int64_t, 3>> shapes = {{96, 96, 1088}, {100, 64, 2048}, {40, 16, 64}, {130, 112, 544}};
  for (const auto& shape : kShapes) shapes.push_back({shape[0], shape[1], shape[2]});
  for (const auto& [m, n, k] : shapes)
    for (bool accumulate : {false, true}) {
      SCOPED_TRACE(testing::Message() << m << " x " << n << " x " << k << (accumulate ? ", accumulated" : ""));
      const Problem problem = make_problem(m, n, k);
      const std::vector<float> product = multiply(emulated, problem, accumulate);
      EXPECT_TRUE(same_bits(product, multiply(gemm, problem, accumulate)));
      const int64_t padded = round_up(k, kGranuleK), columns = round_up(n, 16), stride = panel_elements_bf16(k), ld = n + 3;
      std::vector<uint16_t> panels(columns / 16 * stride), bias(n), u(m * ld);
      gemm.pack_transposed_bf16(n, k, problem.b.data(), k, panels.data(), stride);
      for (int64_t i = 0; i < n; ++i) bias[i] = f32_to_bf16(random_value(static_cast<uint32_t>(i), 7));
      for (int64_t i = 0; i < m * ld; ++i) u[i] = f32_to_bf16(random_value(static_cast<uint32_t>(i), 8));
      for (FinishKind kind : {FinishKind::kPlain, FinishKind::kF32, FinishKind::kGelu, FinishKind::kGeluGrad}) {
        const auto finish = [&](std::vector<float>& y, std::vector<uint16_t>& gelu_y, const float* c, const std::function<void(const GemmBlock&)>& run) {
          y.assign(m * ld, 5.0f);
          gelu_y.assign(m * ld, 6);
          GemmBlock block{m, n, c, columns, kind == FinishKind::kGeluGrad ? nullptr : bias.data(), y.data(), ld};
          if (kind == FinishKind::kGeluGrad) block.u = u.data(), block.ldu = ld;
          if (kind == FinishKind::kGelu) block.gelu_y = gelu_y.data(), block.ld_gelu = ld;
          run(block);
        };
        std::vector<float> y, expected_y, c = problem.c0;
        std::vector<uint16_t> gelu_y, expected_gelu_y;
        finish(expected_y, expected_gelu_y, product.data(), rows.finish[static_cast<int>(kind)]);
        gemm.begin_thread();
        finish(y, gelu_y, c.data(), [&](const GemmBlock& block) {
          gemm.finish_bf16(m, columns, padded, problem.a.data(), padded, panels.data(), stride, c.data(), columns, accumulate, kind, block);
        });
        gemm.end_thread();
        EXPECT_TRUE(same_bits(expected_y, y)) << "kind " << static_cast<int>(kind);
        EXPECT_EQ(expected_gelu_y, gelu_y) << "kind " << static_cast<int>(kind);
      }
    }
}

TEST_F(TileGemmTest, BlocksAreFinished) {
  if (!cpu_features().avx512) GTEST_SKIP() << "no AVX-512 here: no product finishes its own blocks";
  for (Arithmetic arithmetic : {Arithmetic::kAmx32, Arithmetic::kDp2, Arithmetic::kFma1})
    for (const auto& [name, gemm] : all_ways(arithmetic)) {
      SCOPED_TRACE(testing::Message() << name << " " << arithmetic_name(arithmetic));
      if (gemm.finish_bf16 != nullptr) expect_finished_blocks(arithmetic, gemm);
    }
}

TEST_F(TileGemmTest, AmxKernelsOverTilesInSoftware) {
  if (!cpu_features().avx512) GTEST_SKIP() << "no AVX-512 here: the AMX kernels were not run over tiles in software";
  expect_finished_blocks(Arithmetic::kAmx32, amx_tile_gemm_in_software());
}

// |error| <= (k + 3) * eps * sum |a b|: each of the k products and sums rounds once, eps = 2^-24.
TEST_F(TileGemmTest, CloseToF64) {
  for (Arithmetic arithmetic : {Arithmetic::kAmx32, Arithmetic::kDp2, Arithmetic::kFma1})
    for (const auto& shape : kShapes) {
      const Problem problem = make_problem(shape[0], shape[1], shape[2]);
      const int64_t padded = round_up(problem.k, kGranuleK), columns = round_up(problem.n, 16);
      const auto c = multiply(tile_gemm({nullptr, cpu_features().best_isa(), arithmetic, true}), problem, false);
      for (int64_t i = 0; i < problem.m; ++i)
        for (int64_t j = 0; j < problem.n; ++j) {
          double sum = 0, magnitude = 0;
          for (int64_t p = 0; p < problem.k; ++p) {
            const double product =
                static_cast<double>(bf16_to_f32(problem.a[i * padded + p])) * bf16_to_f32(problem.b[j * problem.k + p]);
            sum += product;
            magnitude += std::abs(product);
          }
          EXPECT_NEAR(c[i * columns + j], sum, static_cast<double>(problem.k + 3) * 0x1p-24 * magnitude);
        }
    }
}

// f32 panels and products (chains of kChainF32, met in order) and the two transpositions against plain loops.
TEST_F(TileGemmTest, PackingAndF32) {
  for (VectorIsa isa : {VectorIsa::kAvx2, VectorIsa::kAvx512}) {
    if (isa == VectorIsa::kAvx512 && !cpu_features().avx512) continue;
    const TileGemm& gemm = tile_gemm({nullptr, isa, Arithmetic::kFma1, false});
    for (const auto& shape : kShapes) {
      const int64_t m = shape[0], n = shape[1], k = shape[2], columns = round_up(n, 16);
      std::vector<float> a(m * k), b(n * k), bt(k * n), panels(columns * k, NAN), other(columns * k, NAN), c(m * columns);
      for (size_t i = 0; i < a.size(); ++i) a[i] = random_value(static_cast<uint32_t>(i), 4);
      for (int64_t j = 0; j < n; ++j)
        for (int64_t p = 0; p < k; ++p) bt[p * n + j] = b[j * k + p] = random_value(static_cast<uint32_t>(j * k + p), 5);
      gemm.pack_transposed_f32(n, k, b.data(), k, panels.data(), panel_elements_f32(k));
      gemm.pack_rows_f32(k, n, bt.data(), n, other.data(), panel_elements_f32(k));
      EXPECT_TRUE(same_bits(panels, other));
      gemm.f32(m, columns, k, a.data(), k, panels.data(), panel_elements_f32(k), c.data(), columns, false);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
          float sum = 0;
          for (int64_t first = 0; first < k; first += kChainF32) {
            float chain = 0;
            for (int64_t p = first; p < std::min(k, first + kChainF32); ++p) chain = std::fma(a[i * k + p], b[j * k + p], chain);
            sum += chain;
          }
          EXPECT_EQ(sum, c[i * columns + j]);
        }
      const int64_t padded = round_up(k, 32), stride = panel_elements_bf16(k);
      std::vector<uint16_t> hb(n * k), hbt(k * n), hpanels(columns / 16 * stride, 7), hother(columns / 16 * stride, 9),
          ht(n * padded, 5);
      for (int64_t j = 0; j < n; ++j)
        for (int64_t p = 0; p < k; ++p) hbt[p * n + j] = hb[j * k + p] = static_cast<uint16_t>(j * 131 + p * 7 + 1);
      gemm.pack_transposed_bf16(n, k, hb.data(), k, hpanels.data(), stride);
      gemm.pack_rows_bf16(k, n, hbt.data(), n, hother.data(), stride);
      EXPECT_EQ(hpanels, hother);
      gemm.transpose_bf16(k, n, hbt.data(), n, ht.data(), padded);
      for (int64_t j = 0; j < n; ++j)
        for (int64_t p = 0; p < padded; ++p) EXPECT_EQ(ht[j * padded + p], p < k ? hb[j * k + p] : 0);
    }
  }
}

}  // namespace
}  // namespace orrery
