// Clusters of several kinds of devices: layers dealt exactly as well as trying every way to deal them, in proportion to speed where memory
// allows and by memory where it does not, and plans that use the slow devices where they help and lie between those of either kind alone.
#include "planner/mixed_pipeline.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "base/error.h"
#include "parallel/split_layers.h"
#include "planner/search.h"

namespace orrery {
namespace {

// The best slowest rank of all ways to deal the layers.
double best_by_trying(std::span<const RankLoad> ranks, int32_t left, double slowest) {
  if (ranks.empty()) return left == 0 ? slowest : std::numeric_limits<double>::infinity();
  double best = std::numeric_limits<double>::infinity();
  for (int32_t n = ranks[0].least; n <= std::min(left, ranks[0].most); ++n)
    best = std::min(best, best_by_trying(ranks.subspan(1), left - n, std::max(slowest, ranks[0].base + ranks[0].per_layer * n)));
  return best;
}

TEST(ShareLayers, AsGoodAsEveryWayTried) {
  std::mt19937 random(7);
  const auto draw = [&](int32_t low, int32_t high) { return std::uniform_int_distribution<int32_t>(low, high)(random); };
  int32_t possible = 0;
  for (int round = 0; round < 2000; ++round) {
    std::vector<RankLoad> ranks(static_cast<size_t>(draw(1, 4)));
    for (RankLoad& rank : ranks) rank = {.base = draw(0, 3) * 0.5, .per_layer = draw(1, 8) * 0.25, .least = draw(0, 2), .most = draw(0, 8)};
    const int32_t num_layers = draw(1, 14);
    for (RankLoad& rank : ranks) rank.most = std::max(rank.most, rank.least);
    const double best = best_by_trying(ranks, num_layers, 0);
    const auto layers = share_layers(ranks, num_layers);
    ASSERT_EQ(layers.has_value(), std::isfinite(best)) << round;
    if (!layers) continue;
    ++possible;
    double slowest = 0;
    for (size_t i = 0; i < ranks.size(); ++i) {
      EXPECT_GE((*layers)[i], ranks[i].least);
      EXPECT_LE((*layers)[i], ranks[i].most);
      slowest = std::max(slowest, ranks[i].base + ranks[i].per_layer * (*layers)[i]);
    }
    EXPECT_EQ(std::accumulate(layers->begin(), layers->end(), 0), num_layers);
    EXPECT_DOUBLE_EQ(slowest, best) << round;
  }
  EXPECT_GT(possible, 500);
}

Cluster cluster_of(std::string_view devices) { return parse_cluster(std::string(devices) + "[prices]\nper_device_hour = 2\nper_kwh = 0.1\n", "c.toml"); }
std::string group(std::string_view kind, int count) { return fmt::format("[[devices]]\nkind = \"{}\"\ncount = {}\n", kind, count); }

SearchRequest request_on(const std::string& devices) {
  SearchRequest request;
  request.model = {.num_layers = 48, .hidden = 6144, .num_heads = 48, .num_kv_heads = 8, .head_dim = 128, .ffn_hidden = 16384, .vocab = 64000, .seq_len = 4096, .gated = true};
  request.global_batch = 256;
  request.total_tokens = 1e11;
  request.cluster = cluster_of(devices);
  return request;
}

SearchResult search(const SearchRequest& request) {
  SearchResult result;
  search_layouts(request, result);
  return result;
}
double step_on(const std::string& devices) { return search(request_on(devices)).best.front().step.seconds; }

int32_t num_layers(const Candidate& c) {
  int32_t sum = 0;
  for (const DevicePart& part : c.parts) sum += std::accumulate(part.layers.begin(), part.layers.end(), 0);
  return sum;
}

TEST(MixedCluster, LiesBetweenItsHalvesAndTwiceTheFaster) {
  const double mixed = step_on(group("H100", 64) + group("A100", 64));
  EXPECT_LT(mixed, 0.9 * step_on(group("A100", 64)));
  EXPECT_LT(mixed, step_on(group("H100", 64)));
  EXPECT_GE(mixed, step_on(group("H100", 128)));
  EXPECT_LT(mixed, step_on(group("A100", 128)));
}

TEST(MixedCluster, TheOrderOfTheFileDoesNotMatter) {
  const SearchResult a = search(request_on(group("H100", 32) + group("A100", 32))), b = search(request_on(group("A100", 32) + group("H100", 32)));
  EXPECT_EQ(a.best.front().step.seconds, b.best.front().step.seconds);
  EXPECT_EQ(placement_text(a.best.front()), placement_text(b.best.front()));
}

TEST(MixedCluster, PruningKeepsTheWinners) {
  for (const Objective objective : {Objective::kTime, Objective::kCost, Objective::kEnergy, Objective::kMemory}) {
    SearchRequest request = request_on(group("H100", 16) + group("A100-40GB", 16));
    request.objective = objective, request.max_tensor_parallel = 8;
    const SearchResult pruned = search(request);
    request.prune = false;
    const SearchResult all = search(request);
    EXPECT_GE(all.considered, pruned.considered);
    EXPECT_GT(all.considered, all.scored);
    ASSERT_EQ(pruned.best.size(), all.best.size());
    for (size_t i = 0; i < all.best.size(); ++i) {
      ASSERT_EQ(layout_text(pruned.best[i].job.layout), layout_text(all.best[i].job.layout)) << i;
      ASSERT_EQ(placement_text(pruned.best[i]), placement_text(all.best[i])) << i;
    }
  }
}

TEST(MixedCluster, EveryCandidateFitsAndAddsUp) {
  const SearchRequest request = request_on(group("H200", 16) + group("A100-40GB", 24) + group("H100", 8));
  const SearchResult result = search(request);
  bool stages = false, replicas = false;
  for (const FamilyVerdict& verdict : result.families) stages = stages || verdict.family == "stages on several kinds of devices", replicas = replicas || verdict.family == "replicas on several kinds of devices";
  EXPECT_TRUE(stages && replicas);
  for (const Candidate& c : result.best) {
    const JobLayout& l = c.job.layout;
    double devices = 0;
    int32_t ranks = 0;
    for (const DevicePart& part : c.parts) {
      devices += part.num_devices;
      EXPECT_EQ(part.cluster.device, &result.devices[static_cast<size_t>(part.group)]);
      EXPECT_LE(part.num_devices, request.cluster.devices[static_cast<size_t>(part.group)].count);
      EXPECT_LE(part.memory.total(), part.capacity_bytes);
      EXPECT_EQ(part.first_rank, ranks);
      EXPECT_EQ(part.layers.size(), static_cast<size_t>(part.num_ranks));
      ranks += part.num_ranks;
    }
    EXPECT_EQ(devices, c.job.cluster.num_devices);
    EXPECT_EQ(l.tp * l.pp * l.cp * l.dp, devices);
    EXPECT_EQ(l.dp * l.micro_batch * l.num_micro_batches, request.global_batch);
    if (!c.is_mixed_pipeline()) continue;
    EXPECT_EQ(ranks, l.pp);
    EXPECT_EQ(num_layers(c), request.model.num_layers);
  }
}

// With memory to spare, ranks of a kind have as many layers as their speed is of all ranks' speeds together, to a layer.
TEST(MixedCluster, LayersInProportionToSpeed) {
  const SearchResult result = search(request_on(group("H100", 64) + group("A100", 64)));
  int checked = 0;
  for (const Candidate& c : result.best) {
    if (!c.is_mixed_pipeline() || c.job.layout.recompute != RecomputeKind::kFull) continue;
    double speed = 0;
    for (const DevicePart& part : c.parts) speed += part.num_ranks / part.step.layer_seconds;
    for (const DevicePart& part : c.parts)
      for (size_t i = 0; i < part.layers.size(); ++i) {
        const bool end = (part.first_rank == 0 && i == 0) || part.first_rank + static_cast<int32_t>(i) + 1 == c.job.layout.pp;
        if (end) continue;
        EXPECT_NEAR(part.layers[i], num_layers(c) / part.step.layer_seconds / speed, 1.5) << layout_text(c.job.layout) << "; " << placement_text(c);
      }
    ++checked;
  }
  for (const FamilyVerdict& verdict : result.families)
    if (verdict.family == "stages on several kinds of devices") {
      EXPECT_TRUE(verdict.feasible);
      ASSERT_EQ(verdict.best.parts.size(), 2u);
      const DevicePart &x = verdict.best.parts[0], &y = verdict.best.parts[1];
      const DevicePart& fast = x.step.layer_seconds < y.step.layer_seconds ? x : y;
      const DevicePart& slow = &fast == &x ? y : x;
      const auto sum = [](const DevicePart& part) { return std::accumulate(part.layers.begin(), part.layers.end(), 0) / static_cast<double>(part.num_ranks); };
      EXPECT_NEAR(sum(fast) / sum(slow), slow.step.layer_seconds / fast.step.layer_seconds, 0.35 * slow.step.layer_seconds / fast.step.layer_seconds);
      ++checked;
    }
  EXPECT_GT(checked, 0);
}

// A model that neither kind holds alone, and that even stages do not hold either: the large devices take what the small ones cannot.
TEST(MixedCluster, LargeMemoryTakesMoreLayers) {
  SearchRequest request = request_on(group("H200", 8) + group("A100-40GB", 8));
  request.model.num_layers = 80, request.model.hidden = 8192, request.model.num_heads = 64, request.model.ffn_hidden = 28672;
  request.global_batch = 16;
  request.cluster.tiers.host_gib_per_device = 0;  // nowhere to put the optimizer
  const auto fits = [](SearchRequest one) {
    try {
      search(one);
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("does not fit"), std::string::npos) << error.what();
      return false;
    }
    return true;
  };
  SearchRequest alone = request;
  alone.cluster = cluster_of(group("H200", 8)), alone.cluster.tiers.host_gib_per_device = 0;
  EXPECT_FALSE(fits(alone));
  const SearchResult result = search(request);
  for (const Candidate& c : result.best) {
    ASSERT_TRUE(c.is_mixed_pipeline()) << placement_text(c);
    double of_large = 0, of_small = 0;
    for (const DevicePart& part : c.parts) (part.capacity_bytes > 100e9 ? of_large : of_small) += std::accumulate(part.layers.begin(), part.layers.end(), 0) / static_cast<double>(part.num_ranks);
    EXPECT_GT(of_large, 1.5 * of_small) << placement_text(c);
    // One layer more on each small rank would not fit.
    for (const DevicePart& part : c.parts) EXPECT_LE(part.memory.total(), part.capacity_bytes);
  }
}

TEST(MixedCluster, WhatDoesNotFitNamesTheKindToAdd) {
  SearchRequest request = request_on(group("H200", 8) + group("A100-40GB", 8));
  request.model.num_layers = 160, request.model.hidden = 16384, request.model.num_heads = 128, request.model.ffn_hidden = 65536;
  try {
    search(request);
    FAIL() << "a trillion parameters on 16 devices";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("8 H200 + 8 A100-40GB"), std::string::npos) << message;
    EXPECT_NE(message.find("the smallest cluster with more H200 that would hold it has of them"), std::string::npos) << message;
  }
}

