// Pipeline schedules by their properties: each verifies, its bubble and its live activations equal the published formulas when all
// stages cost the same, and its text reads back. Random compositions and mutants of schedules are in schedule_fuzz_test.cpp.
#include "parallel/pipeline.h"

#define ORRERY_FUZZ_IN_TEST
#include "parallel/pipeline_text_fuzz.cpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "base/error.h"
#include "base/fuzz_util.h"
#include "ir/verify_schedules.h"
#include "parallel/lower_pipeline.h"
#include "parallel/schedule_grid.h"

namespace orrery {
namespace {

constexpr PipelineKind kSynchronous[] = {PipelineKind::kGPipe, PipelineKind::k1F1B, PipelineKind::kInterleaved,
                                         PipelineKind::kZbH1,  PipelineKind::kZbV,  PipelineKind::kDualPipeV};

int32_t chunks(PipelineKind kind, int32_t v) {
  return kind == PipelineKind::kZbV || kind == PipelineKind::kDualPipeV ? 2 : kind == PipelineKind::kInterleaved ? v : 1;
}

struct Lowered {
  PipelineOrder order;
  std::vector<Schedule> ranks;
  ScheduleContext context;
};

// One lane, one sequence a micro-batch.
Lowered lower(PipelineKind kind, int32_t p, int32_t m, int32_t v = 2) {
  Lowered lowered;
  lowered.order = pipeline_order({.kind = kind, .num_ranks = p, .num_micro_batches = m, .chunks_per_rank = chunks(kind, v)});
  lowered.ranks = lower_pipeline(lowered.order, {.share = {.global_batch_size = m}});
  lowered.context.num_stages = lowered.order.num_stages();
  return lowered;
}

double bubble(const Lowered& lowered, StageCosts costs = {}) {
  const ScheduleCosts all{std::vector<StageCosts>(static_cast<size_t>(lowered.order.num_stages()), costs), 0};
  return time_schedules(lowered.ranks, lowered.context, all).bubble();
}

TEST(Pipeline, EverySynchronousKindVerifies) {
  for (PipelineKind kind : kSynchronous)
    for (int32_t p : {1, 2, 3, 4, 5, 8})
      for (int32_t factor : {2, 3, 5}) {
        const Lowered lowered = lower(kind, p, p * factor);
        const auto problems = verify_schedules(lowered.ranks, lowered.context);
        EXPECT_TRUE(problems.empty()) << pipeline_name(kind) << " p=" << p << " m=" << p * factor << ": " << problems.front();
      }
}

// (p - 1)(F + B) for GPipe and 1F1B, that over v for interleaved, (p - 1)(F + B - 2W) for ZB-H1, none for ZB-V, where F = I = W = 1.
TEST(Pipeline, BubblesEqualTheFormulas) {
  for (int32_t p : {1, 2, 3, 4, 8})
    for (int32_t factor : {2, 3, 4}) {
      const int32_t m = p * factor;
      EXPECT_DOUBLE_EQ(bubble(lower(PipelineKind::kGPipe, p, m)), (p - 1) * 3) << p << " " << m;
      EXPECT_DOUBLE_EQ(bubble(lower(PipelineKind::k1F1B, p, m)), (p - 1) * 3) << p << " " << m;
      // A stage of v a rank is 1/v of the layers: in its own time units the bubble is the same (p - 1)(F + B).
      for (int32_t v : {2, 3, 4}) EXPECT_DOUBLE_EQ(bubble(lower(PipelineKind::kInterleaved, p, m, v)), (p - 1) * 3) << p << " " << m << " " << v;
      EXPECT_DOUBLE_EQ(bubble(lower(PipelineKind::kZbH1, p, m)), p - 1) << p << " " << m;
      EXPECT_DOUBLE_EQ(bubble(lower(PipelineKind::kZbV, p, m)), 0) << p << " " << m;
      EXPECT_LE(bubble(lower(PipelineKind::kDualPipeV, p, m)), (p - 1) * 3) << p << " " << m;
    }
}

TEST(Pipeline, LiveActivationsEqualTheFormulas) {
  for (PipelineKind kind : kSynchronous)
    for (int32_t p : {1, 2, 3, 4, 8})
      for (int32_t m : {2 * p, 4 * p}) {
        const PipelineOrder order = pipeline_order({.kind = kind, .num_ranks = p, .num_micro_batches = m, .chunks_per_rank = chunks(kind, 2)});
        int32_t fullest = 0, fullest_by_formula = 0;
        for (int32_t rank = 0; rank < p; ++rank) {
          int32_t alive = 0, peak = 0;
          for (const ComputeStep& step : order.steps[static_cast<size_t>(rank)]) {
            alive += step.kind == ActionKind::kForward;
            peak = std::max(peak, alive);
            alive -= step.kind == ActionKind::kBackward || step.kind == ActionKind::kBackwardWeight;
          }
          const int32_t formula = peak_activations(kind, p, m, chunks(kind, 2), rank);
          EXPECT_LE(peak, formula) << pipeline_name(kind) << " p=" << p << " m=" << m << " rank=" << rank;
          const bool is_exact = kind == PipelineKind::kGPipe || kind == PipelineKind::k1F1B || kind == PipelineKind::kInterleaved;
          EXPECT_TRUE(!is_exact || peak == formula) << pipeline_name(kind) << " p=" << p << " m=" << m << " rank=" << rank;
          fullest = std::max(fullest, peak);
          fullest_by_formula = std::max(fullest_by_formula, formula);
        }
        EXPECT_EQ(fullest, fullest_by_formula) << pipeline_name(kind) << " p=" << p << " m=" << m;
      }
}

TEST(Pipeline, PrintsAndReadsBack) {
  EXPECT_EQ(to_string(pipeline_order({.kind = PipelineKind::k1F1B, .num_ranks = 2, .num_micro_batches = 3})),
            "rank 0: F0 F1 B0 F2 B1 B2\nrank 1: F0 B0 F1 B1 F2 B2\n");
  for (PipelineKind kind : kSynchronous) {
    const PipelineOrder order = pipeline_order({.kind = kind, .num_ranks = 4, .num_micro_batches = 8, .chunks_per_rank = chunks(kind, 2)});
    EXPECT_EQ(parse_pipeline_order(to_string(order)), order) << pipeline_name(kind);
  }
  for (const char* wrong : {"", "rank 1: F0", "rank 0: X0", "rank 0: F", "rank 0: F0 B0\nrank 1: 0F0", "rank 0: 5F0", "rank 0: F99999999999", "rank 0: F0x"})
    EXPECT_THROW(parse_pipeline_order(wrong), Error) << wrong;
}

TEST(Pipeline, MutatedFiles) {
  run_mutations(fuzz_pipeline_text, {"rank 0: F0 F1 B0 B1\nrank 1: F0 B0 F1 B1\n", "rank 0: 0F0 3F0 3I0 3W0 0I0 0W0\nrank 1: 1F0 2F0 2B0 1I0 1W0 # v\n", "rank 0: F0 B0\nrank 1:\n",
                                    "rank 0: 1F0 1B0\nrank 1: 0F0 0B0\n"},
                5000, 1);
}

TEST(Pipeline, RefusesWhatCannotBe) {
  EXPECT_THROW(pipeline_order({.kind = PipelineKind::kInterleaved, .num_ranks = 4, .num_micro_batches = 6, .chunks_per_rank = 2}), Error);
  EXPECT_THROW(pipeline_order({.kind = PipelineKind::kDualPipeV, .num_ranks = 4, .num_micro_batches = 7, .chunks_per_rank = 2}), Error);
  EXPECT_THROW(pipeline_order({.kind = PipelineKind::kZbV, .num_ranks = 4, .num_micro_batches = 8, .chunks_per_rank = 1}), Error);
  EXPECT_THROW(pipeline_order({.kind = PipelineKind::k2Bw, .num_ranks = 4, .num_micro_batches = 2}), Error);
  EXPECT_THROW(parse_pipeline_kind("zb-x"), Error);
  const auto lowered = [](const char* text) { return lower_pipeline(parse_pipeline_order(text), {.share = {.global_batch_size = 2, .lanes = 2}}); };
  EXPECT_NO_THROW(lowered("rank 0: F0 F1 B0 B1"));
  EXPECT_THROW(lower_pipeline(pipeline_order({.kind = PipelineKind::k2Bw, .num_ranks = 2, .num_micro_batches = 2, .num_steps = 2}), {.share = {.global_batch_size = 2}}), Error);
  EXPECT_THROW(lowered("rank 0: F0 F1 B1 B0"), Error);
  EXPECT_THROW(lowered("rank 0: F0 B0"), Error);
  EXPECT_THROW(lowered("rank 0: F0 W0 I0 F1 B1"), Error);
}

// A file of two ranks that wait for each other's second micro-batch: the verifier finds the circle and names both.
TEST(Pipeline, AFileThatDeadlocksIsNamed) {
  const PipelineOrder order = parse_pipeline_order("rank 0: F0 B0 F1 B1\nrank 1: F0 F1 B0 B1\n");
  const auto ranks = lower_pipeline(order, {.share = {.global_batch_size = 2, .lanes = 2}});
  const auto problems = verify_schedules(ranks, {.num_stages = 2});
  ASSERT_FALSE(problems.empty());
  EXPECT_NE(problems.front().find("rank 0 B0"), std::string::npos) << problems.front();
  EXPECT_NE(problems.front().find("rank 1 F1"), std::string::npos) << problems.front();
}

// A gradient that could arrive before the micro-batch owns its slot would fall on another's.
TEST(Pipeline, AReceiveThatDoesNotWaitIsNamed) {
  Lowered lowered = lower(PipelineKind::k1F1B, 2, 4);
  for (Action& action : lowered.ranks[0].actions)
    if (action.kind == ActionKind::kRecvGradient && action.micro_batch == 2) action.waits.clear();
  const auto problems = verify_schedules(lowered.ranks, lowered.context);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_EQ(problems[0], "rank 0 RB2<1 may arrive before rank 0 F2 is done");
}

// The loss begins the last stage's gradients in its forwards: all forwards first means a buffer for every two lanes there.
TEST(Pipeline, GradientBuffersOfTheLastStage) {
  const auto buffers = [](PipelineKind kind, int32_t rank) {
    const PipelineOrder order = pipeline_order({.kind = kind, .num_ranks = 2, .num_micro_batches = 8});
    return lower_pipeline(order, {.share = {.global_batch_size = 8, .lanes = 8}})[static_cast<size_t>(rank)].num_gradient_buffers[0];
  };
  EXPECT_EQ(buffers(PipelineKind::kGPipe, 0), 3);  // log2(8)
  EXPECT_EQ(buffers(PipelineKind::kGPipe, 1), 4);
  EXPECT_EQ(buffers(PipelineKind::k1F1B, 0), 3);
  EXPECT_EQ(buffers(PipelineKind::k1F1B, 1), 3);
}

TEST(Pipeline, GridMarksBubbles) {
  const Lowered lowered = lower(PipelineKind::k1F1B, 2, 2);
  const ScheduleTimes times = time_schedules(lowered.ranks, lowered.context, {std::vector<StageCosts>(2), 0});
  EXPECT_EQ(to_grid(lowered.ranks, times, 1), "rank 0 | F0 F1 .  .  B0 -  .  B1 -\nrank 1 | .  F0 B0 -  F1 B1 -  .  .\n");
}

// PipeDream-2BW: at OPT the next step's micro-batches are on their way, and a step's forwards and backwards find the weights of two OPT
// ago with at most one newer version made, so two are enough.
TEST(Pipeline, TwoBwKeepsTwoVersionsAndDoesNotDrain) {
  for (int32_t p : {2, 3, 4})
    for (int32_t m : {p, 2 * p}) {
      const PipelineOrder order = pipeline_order({.kind = PipelineKind::k2Bw, .num_ranks = p, .num_micro_batches = m, .num_steps = 4});
      for (int32_t rank = 0; rank < p; ++rank) {
        int32_t version = 0, alive = 0;
        for (const ComputeStep& step : order.steps[static_cast<size_t>(rank)]) {
          alive += step.kind == ActionKind::kForward;
          alive -= step.kind == ActionKind::kBackward;
          if (step.kind == ActionKind::kOptimizer) {
            ++version;
            EXPECT_EQ(alive, version == 4 ? 0 : p - 1 - rank);
          }
          // Step t computes on the version of OPT(t - 2): it is there when the forward runs, and at the backward at most one newer is.
          const int32_t wanted = std::max(0, step.micro_batch / m - 1);
          if (step.kind == ActionKind::kForward) {
            EXPECT_GE(version, wanted);
          } else if (step.kind == ActionKind::kBackward) {
            EXPECT_LE(version - wanted, 1);
          }
        }
        EXPECT_EQ(version, 4);
      }
    }
}

}  // namespace
}  // namespace orrery
