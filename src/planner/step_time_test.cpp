// Step times from made-up op times: sums, sharing of cores, waiting for collectives, scaling from other sizes; and that tables and traces
// come back from their files, or are refused.
#include "planner/step_time.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "base/error.h"
#include "ir/op_table.h"
#include "planner/layout_residuals.h"
#include "planner/step_trace.h"
#include "topology/device_catalogue.h"

namespace orrery {
namespace {

int64_t fake_workspace(const Stage&, const Op&) { return 64; }

TrainingPlanOptions options_of(int64_t micro_batch) {
  TrainingPlanOptions options;
  options.model = default_model_config(ModelFamily::kLlama);
  options.model.num_layers = 2, options.model.hidden_size = 64, options.model.num_heads = 4, options.model.num_kv_heads = 2;
  options.model.intermediate_size = 128, options.model.vocab_size = 256, options.model.max_seq_len = 32;
  resolve(options.model);
  options.sequence_tokens = 32, options.global_batch_size = 8, options.micro_batch_size = micro_batch, options.recompute = Recompute::kNone;
  return options;
}

std::vector<Plan> plans_of(int64_t ranks, int zero_stage, int64_t micro_batch) {
  TrainingPlanOptions options = options_of(micro_batch);
  options.data = {ranks, 0, zero_stage};
  return make_training_plans(options, fake_workspace);
}

std::vector<Plan> plans_of(const PipelineParallel& pipeline, const ParallelContext& parallel, int64_t micro_batch) {
  TrainingPlanOptions options = options_of(micro_batch);
  options.pipeline = pipeline, options.parallel = parallel;
  return make_training_plans(options, fake_workspace);
}

constexpr double kOpSeconds = 1e-3;

// Every op of the plans takes a millisecond, a collective what is given.
OpTimes table_for(const std::vector<Plan>& plans, const StepMachine& machine, double collective_seconds = 0) {
  OpTimes times;
  for (const Plan& plan : plans) {
    const TimingContext context = timing_context(plan, machine, static_cast<int>(plans.size()));
    for (const Block& block : plan.stage.blocks)
      for (const Op& op : block.ops) times.add(op_key(plan.stage, op, context), {kOpSeconds, 1, 1});
  }
  for (const char* operation : {"rs", "ag", "xs"}) times.add_comm(comm_key(operation, static_cast<int>(plans.size()), "local"), {{1, collective_seconds}, {1e9, collective_seconds}});
  return times;
}

double ops_of_step(const Plan& plan) {
  double count = 0;
  for (const Action& action : plan.schedule.actions) switch (action.kind) {
      case ActionKind::kForward: count += static_cast<double>(plan.stage.block(Phase::kForward).ops.size()); break;
      case ActionKind::kBackward: count += static_cast<double>(plan.stage.block(Phase::kBackward).ops.size()); break;
      case ActionKind::kMerge: count += static_cast<double>(plan.stage.block(Phase::kMerge).ops.size()); break;
      case ActionKind::kNorm: count += static_cast<double>(plan.stage.block(Phase::kNorm).ops.size()); break;
      case ActionKind::kOptimizer: count += static_cast<double>(plan.stage.block(Phase::kOptimizer).ops.size()); break;
      default: break;
    }
  return count;
}

TEST(StepTime, OneRankTakesTheSumOfItsOps) {
  const StepMachine machine{.device = "test", .num_cores = 4, .threads_per_rank = 4};
  for (const int64_t micro_batch : {1, 2, 8}) {
    const std::vector<Plan> plans = plans_of(1, 0, micro_batch);
    const StepPrediction p = predict_step_time(plans, table_for(plans, machine), machine);
    EXPECT_TRUE(p.missing.empty());
    EXPECT_EQ(p.ops_scaled, 0);
    EXPECT_NEAR(p.seconds, kOpSeconds * ops_of_step(plans[0]), 1e-9);
    EXPECT_NEAR(p.ranks[0].busy(), p.seconds, 1e-9);
    EXPECT_LT(p.low, p.seconds);
    EXPECT_GT(p.high, p.seconds);
  }
}

TEST(StepTime, RanksBesideEachOtherShareTheCores) {
  const std::vector<Plan> plans = plans_of(4, 0, 1);
  StepMachine machine{.device = "test", .num_cores = 4, .threads_per_rank = 1};
  const OpTimes times = table_for(plans, machine);
  const double alone = predict_step_time(plans, times, machine).seconds;
  double most = 0, all = 0;
  for (const Plan& plan : plans) most = std::max(most, kOpSeconds * ops_of_step(plan)), all += kOpSeconds * ops_of_step(plan);
  EXPECT_NEAR(alone, most, 1e-9);
  // Half the cores: all the work on two of them, or a little more where ranks that have less to update leave one idle.
  machine.num_cores = 2;
  const double halved = predict_step_time(plans, table_for(plans, machine), machine).seconds;
  EXPECT_GE(halved, all / 2 - 1e-9);
  EXPECT_LE(halved, 2 * alone + 1e-9);
  EXPECT_GT(halved, 1.9 * alone);
}

TEST(StepTime, CollectivesHideBehindTheBackwardOnlyOnFreeCores) {
  const std::vector<Plan> plans = plans_of(2, 1, 4);
  constexpr double kCollective = 2e-3;
  const StepMachine wide{.device = "test", .num_cores = 4, .threads_per_rank = 1}, narrow{.device = "test", .num_cores = 2, .threads_per_rank = 1};
  const double without = predict_step_time(plans, table_for(plans, wide), wide).seconds;
  const StepPrediction free_cores = predict_step_time(plans, table_for(plans, wide, kCollective), wide);
  const StepPrediction full = predict_step_time(plans, table_for(plans, narrow, kCollective), narrow);
  EXPECT_GT(free_cores.seconds, without);
  EXPECT_LT(free_cores.seconds, without + free_cores.ranks[0].communication);
  // No core is free: what is not waiting costs its whole time.
  EXPECT_NEAR(full.seconds, without + full.ranks[0].communication, 1e-6);
}

// What is offloaded is copied beside the compute: where cores are free the step is longer by what is not hidden, at most by all of it, and without
// a curve of its own a copy is missing, not free.
TEST(StepTime, CopiesOfWhatIsOffloadedTakeTime) {
  TrainingPlanOptions options = options_of(1);
  options.optimizer.offload_piece_bytes = 1 << 14, options.offload_activations = true;
  const std::vector<Plan> plans = make_training_plans(options, fake_workspace);
  const StepMachine machine{.device = "test", .offload_place = "/fast", .num_cores = 2, .threads_per_rank = 1};
  OpTimes times = table_for(plans, machine);
  const StepPrediction unknown = predict_step_time(plans, times, machine);
  EXPECT_EQ(unknown.missing.size(), 2u);
  const std::vector<CommCall> calls = unmeasured_calls(plans, times, machine);
  ASSERT_EQ(calls.size(), 2u);
  const auto step = [&](double copy_seconds) {
    for (const CommCall& call : calls) times.add_comm(call_key(call, machine), {{1, copy_seconds}, {1e9, copy_seconds}});
    const StepPrediction p = predict_step_time(plans, times, machine);
    EXPECT_TRUE(p.missing.empty()) << p.missing.front();
    return p.seconds;
  };
  double num_copies = 0;
  for (const Action& action : plans[0].schedule.actions) num_copies += stream_of(action.kind) == Stream::kCopy;
  ASSERT_GT(num_copies, 10);
  const double without = step(0);
  EXPECT_GE(step(kOpSeconds / 10), without);
  EXPECT_LT(step(kOpSeconds / 10), without + num_copies * kOpSeconds / 10);
  EXPECT_GT(step(50 * kOpSeconds), without);
  EXPECT_LE(step(50 * kOpSeconds), without + num_copies * 50 * kOpSeconds + 1e-9);
}

// A pipeline's ranks wait for each other: with as many cores as ranks the step is the busy time of one and the bubble, and messages add to it.
TEST(StepTime, APipelineHasItsBubbleAndItsMessages) {
  const StepMachine machine{.device = "test", .num_cores = 2, .threads_per_rank = 1};
  std::vector<Plan> plans = plans_of({.size = 2}, {}, 1);
  OpTimes times = table_for(plans, machine);
  const auto step = [&](double message_seconds) {
    times.add_comm(comm_key("message", 2, "local"), {{1, message_seconds}, {1e9, message_seconds}});
    const StepPrediction p = predict_step_time(plans, times, machine);
    EXPECT_TRUE(p.missing.empty()) << p.missing.front();
    return p;
  };
  const StepPrediction without = step(0);
  const double busiest = std::max(without.ranks[0].busy(), without.ranks[1].busy()), least_of_a_micro_batch = std::min(without.ranks[0].forward, without.ranks[1].forward) / 8;
  EXPECT_GE(without.seconds, busiest + least_of_a_micro_batch);
  EXPECT_LT(without.seconds, without.ranks[0].busy() + without.ranks[1].busy());
  EXPECT_GT(step(1e-3).seconds, without.seconds + 2e-3);
}

// Ranks that share layers all do the same, each on its share of the cores.
TEST(StepTime, PartsOfALayerShareTheCores) {
  const std::vector<Plan> plans = plans_of({}, {.tensor_size = 2}, 4);
  const auto step = [&](int num_cores) {
    const StepMachine machine{.device = "test", .num_cores = num_cores, .threads_per_rank = 1};
    const StepPrediction p = predict_step_time(plans, table_for(plans, machine), machine);
    EXPECT_TRUE(p.missing.empty()) << p.missing.front();
    return p.seconds;
  };
  EXPECT_NEAR(step(2), kOpSeconds * ops_of_step(plans[0]), 1e-9);
  EXPECT_NEAR(step(1), 2 * step(2), 1e-9);
}

// What a probe has to time is what the prediction asks for: each operation in groups of the size in which it is called.
TEST(StepTime, NamesTheCallsThatItWants) {
  const StepMachine machine{.device = "test"};
  const auto wanted = [&](const std::vector<Plan>& plans) {
    std::set<std::string> names;
    for (const CommCall& call : unmeasured_calls(plans, OpTimes{}, machine)) names.insert(fmt::format("{} {}", call.operation, call.group_size));
    return names;
  };
  using Names = std::set<std::string>;
  EXPECT_EQ(wanted(plans_of(1, 0, 4)), Names{});
  EXPECT_EQ(wanted(plans_of(4, 1, 2)), (Names{"ag 4", "rs 4", "xs 4"}));
  EXPECT_EQ(wanted(plans_of({.size = 2}, {}, 1)), (Names{"message 2", "xs 2"}));
  std::vector<Plan> plans = plans_of(2, 3, 2);
  EXPECT_EQ(wanted(plans), (Names{"ag 2", "rs 2", "xs 2"}));
  for (const Plan& plan : plans)
    for (const Action& action : plan.schedule.actions)
      for (const CommCall& call : comm_calls(plan, action)) EXPECT_EQ(call.bytes, static_cast<double>(payload_bytes(plan, action))) << to_string(action, plan.schedule);
}

TEST(StepTime, WhatWasNotTimedIsScaledOrNamed) {
  OpTimes times;
  times.add("linear@c|a", {1.0, 100, 10});
  times.add("linear@c|b", {4.0, 200, 10});
  bool exact = true;
  EXPECT_DOUBLE_EQ(*times.seconds("linear@c|other", 120, 1, exact), 1.2);  // from the nearer one
  EXPECT_FALSE(exact);
  EXPECT_DOUBLE_EQ(*times.seconds("linear@c|b", 1, 1, exact), 4.0);
  EXPECT_TRUE(exact);
  EXPECT_FALSE(times.seconds("linear@d|a", 100, 1, exact).has_value());
  // What memory bounds takes what another such op takes.
  EXPECT_FALSE(times.seconds("add@c|a", 10, 100, exact).has_value());
  times.add("swiglu@c|a", {0.5, 50, 50});
  EXPECT_DOUBLE_EQ(*times.seconds("add@c|a", 10, 100, exact), 1.0);
  EXPECT_FALSE(exact);
  EXPECT_FALSE(times.seconds("add@d|a", 10, 100, exact).has_value());
  const std::vector<Plan> plans = plans_of(1, 0, 2);
  const StepPrediction unknown = predict_step_time(plans, OpTimes{}, {.device = "test"});
  EXPECT_FALSE(unknown.missing.empty());
  EXPECT_NE(prediction_to_text(unknown).find("not known"), std::string::npos);
}

TEST(StepTime, TheTableComesBackOnItsOwnMachineOnly) {
  OpTimes times;
  times.add("linear@c|a", {0.25, 100, 10});
  times.add_comm("rs@n2 local", {{1024, 1e-5}, {4096, 3e-5}});
  times.add_probe("llama");
  const std::string text = times.to_json("here");
  const auto back = OpTimes::from_json(text, "here");
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->to_json("here"), text);
  EXPECT_TRUE(back->was_probed("llama"));
  EXPECT_DOUBLE_EQ(*back->comm_seconds("rs@n2 local", 2560), 2e-5);
  EXPECT_FALSE(OpTimes::from_json(text, "another machine").has_value());
  for (const char* bad : {"", "{", "[]", "{\"version\": 1}"}) EXPECT_FALSE(OpTimes::from_json(bad, "here").has_value()) << bad;
}

TEST(StepTrace, ComesBackAndCalibrates) {
  StepTrace trace;
  trace.machine = "here", trace.layout = "1 rank", trace.steps = 7, trace.predicted_seconds = 0.1, trace.measured_seconds = 0.12, trace.low = 0.09, trace.high = 0.11;
  trace.measured.forward = 0.05, trace.predicted.forward = 0.04;
  trace.actions = {{"F0", 0.04, 0.05}, {"OPT", 0.01, 0.01}};
  trace.ops = {{"linear@c|a", {0.5, 100, 10}}};
  const StepTrace back = trace_from_json(trace_to_json(trace), "t");
  EXPECT_EQ(trace_to_json(back), trace_to_json(trace));
  EXPECT_NE(trace_to_text(back).find("above the 90 % interval"), std::string::npos);
  OpTimes times;
  times.add("linear@c|a", {0.25, 100, 10});
  EXPECT_EQ(calibrate(times, back), 1);
  bool exact = false;
  EXPECT_DOUBLE_EQ(*times.seconds("linear@c|a", 100, 10, exact), 0.5);
  for (const char* bad : {"", "{}", "[1]", "{\"version\": 99}"}) EXPECT_THROW(trace_from_json(bad, "t"), Error) << bad;
}

TEST(LayoutResiduals, KnowsWhatIsNearAndDoubtsWhatIsFar) {
  TrainingJob job;
  job.cluster.device = find_device("H100");
  job.model = {.num_layers = 32, .hidden = 4096, .num_heads = 32, .num_kv_heads = 8, .head_dim = 128, .ffn_hidden = 14336, .vocab = 32000};
  job.model.seq_len = 4096;
  const auto point = [&](double tp, double micro_batch, const char* release) {
    job.layout.tp = tp, job.layout.micro_batch = micro_batch;
    StepCost cost;
    cost.seconds = 1, cost.host_seconds = 0.1;
    return layout_point(job, cost, release, fmt::format("{}|{}", tp, micro_batch));
  };
  EXPECT_EQ(LayoutResiduals({}).estimate(point(1, 1, "a")).log_ratio, 0);
  const LayoutResiduals residuals({{point(1, 1, "a"), 0.2}, {point(2, 1, "a"), 0.1}, {point(8, 1, "a"), -0.1}});
  const auto seen = residuals.estimate(point(1, 1, "a")), near = residuals.estimate(point(4, 1, "a")), far = residuals.estimate(point(64, 4096, "b"));
  EXPECT_NEAR(seen.log_ratio, 0.2, 0.01);
  EXPECT_GT(near.log_ratio, -0.1);
  EXPECT_LT(near.log_ratio, 0.1);
  EXPECT_LT(seen.sigma, near.sigma);
  EXPECT_LT(near.sigma, far.sigma);
  EXPECT_LT(std::abs(far.log_ratio), 0.1);
}

}  // namespace
}  // namespace orrery
