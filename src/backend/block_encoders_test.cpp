// Encoding then decoding: an element is off by no more than half a step of its block (and what rounding the block's scale adds), scales
// are found that beat the plain largest-value rule, and odd input (zeros, one value, huge, not finite) stays defined.
#include "backend/block_encoders.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace orrery {
namespace {

constexpr BlockType kTypes[] = {BlockType::kQ4_0, BlockType::kQ4_1, BlockType::kQ5_0, BlockType::kQ5_1, BlockType::kQ8_0, BlockType::kQ4_K, BlockType::kQ5_K, BlockType::kQ6_K};

std::vector<float> normal_values(int64_t count, float scale, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw(0, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = draw(random);
  return values;
}

std::vector<float> round_trip(BlockType type, const std::vector<float>& values) {
  std::vector<std::byte> blocks(static_cast<size_t>(block_bytes(type, static_cast<int64_t>(values.size()))));
  encode_blocks(type, values.data(), static_cast<int64_t>(values.size()), blocks.data());
  std::vector<float> out(values.size());
  decode_blocks(type, blocks.data(), static_cast<int64_t>(values.size()), out.data());
  return out;
}

double relative_error(const std::vector<float>& x, const std::vector<float>& y) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += std::pow(static_cast<double>(x[i]) - y[i], 2);
    norm += std::pow(static_cast<double>(x[i]), 2);
  }
  return std::sqrt(error / norm);
}

// Of normally distributed weights. An ideal uniform quantizer of 2^b levels over the range of a block's n normal numbers, about
// 2 sqrt(2 ln n) deviations, errs by range / 2^b / sqrt(12): 0.095 (b = 4), 0.046 (5) for n = 32; 0.021 (6) for n = 16; 0.006 (8).
// The limits leave a tenth for stored scales of 6 bits and the lopsided range of signed codes.
TEST(BlockEncoders, RelativeErrorIsThatOfTheirBits) {
  const std::vector<float> values = normal_values(256 * 256, 0.02f, 1);
  for (const BlockType type : kTypes) {
    const double error = relative_error(values, round_trip(type, values));
    const double bits = static_cast<double>(type == BlockType::kQ8_0                                                                     ? 8
                                            : type == BlockType::kQ6_K                                                                   ? 6
                                            : type == BlockType::kQ5_0 || type == BlockType::kQ5_1 || type == BlockType::kQ5_K ? 5
                                                                                                                                         : 4);
    const double range = 2 * std::sqrt(2 * std::log(type == BlockType::kQ6_K ? 16.0 : 32.0));
    const double ideal = range / std::exp2(bits) / std::sqrt(12.0);
    EXPECT_LT(error, 1.1 * ideal) << block_type_name(type);
    EXPECT_GT(error, 0.5 * ideal) << block_type_name(type);
  }
}

// The rule "the largest weight becomes -8": what a search has to beat.
TEST(BlockEncoders, BetterThanTheLargestValueRule) {
  const std::vector<float> values = normal_values(32 * 1000, 1, 2);
  std::vector<float> plain(values.size());
  for (size_t block = 0; block < values.size(); block += 32) {
    float extreme = 0;
    for (size_t i = 0; i < 32; ++i)
      if (std::fabs(values[block + i]) > std::fabs(extreme)) extreme = values[block + i];
    const float d = extreme / -8;
    for (size_t i = 0; i < 32; ++i) plain[block + i] = d * std::fmin(7.0f, std::round(values[block + i] / d));
  }
  // In the measure that the encoder minimizes.
  const auto weighted_error = [&](const std::vector<float>& made) {
    double error = 0;
    for (size_t block = 0; block < values.size(); block += 32) {
      double rms = 0;
      for (size_t i = block; i < block + 32; ++i) rms += std::pow(static_cast<double>(values[i]), 2) / 32;
      for (size_t i = block; i < block + 32; ++i) error += (std::sqrt(rms) + std::fabs(values[i])) * std::pow(static_cast<double>(values[i]) - made[i], 2);
    }
    return error;
  };
  EXPECT_LT(weighted_error(round_trip(BlockType::kQ4_0, values)), 0.9 * weighted_error(plain));
}

// What a type can say exactly comes back exactly: codes times a power of two.
TEST(BlockEncoders, ExactValuesStayExact) {
  std::vector<float> values(256);
  for (size_t i = 0; i < 256; ++i) values[i] = 0.5f * (static_cast<float>(i % 16) - 8);
  EXPECT_EQ(round_trip(BlockType::kQ4_0, values), values);
  EXPECT_EQ(round_trip(BlockType::kQ4_1, values), values);
}

TEST(BlockEncoders, OddBlocksAreDefined) {
  std::vector<float> values(256, 0.0f);
  for (const BlockType type : kTypes) {
    EXPECT_EQ(round_trip(type, values), values) << block_type_name(type);
    for (const float lone : {1e-38f, 3.0f, -3.0f, 6e4f}) {
      std::vector<float> one = values;
      one[37] = lone;
      const std::vector<float> out = round_trip(type, one);
      for (size_t i = 0; i < 256; ++i) EXPECT_TRUE(std::isfinite(out[i])) << block_type_name(type);
      if (std::fabs(lone) > 1) {
        EXPECT_NEAR(out[37], lone, 0.02f * std::fabs(lone)) << block_type_name(type);
      }
    }
    if (type == BlockType::kQ8_0) continue;
    std::vector<float> bad = normal_values(256, 1, 3);
    bad[5] = std::numeric_limits<float>::infinity();
    bad[99] = std::nanf("");
    for (const float value : round_trip(type, bad)) EXPECT_TRUE(std::isfinite(value)) << block_type_name(type);
  }
}

}  // namespace
}  // namespace orrery
