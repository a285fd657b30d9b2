// Initial weights: the vector draws of every instruction set give the bits of initial_normal(), and a parameter holds each of its tensors'
// elements where its segments say, whatever the number of threads.
#include "runtime/initialize.h"

#include <gtest/gtest.h>

#include <bit>
#include <vector>

#include "base/bfloat16.h"
#include "base/cpu_features.h"
#include "base/philox.h"
#include "runtime/normal_draws.h"
#include "runtime/normal_draws_isa.h"

namespace orrery {
namespace {

TEST(Initialize, VectorDrawsEqualScalarDraws) {
  const uint64_t seed = 0x123456789ABCDEFull;
  std::vector<DrawPairs> kernels = {draw_pairs_avx2};
  if (cpu_features().best_isa() == VectorIsa::kAvx512) kernels.push_back(draw_pairs_avx512);
  const PhiloxStream stream(seed, RandomPurpose::kInit, 9, 0);
  for (const DrawPairs draw : kernels)
    for (uint64_t group : {uint64_t{0}, uint64_t{77777}, (uint64_t{1} << 32) - 5})
      for (uint64_t g = group; g < group + 3000; g += kPairsAtOnce) {
        float out[2 * kPairsAtOnce];
        draw(stream.key(), 9, g, 0.02f, out);
        for (int64_t i = 0; i < 2 * kPairsAtOnce; ++i)
          ASSERT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(initial_normal(seed, 9, static_cast<int64_t>(2 * g) + i, 0.02f))) << "group " << g << ", element " << i;
      }
  for (int64_t first : {0, 1, 31, 1001})
    for (int64_t count : {0, 1, 2, 31, 32, 33, 100}) {
      std::vector<float> out(static_cast<size_t>(count + 1), 7.0f);
      initial_normals(seed, 4, first, count, 0.5f, out.data());
      for (int64_t i = 0; i < count; ++i) EXPECT_EQ(out[static_cast<size_t>(i)], initial_normal(seed, 4, first + i, 0.5f)) << first << " + " << i;
      EXPECT_EQ(out.back(), 7.0f);
    }
}

TEST(Initialize, SegmentsHoldTheirTensorsElements) {
  constexpr int64_t kColumns = 301, kRows = 90, kPadding = 2;
  ParameterSpec spec;
  spec.shape = {kRows, kColumns};
  spec.init = InitKind::kNormal;
  spec.init_std = 0.02f;
  spec.padding_rows = kPadding;
  // 40 rows of a plain tensor from its row 3 and column 5 on, then 48 rows of a transposed one from its column 7 and row 11 on.
  ParameterSegment plain, transposed;
  plain.tensor_shape = {64, 310};
  plain.tensor_row_begin = 3;
  plain.tensor_column_begin = 5;
  plain.num_rows = 40;
  plain.tensor_index = 2;
  transposed.tensor_shape = {330, 71};
  transposed.transpose = true;
  transposed.tensor_row_begin = 7;
  transposed.tensor_column_begin = 11;
  transposed.row_begin = 40;
  transposed.num_rows = 48;
  transposed.tensor_index = 3;
  spec.segments = {plain, transposed};
  for (int threads : {1, 2, 3}) {
    ThreadPool pool(threads, false);
    std::vector<float> values(kRows * kColumns, 7.0f);
    std::vector<uint16_t> high(kRows * kColumns, 7);
    std::vector<int16_t> low(kRows * kColumns, 7);
    initialize_parameter(spec, 5, DType::kF32, values.data(), nullptr, pool);
    initialize_parameter(spec, 5, DType::kBF16, high.data(), low.data(), pool);
    for (int64_t row = 0; row < kRows; ++row)
      for (int64_t column = 0; column < kColumns; ++column) {
        const float expected = row < 40   ? initial_normal(5, 2, (row + 3) * 310 + column + 5, 0.02f)
                               : row < 88 ? initial_normal(5, 3, (column + 11) * 71 + (row - 40 + 7), 0.02f)
                                          : 0.0f;
        const auto at = static_cast<size_t>(row * kColumns + column);
        ASSERT_EQ(values[at], expected) << row << ", " << column;
        ASSERT_EQ(high[at], master_high(expected));
        ASSERT_EQ(low[at], master_low(expected));
      }
  }
}

}  // namespace
}  // namespace orrery
