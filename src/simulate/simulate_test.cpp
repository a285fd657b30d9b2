// The simulator against closed forms: 1F1B and GPipe idle for (p-1)(F+B), a slow rank or link costs what it must, ranks by symmetry
// give the same step, an impossible order is refused, and the trace holds every action of every rank.
#include "simulate/simulate.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <sstream>

#include "base/error.h"

namespace orrery {
namespace {

constexpr double kForward = 2, kInput = 3, kWeight = 1;

// One stage a rank; `warmup` forwards before the first backward.
SimulatedPipeline one_stage_a_rank(int p, int m, bool gpipe) {
  SimulatedPipeline pipeline;
  pipeline.seconds_of_stage.assign(static_cast<size_t>(p), {kForward, kInput, kWeight});
  for (int rank = 0; rank < p; ++rank) {
    pipeline.rank_of_stage.push_back(rank);
    auto& steps = pipeline.steps.emplace_back();
    const int warmup = gpipe ? m : std::min(m, p - rank);
    int forward = 0;
    for (; forward < warmup; ++forward) steps.push_back({ActionKind::kForward, rank, forward});
    for (int backward = 0; backward < m; ++backward) {
      steps.push_back({ActionKind::kBackward, rank, backward});
      if (forward < m) steps.push_back({ActionKind::kForward, rank, forward++});
    }
  }
  return pipeline;
}

TEST(Simulate, BubbleEqualsTheFormula) {
  for (const bool gpipe : {false, true})
    for (const int p : {1, 2, 4, 7, 16})
      for (const int m : {1, 3, 16, 40}) {
        const Timeline timeline = simulate(one_stage_a_rank(p, m, gpipe));
        const double slot = kForward + kInput + kWeight;
        EXPECT_DOUBLE_EQ(timeline.compute_seconds, (m + p - 1) * slot) << p << " " << m << " " << gpipe;
        EXPECT_NEAR(timeline.idle_share, static_cast<double>(p - 1) / (m + p - 1), 1e-12);
      }
}

TEST(Simulate, SlowRanksAndLinksCostWhatTheyMust) {
  const int p = 4, m = 32;
  const double slot = kForward + kInput + kWeight;
  SimulatedPipeline slow = one_stage_a_rank(p, m, false);
  const double base = simulate(slow).compute_seconds;
  slow.slowdown = {1, 1, 1.5, 1};
  const double slowed = simulate(slow).compute_seconds;
  EXPECT_GE(slowed, m * slot * 1.5);                // it works all the time
  EXPECT_LE(slowed, base + 0.5 * slot * (m + p));  // and delays others by no more than its own delay
  SimulatedPipeline linked = one_stage_a_rank(p, m, false);
  linked.handoff_seconds = 0.25;
  EXPECT_GE(simulate(linked).compute_seconds, base + 2 * (p - 1) * 0.25);
}

TEST(Simulate, TheSlowestStageSetsThePace) {
  const int p = 4, m = 32;
  SimulatedPipeline uneven = one_stage_a_rank(p, m, false);
  uneven.seconds_of_stage[2].forward *= 2;
  const Timeline timeline = simulate(uneven);
  const double slot = kForward + kInput + kWeight, slow = slot + kForward;
  EXPECT_GE(timeline.compute_seconds, m * slow + 2 * slot);  // it works all the time, after the fill and before the drain of the two before it
  EXPECT_LE(timeline.compute_seconds, (m + p - 1) * slow);
  uneven.seconds_of_stage.pop_back();
  EXPECT_THROW(simulate(uneven), Error);
}

TEST(Simulate, ReplicasAreOneClass) {
  SimulatedCluster cluster;
  cluster.pipeline = one_stage_a_rank(4, 8, false);
  cluster.replicas = 4096;
  const ClusterTimeline same = simulate_cluster(cluster);
  EXPECT_EQ(same.classes.size(), 1u);
  EXPECT_EQ(same.step_seconds, simulate(cluster.pipeline).step_seconds);
  cluster.straggler_rank = 16383, cluster.straggler_slowdown = 2;
  const ClusterTimeline slow = simulate_cluster(cluster);
  EXPECT_EQ(slow.classes.size(), 2u);
  EXPECT_GT(slow.step_seconds, same.step_seconds);
  EXPECT_EQ(slow.class_of_replica.back(), 1);
  cluster.straggler_rank = 16384;
  EXPECT_THROW(simulate_cluster(cluster), Error);
}

TEST(Simulate, AnOrderThatCannotRunIsRefused) {
  SimulatedPipeline pipeline = one_stage_a_rank(2, 2, false);
  std::swap(pipeline.steps[1][0], pipeline.steps[1][1]);  // backward before its forward
  EXPECT_THROW(simulate(pipeline), Error);
  pipeline = one_stage_a_rank(2, 2, false);
  pipeline.steps[0][0].stage = 9;
  EXPECT_THROW(simulate(pipeline), Error);
}

TEST(Simulate, TraceHoldsEveryAction) {
  SimulatedCluster cluster;
  cluster.pipeline = one_stage_a_rank(3, 5, false);
  cluster.replicas = 7;
  const std::string path = testing::TempDir() + "orrery_simulated_trace.json";
  const int64_t events = write_trace(simulate_cluster(cluster), path);
  EXPECT_EQ(events, 3 * 5 * 2 * 7);
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  size_t found = 0;
  for (size_t at = text.str().find("\"ph\":\"X\""); at != std::string::npos; at = text.str().find("\"ph\":\"X\"", at + 1)) ++found;
  EXPECT_EQ(static_cast<int64_t>(found), events);
  std::remove(path.c_str());
  EXPECT_THROW(write_trace(simulate_cluster(cluster), "/nonexistent/trace.json"), Error);
}

}  // namespace
}  // namespace orrery
