// The order of samples: the window permutation is a bijection for many sizes and keys, and a mixture keeps every source within
// one sample of its share at every prefix, checked against the definition.
#include "data/sample_order.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>

namespace orrery {
namespace {

TEST(WindowPermutation, IsABijection) {
  for (uint64_t count : {1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 257, 1000, 4096, 4097, 10007})
    for (uint32_t epoch : {0u, 1u, 9u}) {
      const WindowPermutation permutation(count, {.seed = 42, .source = 3, .epoch = epoch});
      std::vector<bool> seen(count, false);
      for (uint64_t i = 0; i < count; ++i) {
        const uint64_t value = permutation(i);
        ASSERT_LT(value, count);
        ASSERT_FALSE(seen[value]) << count;
        seen[value] = true;
      }
    }
}

TEST(WindowPermutation, LargeCountsStayInRangeAndDiffer) {
  for (uint64_t count : {uint64_t{1} << 32, (uint64_t{1} << 40) + 12345, (uint64_t{1} << 62) + 7}) {
    const WindowPermutation permutation(count, {.seed = 1, .source = 0, .epoch = 0});
    std::set<uint64_t> values;
    for (uint64_t i = 0; i < 2000; ++i) values.insert(permutation(i));
    EXPECT_EQ(values.size(), 2000u);
    EXPECT_LT(*values.rbegin(), count);
  }
}

TEST(WindowPermutation, SeedSourceAndEpochChangeTheOrder) {
  const auto first = [](WindowPermutation::Key key) {
    std::vector<uint64_t> values;
    for (uint64_t i = 0; i < 100; ++i) values.push_back(WindowPermutation(1000, key)(i));
    return values;
  };
  const auto base = first({1, 0, 0});
  EXPECT_EQ(base, first({1, 0, 0}));
  EXPECT_NE(base, first({2, 0, 0}));
  EXPECT_NE(base, first({1, 1, 0}));
  EXPECT_NE(base, first({1, 0, 1}));
}

void expect_within_one_sample(const std::vector<double>& weights) {
  const Mixture mixture(weights);
  std::vector<int64_t> taken(weights.size(), 0);
  const auto period = static_cast<int64_t>(mixture.period());
  const double bound = weights.size() == 1 ? 0 : 1.0 - 1.0 / (2.0 * static_cast<double>(weights.size()) - 2.0);
  for (int64_t g = 0; g < 2 * period + 3; ++g) {
    const Mixture::Pick pick = mixture.pick(static_cast<uint64_t>(g));
    ASSERT_EQ(pick.ordinal, static_cast<uint64_t>(taken[pick.source]));
    ++taken[pick.source];
    for (size_t k = 0; k < weights.size(); ++k) {
      const double share = static_cast<double>(mixture.units()[k]) * static_cast<double>(g + 1) / static_cast<double>(period);
      ASSERT_LE(std::abs(static_cast<double>(taken[k]) - share), bound + 1e-9) << "prefix " << g + 1 << " source " << k;
    }
  }
}

TEST(Mixture, EveryPrefixIsWithinOneSample) {
  expect_within_one_sample({1});
  expect_within_one_sample({1, 1});
  expect_within_one_sample({0.7, 0.3});
  expect_within_one_sample({0.5, 0.3, 0.2});
  expect_within_one_sample({5, 1, 1, 1, 1, 1, 1});
  expect_within_one_sample({1.0 / 3, 2.0 / 3});  // rounded
  std::mt19937_64 random(5);
  for (int trial = 0; trial < 40; ++trial) {
    std::vector<double> weights(2 + random() % 9);
    for (double& weight : weights) weight = static_cast<double>(1 + random() % 60);
    expect_within_one_sample(weights);
  }
}

TEST(Mixture, WeightsBecomeUnits) {
  const std::vector<double> decimal{0.7, 0.25, 0.05};
  const Mixture exact(decimal);
  EXPECT_EQ(std::vector<uint64_t>(exact.units().begin(), exact.units().end()), (std::vector<uint64_t>{14, 5, 1}));
  const std::vector<double> tiny{1.0, 1e-9, 3.14159265358979};
  const Mixture rounded(tiny);
  EXPECT_EQ(rounded.period(), 65536u);
  EXPECT_EQ(rounded.units()[1], 1u);
  EXPECT_NEAR(static_cast<double>(rounded.units()[2]) / 65536, 3.14159265358979 / 4.14159265458979, 3e-5);
  for (double bad : {0.0, -1.0, std::nan(""), double{INFINITY}}) {
    const std::vector<double> weights{1.0, bad};
    EXPECT_ANY_THROW(Mixture{weights});
  }
}

}  // namespace
}  // namespace orrery