TEST(MixedCluster, HostsOfOneKindAreLost) {
  const SearchRequest request = request_on(group("H100", 32) + group("A100", 16));
  SearchResult less, none;
  replan_after_loss(request, 1, 1, less);
  for (const DevicePart& part : less.best.front().parts) EXPECT_LE(part.num_devices, part.group == 1 ? 8 : 32);
  replan_after_loss(request, 1, 2, none);
  ASSERT_EQ(none.best.front().parts.size(), 1u);
  EXPECT_EQ(none.best.front().step.seconds, step_on(group("H100", 32)));
}

TEST(MixedCluster, MoneyIsThatOfTheDevicesUsed) {
  const SearchRequest request = request_on("[[devices]]\nkind = \"H100\"\ncount = 16\nper_device_hour = 4\n[[devices]]\nkind = \"A100\"\ncount = 16\nper_device_hour = 1\n");
  for (const Candidate& c : search(request).best) {
    double hourly = 0;
    for (const DevicePart& part : c.parts) hourly += part.num_devices * (part.group == 0 ? 4 : 1);
    EXPECT_NEAR(c.money, c.run_seconds / 3600 * hourly + c.kwh * 0.1, 1e-6 * c.money);
  }
}

TEST(Placement, AxesSpanTheLinksThatTheirRanksHave) {
  const auto text = [](const Candidate& c) {
    std::string all;
    for (const AxisSpan& span : axis_spans(c)) all += fmt::format("{} {} at {}: {}; ", span.axis, span.size, span.stride, span.inside);
    return all;
  };
  Candidate c;
  c.job.layout = {.tp = 4, .cp = 2, .pp = 2, .dp = 4};
  c.job.cluster.domain_size = 8;
  EXPECT_EQ(text(c), "tensor 4 at 1: 4; context 2 at 4: 2; data 4 at 8: 1; pipeline 2 at 32: 1; ");
  c.job.layout = {.tp = 2, .pp = 4, .dp = 8, .pipeline_inside = true};
  EXPECT_EQ(text(c), "tensor 2 at 1: 2; pipeline 4 at 2: 4; data 8 at 8: 1; ");
}

// Over a slow network, with large messages and small gradients, a pipeline is better inside the domain; the search may say so.
TEST(Placement, PipelinesInsideADomainArePriced) {
  TrainingJob job;
  job.model = {.num_layers = 32, .hidden = 4096, .num_heads = 32, .num_kv_heads = 8, .head_dim = 128, .ffn_hidden = 8192, .vocab = 1000, .seq_len = 8192, .gated = true};
  job.layout = {.tp = 1, .pp = 8, .dp = 8, .micro_batch = 1, .num_micro_batches = 64, .zero = ZeroStage::kOptimizer};
  job.cluster = {.device = find_device("H100"), .num_devices = 64, .domain_size = 8, .link_bytes_per_second = 450e9, .network_bytes_per_second = 1e9};
  const StepCost outside = predict_step(job, default_constants());
  job.layout.pipeline_inside = true;
  const StepCost inside = predict_step(job, default_constants());
  EXPECT_LT(inside.handoff_seconds, outside.handoff_seconds);
  EXPECT_GT(inside.tail_seconds, outside.tail_seconds);
  EXPECT_LT(inside.seconds, outside.seconds);
}

}  // namespace
}  // namespace orrery
