// The slowest stage is as fast as any cut allows, and no cut with such a stage is more even: compared with all cuts, over random costs.
#include "parallel/split_layers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <random>
#include <utility>

#include "base/error.h"

namespace orrery {
namespace {

// Of a cut: its slowest stage, the sum of squares.
using Quality = std::pair<double, double>;

Quality quality(const std::vector<double>& costs, const std::vector<int32_t>& ends) {
  Quality quality{0, 0};
  int32_t layer = 0;
  for (int32_t end : ends) {
    double stage = 0;
    for (; layer < end; ++layer) stage += costs[static_cast<size_t>(layer)];
    quality.first = std::max(quality.first, stage), quality.second += stage * stage;
  }
  return quality;
}

Quality best_of_all_cuts(const std::vector<double>& costs, int32_t num_stages) {
  Quality best{std::numeric_limits<double>::infinity(), 0};
  std::vector<int32_t> ends;
  const std::function<void(int32_t)> cut = [&](int32_t first) {
    if (static_cast<int32_t>(ends.size()) + 1 == num_stages) {
      ends.push_back(static_cast<int32_t>(costs.size()));
      best = std::min(best, quality(costs, ends));
      ends.pop_back();
      return;
    }
    for (int32_t end = first + 1; end < static_cast<int32_t>(costs.size()); ++end) {
      ends.push_back(end);
      cut(end);
      ends.pop_back();
    }
  };
  cut(0);
  return best;
}

TEST(SplitLayers, EqualsTheBestOfAllCuts) {
  std::mt19937 random(7);
  for (int32_t trial = 0; trial < 300; ++trial) {
    std::vector<double> costs(1 + random() % 9);
    for (double& cost : costs) cost = static_cast<double>(random() % 20);  // whole numbers: sums are exact
    for (int32_t stages = 1; stages <= static_cast<int32_t>(costs.size()); ++stages) {
      const std::vector<int32_t> ends = split_layers(costs, stages);
      ASSERT_EQ(ends.size(), static_cast<size_t>(stages));
      EXPECT_EQ(ends.back(), static_cast<int32_t>(costs.size()));
      EXPECT_TRUE(ends.front() > 0 && std::adjacent_find(ends.begin(), ends.end(), std::greater_equal<>()) == ends.end()) << "trial " << trial;
      EXPECT_EQ(quality(costs, ends), best_of_all_cuts(costs, stages)) << "trial " << trial;
    }
  }
}

TEST(SplitLayers, EqualLayersAndAHeavyHead) {
  EXPECT_EQ(split_layers(std::vector<double>(8, 1), 4), (std::vector<int32_t>{2, 4, 6, 8}));
  EXPECT_EQ(split_layers(std::vector<double>{1, 1, 1, 1, 1, 1, 3}, 3), (std::vector<int32_t>{3, 6, 7}));
  EXPECT_EQ(split_layers(std::vector<double>(10, 1), 4), (std::vector<int32_t>{2, 4, 7, 10}));
  // Eighty layers and a head worth 1.2 on 40 stages: none is without layers because others may have three.
  std::vector<double> costs(81, 1);
  costs.back() = 1.2;
  const std::vector<int32_t> ends = split_layers(costs, 40);
  EXPECT_EQ(ends[0], 2);
  EXPECT_EQ(ends[38], 79);
  EXPECT_THROW(split_layers(std::vector<double>{1, 1}, 3), Error);
}

}  // namespace
}  // namespace orrery
