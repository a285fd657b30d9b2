// Draws follow the distribution that the options describe, computed apart by sorting everything in f64, and depend on (seed, position)
// alone.
#include "serve/sampling/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>

namespace orrery {
namespace {

int32_t draw(const SamplingOptions& options, std::span<const float> logits, int64_t position, TokenMask mask = {}) {
  SamplerScratch scratch;
  return Sampler(options).sample(logits, position, mask, &scratch).id;
}

// The definition: probabilities after temperature, filters in their order, by full sorts.
std::map<int32_t, double> reference(const SamplingOptions& options, std::span<const float> logits) {
  std::vector<std::pair<double, int32_t>> kept;
  for (size_t i = 0; i < logits.size(); ++i) kept.push_back({-logits[i] / options.temperature, static_cast<int32_t>(i)});
  std::sort(kept.begin(), kept.end());
  const double top = -kept[0].first;
  const auto weight = [&](const auto& entry) { return std::exp(-entry.first - top); };
  if (options.top_k > 0) kept.resize(std::min(kept.size(), static_cast<size_t>(options.top_k)));
  std::erase_if(kept, [&](const auto& entry) { return weight(entry) < options.min_p; });
  const auto total = [&] { return std::accumulate(kept.begin(), kept.end(), 0.0, [&](double sum, const auto& entry) { return sum + weight(entry); }); };
  const auto cut = [&](double share) {
    const double wanted = share * total();
    double held = 0;
    size_t count = 0;
    while (count < kept.size() && held < wanted) held += weight(kept[count++]);
    kept.resize(count);
  };
  if (options.typical_p < 1) {
    const double sum = total();
    double entropy = 0;
    for (const auto& entry : kept) entropy -= weight(entry) / sum * std::log(weight(entry) / sum);
    std::stable_sort(kept.begin(), kept.end(), [&](const auto& a, const auto& b) {
      return std::abs(-std::log(weight(a) / sum) - entropy) < std::abs(-std::log(weight(b) / sum) - entropy);
    });
    cut(options.typical_p);
    std::sort(kept.begin(), kept.end());
  }
  if (options.top_p < 1) cut(options.top_p);
  std::map<int32_t, double> result;
  const double sum = total();
  for (const auto& entry : kept) result[entry.second] = weight(entry) / sum;
  return result;
}

TEST(Sampler, GreedyTakesTheFirstOfTheLargest) {
  const float logits[] = {1.0f, std::numeric_limits<float>::quiet_NaN(), 3.0f, 3.0f};
  EXPECT_EQ(draw({}, logits, 0), 2);
  const float nothing[] = {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()};
  EXPECT_EQ(draw({}, nothing, 0), -1);
  EXPECT_EQ(draw({.temperature = 1}, nothing, 0), -1);
}

// 20,000 draws under fixed seeds. Chi-square over the ids with an expectation of at least 5 draws: below dof + 5 sqrt(2 dof), five standard
// deviations; ids that a filter drops are never drawn.
TEST(Sampler, FollowsTheDistribution) {
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(300);
  for (float& logit : logits) logit = normal(random);
  const SamplingOptions cases[] = {
      {.temperature = 1, .seed = 7},
      {.temperature = 0.5, .seed = 8},
      {.temperature = 1, .top_k = 20, .seed = 9},
      {.temperature = 1, .top_p = 0.7, .seed = 10},
      {.temperature = 1.3, .top_k = 50, .top_p = 0.8, .seed = 11},
      {.temperature = 1, .seed = 12, .min_p = 0.05},
      {.temperature = 1, .seed = 13, .typical_p = 0.6},
      {.temperature = 0.9, .top_k = 40, .top_p = 0.9, .seed = 14, .min_p = 0.01, .typical_p = 0.95},
  };
  for (const SamplingOptions& options : cases) {
    const std::map<int32_t, double> expected = reference(options, logits);
    constexpr int kDraws = 20000;
    std::map<int32_t, int> counts;
    Sampler sampler(options);
    SamplerScratch scratch;
    for (int position = 0; position < kDraws; ++position) ++counts[sampler.sample(logits, position, {}, &scratch).id];
    for (const auto& [id, count] : counts) EXPECT_TRUE(expected.contains(id)) << options.seed << " drew " << id;
    double chi_square = 0, rest = kDraws, rest_drawn = kDraws;
    int degrees = 0;
    for (const auto& [id, p] : expected) {
      if (kDraws * p < 5) continue;
      const double difference = counts[id] - kDraws * p;
      chi_square += difference * difference / (kDraws * p);
      rest -= kDraws * p;
      rest_drawn -= counts[id];
      ++degrees;
    }
    if (rest > 5) chi_square += (rest_drawn - rest) * (rest_drawn - rest) / rest;
    EXPECT_LT(chi_square, degrees + 5 * std::sqrt(2.0 * degrees)) << "seed " << options.seed;
  }
}

// The kept set is the reference's for a large vocabulary, where selection goes by blocks: over many draws at a high temperature no other id
// is drawn, and with a tiny kept set each of its ids is.
TEST(Sampler, SelectsTheSameSetAsAFullSort) {
  std::mt19937_64 random(6);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(50001);
  for (float& logit : logits) logit = normal(random);
  for (size_t i = 0; i < logits.size(); i += 3) logits[i] = std::round(logits[i]);  // ties
  for (const SamplingOptions& options : {SamplingOptions{.temperature = 4, .top_k = 7}, SamplingOptions{.temperature = 4, .top_k = 2000},
                                         SamplingOptions{.temperature = 1, .top_p = 0.02}, SamplingOptions{.temperature = 3, .top_p = 0.5},
                                         SamplingOptions{.temperature = 4, .min_p = 0.5}}) {
    const std::map<int32_t, double> expected = reference(options, logits);
    Sampler sampler(options);
    SamplerScratch scratch;
    std::map<int32_t, int> seen;
    for (int position = 0; position < 300; ++position) ++seen[sampler.sample(logits, position, {}, &scratch).id];
    for (const auto& [id, count] : seen) EXPECT_TRUE(expected.contains(id)) << id;
    if (expected.size() < 12) { EXPECT_EQ(seen.size(), expected.size()); }
  }
}

TEST(Sampler, DependsOnSeedAndPositionAlone) {
  std::vector<float> logits(500);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 7);
  SamplerScratch scratch;
  Sampler a({.temperature = 1, .seed = 3}), c({.temperature = 1, .seed = 4});
  int differ = 0;
  for (int64_t position = 200; position-- > 0;) {
    const int32_t drawn = a.sample(logits, position, {}, &scratch).id;
    EXPECT_EQ(drawn, draw({.temperature = 1, .seed = 3}, logits, position));
    differ += drawn != c.sample(logits, position, {}, &scratch).id;
  }
  EXPECT_GT(differ, 100);
  EXPECT_EQ(choice_seed(3, 0), 3u);
  EXPECT_NE(choice_seed(3, 1), choice_seed(3, 2));
}

// Dropping ids that did not win leaves the winner: the noise belongs to ids. A draft with nearly the target's logits agrees mostly.
TEST(Sampler, NoiseBelongsToIds) {
  std::mt19937_64 random(9);
  std::normal_distribution<float> normal(0, 2), little(0, 0.05f);
  std::vector<float> logits(1000), draft(1000);
  for (size_t i = 0; i < logits.size(); ++i) {
    logits[i] = normal(random);
    draft[i] = logits[i] + little(random);
  }
  int agree = 0;
  for (int position = 0; position < 300; ++position) {
    const int32_t winner = draw({.temperature = 1, .seed = 1}, logits, position);
    std::vector<uint64_t> mask(16, 0xAAAAAAAAAAAAAAAA);
    mask[static_cast<size_t>(winner) / 64] |= uint64_t{1} << (winner % 64);
    EXPECT_EQ(draw({.temperature = 1, .seed = 1}, logits, position, mask), winner);
    agree += draw({.temperature = 1, .seed = 1}, draft, position) == winner;
  }
  EXPECT_GT(agree, 270);
}

TEST(Sampler, MaskBiasAndPenalties) {
  const float logits[] = {1, 2, 3, -1};
  const uint64_t mask[] = {0b1011};
  EXPECT_EQ(draw({}, logits, 0, mask), 1);
  EXPECT_EQ(draw({.logit_bias = {{3, 100}, {99, 5}, {-1, 5}}}, logits, 0), 3);
  SamplerScratch scratch;
  Sampler frequency({.frequency_penalty = 0.6});
  std::vector<int32_t> drawn;
  for (int i = 0; i < 4; ++i) {
    drawn.push_back(frequency.sample(logits, i, {}, &scratch).id);
    frequency.accept(drawn.back());
  }
  // 3, 2.4, then 1.8 < 2, then 1.4 < 1.8.
  EXPECT_EQ(drawn, (std::vector<int32_t>{2, 2, 1, 2}));
  frequency.forget(2);
  EXPECT_EQ(frequency.sample(logits, 3, {}, &scratch).id, 2);
  Sampler presence({.presence_penalty = 1.5});
  presence.accept(2);
  presence.accept(2);
  EXPECT_EQ(presence.sample(logits, 2, {}, &scratch).id, 1);
  Sampler repetition({.repetition_penalty = 4});
  const int32_t prompt[] = {2, 1};
  repetition.add_prompt(prompt);
  EXPECT_EQ(repetition.sample(logits, 0, {}, &scratch).id, 0);
  Sampler minimum({.min_tokens = 1, .end_ids = {2}});
  EXPECT_EQ(minimum.sample(logits, 0, {}, &scratch).id, 1);
  minimum.accept(1);
  EXPECT_EQ(minimum.sample(logits, 1, {}, &scratch).id, 2);
  // A grammar that is complete allows the end alone.
  Sampler complete({.min_tokens = 9, .end_ids = {2}});
  const uint64_t end_alone[] = {uint64_t{1} << 2};
  EXPECT_EQ(complete.sample(logits, 0, end_alone, &scratch).id, 2);
}

TEST(Sampler, LogprobsAreOfTheRawSoftmax) {
  std::vector<float> logits(1000, -20.0f);
  logits[10] = std::log(1.0f);
  logits[20] = std::log(2.0f);
  logits[30] = std::log(5.0f);
  SamplerScratch scratch;
  const Sampler sampler({.temperature = 0, .logit_bias = {{10, 50}}, .top_logprobs = 2});
  const SampledToken token = sampler.sample(logits, 0, {}, &scratch);
  // 997 e^-20 = 2.1e-6 beside 8; f32 keeps 1e-6 of the rest.
  EXPECT_EQ(token.id, 10);
  EXPECT_NEAR(token.logprob, std::log(1.0 / 8), 3e-6);
  ASSERT_EQ(token.top_logprobs.size(), 2u);
  EXPECT_EQ(token.top_logprobs[0].id, 30);
  EXPECT_NEAR(token.top_logprobs[1].logprob, std::log(2.0 / 8), 3e-6);
}

}  // namespace
}  // namespace orrery
