// Pipeline schedules by their properties: each verifies, its bubble and its live activations equal the published formulas when all
// stages cost the same, and its text reads back. Random compositions and mutants of schedules are in schedule_fuzz_test.cpp.
#include "parallel/pipeline.h"

#define ORRERY_FUZZ_IN_TEST
#include "parallel/pipeline_text_fuzz.cpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "base/error.h"
#include "base/fuzz_util.h"
#include "ir/interpret_schedules.h"
#include "ir/unroll_schedule.h"
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
          const int32_t formula = peak_activations({.kind = kind, .num_ranks = p, .num_micro_batches = m, .chunks_per_rank = chunks(kind, 2)}, rank);
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
  const auto group = [](int32_t p, int32_t m, int32_t g) { return pipeline_order({.kind = PipelineKind::kInterleaved, .num_ranks = p, .num_micro_batches = m, .chunks_per_rank = 2, .micro_batch_group_size = g}); };
  EXPECT_NO_THROW(group(4, 10, 6));
  EXPECT_THROW(group(4, 10, 4), Error);  // two are left
  EXPECT_THROW(group(4, 8, 3), Error);
  EXPECT_THROW(group(4, 3, 4), Error);
  const auto lowered = [](const char* text) { return lower_pipeline(parse_pipeline_order(text), {.share = {.global_batch_size = 2, .lanes = 2}}); };
  EXPECT_NO_THROW(lowered("rank 0: F0 F1 B0 B1"));
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

// Groups of more micro-batches than ranks: the same bubble where messages take no time, more activations, and less waiting where they take some.
TEST(Pipeline, LargerGroupsHideMessages) {
  struct Case {
    int32_t p, m, v, g;
  };
  for (const Case& one : {Case{2, 4, 2, 2}, Case{2, 4, 2, 4}, Case{2, 8, 2, 4}, Case{2, 7, 3, 4}, Case{4, 8, 2, 8}, Case{4, 10, 2, 6}, Case{3, 9, 4, 5}}) {
    const std::string text = fmt::format("p={} m={} v={} g={}", one.p, one.m, one.v, one.g);
    Lowered lowered;
    const PipelineOptions options{.kind = PipelineKind::kInterleaved, .num_ranks = one.p, .num_micro_batches = one.m, .chunks_per_rank = one.v, .micro_batch_group_size = one.g};
    lowered.order = pipeline_order(options);
    lowered.ranks = lower_pipeline(lowered.order, {.share = {.global_batch_size = one.m}});
    lowered.context.num_stages = lowered.order.num_stages();
    EXPECT_TRUE(verify_schedules(lowered.ranks, lowered.context).empty()) << text;
    EXPECT_DOUBLE_EQ(bubble(lowered), (one.p - 1) * 3) << text;
    for (int32_t rank = 0; rank < one.p; ++rank) {
      int32_t alive = 0, peak = 0;
      for (const ComputeStep& step : lowered.order.steps[static_cast<size_t>(rank)]) peak = std::max(peak, alive += step.kind == ActionKind::kForward ? 1 : -1);
      EXPECT_EQ(peak, peak_activations(options, rank)) << text;
    }
  }
  const auto seconds = [](int32_t g) {
    const PipelineOrder order = pipeline_order({.kind = PipelineKind::kInterleaved, .num_ranks = 2, .num_micro_batches = 4, .chunks_per_rank = 2, .micro_batch_group_size = g});
    return time_schedules(lower_pipeline(order, {.share = {.global_batch_size = 4}}), {.num_stages = 4}, {std::vector<StageCosts>(4), 0.9}).total;
  };
  EXPECT_LT(seconds(4), seconds(2));
}

// PipeDream-2BW: a step in the middle of the flow has every micro-batch once forward and once backward, with the first of the next step in place of the
// drain, so that ranks wait for a forward's time at most, where 1F1B waits (p - 1)(F + B); two weight versions are enough, for no rank gets to the step after next.
TEST(Pipeline, TwoBwDoesNotDrain) {
  for (int32_t p : {2, 3, 4, 5, 8})
    for (int32_t m : {p, p + 1, 2 * p, 3 * p + 2}) {
      const std::string text = fmt::format("p={} m={}", p, m);
      Lowered lowered;
      lowered.order = pipeline_order({.kind = PipelineKind::k2Bw, .num_ranks = p, .num_micro_batches = m, .carries = true});
      lowered.ranks = lower_pipeline(lowered.order, {.share = {.global_batch_size = m}});
      lowered.context.num_stages = p;
      const auto problems = verify_schedules(lowered.ranks, lowered.context);
      ASSERT_TRUE(problems.empty()) << text << ": " << problems.front();
      EXPECT_LE(bubble(lowered), p == 2 ? 0 : 1) << text;
      EXPECT_DOUBLE_EQ(bubble(lower(PipelineKind::k1F1B, p, m)), (p - 1) * 3) << text;
      for (int32_t rank = 0; rank < p; ++rank) {
        int32_t forwards = 0, backwards = 0, carried = 0;
        for (const ComputeStep& step : lowered.order.steps[static_cast<size_t>(rank)]) {
          ++(step.kind == ActionKind::kForward ? forwards : backwards);
          carried += step.micro_batch >= m;
          EXPECT_LT(step.micro_batch, 2 * m) << text;
        }
        EXPECT_EQ(forwards, m) << text;
        EXPECT_EQ(backwards, m) << text;
        EXPECT_GE(carried, p - 1) << text;
        // Slots: as many as 1F1B has, or what makes equal rounds of the batch.
        EXPECT_LE(lowered.ranks[static_cast<size_t>(rank)].num_slots[0], (m + m / (p - rank) - 1) / (m / (p - rank))) << text;
        EXPECT_LE(lowered.ranks[static_cast<size_t>(rank)].num_gradient_buffers[0], 2) << text;
      }
    }
}

// Several steps of it end with the gradients and weight versions of several steps that drain, in any order in which things may happen.
TEST(Pipeline, TwoBwHasTheGradientsOfStepsThatDrain) {
  for (int32_t p : {2, 3, 4, 6})
    for (int64_t lanes : {1, 4, 8})
      for (int32_t m : {8, 16}) {
        const std::string text = fmt::format("p={} lanes={} m={}", p, lanes, m);
        const LowerOptions options{.share = {.global_batch_size = m, .lanes = lanes}};
        PipelineOptions pipeline{.kind = PipelineKind::k2Bw, .num_ranks = p, .num_micro_batches = m};
        const std::vector<Schedule> drained = unroll(lower_pipeline(pipeline_order(pipeline), options), 3);
        pipeline.carries = true;
        const std::vector<Schedule> carried = lower_pipeline(pipeline_order(pipeline), options);
        ScheduleContext context{.num_stages = p, .delays_gradients = true};
        const auto problems = verify_schedules(carried, context);
        ASSERT_TRUE(problems.empty()) << text << ": " << problems.front();
        const Interpretation wanted = interpret_schedules(drained, context, 1);
        for (uint64_t seed : {1, 2, 3}) {
          const Interpretation found = interpret_schedules(carried, context, seed);
          ASSERT_TRUE(found.finished) << text << ": stuck at " << found.stuck;
          EXPECT_EQ(found.gradients, wanted.gradients) << text;
        }
        // Without the delay they are others.
        context.delays_gradients = false;
        EXPECT_NE(interpret_schedules(drained, context, 1).gradients, wanted.gradients) << text;
      }
}

}  // namespace
}  // namespace orrery
