// What `parallel.layout = "auto"` weighs for two ranks: where they do not fit as asked, optimizer state, then gradients, then weights in shards, and what
// is taken fits. Ops are timed on this machine, so which one is fastest is not asked.
#include "train/auto_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "data/testing.h"

namespace orrery {
namespace {

class AutoLayout : public ::testing::Test {
 protected:
  AutoLayout() { ::setenv("XDG_CACHE_HOME", directory_.path().c_str(), 1); }  // measured times are kept there

  RunSetup setup(int64_t memory_budget_bytes) const {
    RunSetup setup;
    setup.engine = default_engine_options(2);
    TrainingPlanOptions& options = setup.plan_options;
    options.model = default_model_config(ModelFamily::kLlama);
    options.model.num_layers = 12, options.model.hidden_size = 192, options.model.num_heads = 4, options.model.num_kv_heads = 2;
    options.model.intermediate_size = 512, options.model.vocab_size = 64, options.model.max_seq_len = 16;
    resolve(options.model);
    options.sequence_tokens = 16, options.global_batch_size = 8, options.lanes = 4, options.recompute = Recompute::kNone;
    options.memory_budget_bytes = memory_budget_bytes;  // of a rank
    return setup;
  }

  // Of the larger of two ranks, with the micro-batch that needs least.
  int64_t bytes_of(int zero_stage) const {
    TrainingPlanOptions options = setup(0).plan_options;
    options.data = {.size = 2, .zero_stage = zero_stage};
    int64_t least = INT64_MAX;
    for (const int64_t micro_batch : {1, 2, 4}) {
      options.micro_batch_size = micro_batch;
      int64_t bytes = 0;
      for (const Plan& plan : make_training_plans(options, workspace_traits(default_engine_options(1), options.sequence_tokens))) bytes = std::max(bytes, plan.memory.total_bytes);
      least = std::min(least, bytes);
    }
    return least;
  }

  static bool names(const WeighedLayout& layout, std::string_view text) { return layout.layout.find(text) != std::string::npos; }

  testing::TemporaryDirectory directory_;
};

TEST_F(AutoLayout, WeighsMoreShardsWhereTheLesserDoNotFit) {
  const int64_t whole = bytes_of(1), gradients = bytes_of(2), weights = bytes_of(3);
  ASSERT_GT(whole, gradients);
  ASSERT_GT(gradients, weights);
  struct Case {
    int64_t budget;
    int zero_stage;  // of what is taken
  };
  for (const Case& one : {Case{(whole + gradients) / 2, 2}, Case{(gradients + weights) / 2, 3}}) {
    RunSetup run = setup(one.budget);
    run.plan_options.data.size = 2;
    const LayoutChoice choice = choose_layout(run, /*ranks_given=*/true, [](std::string_view) {});
    ASSERT_FALSE(choice.weighed.empty());
    EXPECT_EQ(run.plan_options.data.size, 2);
    EXPECT_EQ(run.plan_options.data.zero_stage, one.zero_stage);
    EXPECT_TRUE(names(choice.weighed.front(), fmt::format("zero {}", one.zero_stage))) << choice.weighed.front().layout;
    EXPECT_LE(choice.weighed.front().bytes, 2 * one.budget);
    EXPECT_GT(choice.weighed.front().seconds, 0) << "not timed";
    for (int stage = 0; stage < one.zero_stage; ++stage)
      EXPECT_TRUE(std::any_of(choice.weighed.begin(), choice.weighed.end(), [&](const WeighedLayout& w) { return names(w, fmt::format("zero {}", stage)) && w.reason == "does not fit"; }))
          << "zero " << stage;
    for (const Plan& plan : plan_run(run)) EXPECT_LE(plan.memory.total_bytes, one.budget);
  }
  RunSetup none = setup(weights / 2);
  none.plan_options.data.size = 2;
  EXPECT_THROW(choose_layout(none, true, [](std::string_view) {}), Error);
}

// The ranks that share layers, too, are predicted from what their ops take, waits for each other included.
TEST_F(AutoLayout, PredictsTensorAndPipelineRanks) {
  for (const bool tensor : {true, false}) {
    RunSetup run = setup(0);
    if (tensor) run.plan_options.parallel = {.tensor_size = 2, .sequence_parallel = true};
    else run.plan_options.pipeline.size = 2;
    const LayoutChoice choice = choose_layout(run, /*ranks_given=*/true, [](std::string_view) {});
    EXPECT_GT(choice.weighed.front().seconds, 0) << (choice.prediction.missing.empty() ? "" : choice.prediction.missing.front());
  }
}

}  // namespace
}  // namespace orrery
