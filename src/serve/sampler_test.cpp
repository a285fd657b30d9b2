// Draws follow the distribution that the options describe, and depend on (seed, position) alone.
#include "serve/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace orrery {
namespace {

TEST(Sampler, GreedyTakesTheFirstOfTheLargest) {
  Sampler sampler({});
  const float logits[] = {1.0f, std::numeric_limits<float>::quiet_NaN(), 3.0f, 3.0f};
  EXPECT_EQ(sampler.draw(logits, 0), 2);
}

// 20,000 draws from four tokens: each count within five standard deviations of its expectation.
TEST(Sampler, FollowsTheDistribution) {
  const float logits[] = {0.0f, std::log(2.0f), std::log(3.0f), std::log(4.0f)};
  struct Case {
    SamplingOptions options;
    double expected[4];
  };
  const Case cases[] = {{{1.0, 0, 1.0, 7}, {0.1, 0.2, 0.3, 0.4}},
                        {{1.0, 2, 1.0, 7}, {0, 0, 3.0 / 7, 4.0 / 7}},
                        {{1.0, 0, 0.65, 7}, {0, 0, 3.0 / 7, 4.0 / 7}},
                        {{0.5, 0, 1.0, 7}, {1.0 / 30, 4.0 / 30, 9.0 / 30, 16.0 / 30}}};
  for (const Case& test : cases) {
    Sampler sampler(test.options);
    constexpr int kDraws = 20000;
    int counts[4] = {};
    for (int position = 0; position < kDraws; ++position) ++counts[sampler.draw(logits, position)];
    for (int token = 0; token < 4; ++token) {
      const double p = test.expected[token];
      EXPECT_NEAR(counts[token], kDraws * p, 5 * std::sqrt(kDraws * p * (1 - p)) + 1e-9);
    }
  }
}

TEST(Sampler, DependsOnSeedAndPositionAlone) {
  std::vector<float> logits(50);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 7);
  Sampler a({1.0, 0, 1.0, 3}), b({1.0, 0, 1.0, 3}), c({1.0, 0, 1.0, 4});
  int differ = 0;
  for (int64_t position = 200; position-- > 0;) {
    const int32_t drawn = a.draw(logits, position);
    EXPECT_EQ(drawn, b.draw(logits, position));
    differ += drawn != c.draw(logits, position);
  }
  EXPECT_GT(differ, 100);
}

}  // namespace
}  // namespace orrery
