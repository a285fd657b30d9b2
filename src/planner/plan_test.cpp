// Plans as values: whatever the options, the plan verifies (verify.h is written independently of the memory map), equal inputs give
// equal plans, recompute frees memory, and a plan broken by hand is refused with a reason.
#include "planner/plan.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "ir/op_table.h"
#include "ir/verify.h"
#include "ir/verify_schedules.h"
#include "planner/plan_testing.h"

namespace orrery {
namespace {

int64_t fake_workspace(const Stage&, const Op& op) { return op.kind == OpKind::kLinear ? 1000 : 0; }

TrainingPlanOptions small_options(ModelFamily family) {
  TrainingPlanOptions options = small_plan_options(family, 3, 100);
  options.segments_per_sequence = 4;
  return options;
}

TEST(Plan, EveryChoiceVerifiesAndEqualInputsGiveEqualPlans) {
  for (ModelFamily family : {ModelFamily::kGpt2, ModelFamily::kLlama})
    for (bool qk_norm : {false, true})
      for (int64_t micro_batch : {1, 2, 3, 4, 8})
        for (Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
          TrainingPlanOptions options = small_options(family);
          options.model.qk_norm = qk_norm && family == ModelFamily::kLlama;
          options.micro_batch_size = micro_batch;
          options.recompute = recompute;
          const Plan plan = make_training_plan(options, fake_workspace);
          EXPECT_EQ(verify_plan(plan.stage, plan.schedule, plan.memory), std::vector<std::string>{});
          EXPECT_GE(plan.memory.class_bytes[static_cast<size_t>(MemoryClass::kActivations)], plan.memory.activation_lower_bound);
          EXPECT_EQ(plan_to_json(plan), plan_to_json(make_training_plan(options, fake_workspace)));
        }
}

TEST(Plan, RecomputeFreesActivations) {
  for (ModelFamily family : {ModelFamily::kGpt2, ModelFamily::kLlama}) {
    TrainingPlanOptions options = small_options(family);
    options.evaluates = false;
    options.model.vocab_size = 64;
    options.model.num_layers = 12;
    int64_t before = 0;
    for (Recompute recompute : {Recompute::kFull, Recompute::kSelective, Recompute::kNone}) {
      options.recompute = recompute;
      const Plan plan = make_training_plan(options, fake_workspace);
      EXPECT_GT(plan.memory.activation_lower_bound, before) << recompute_name(recompute);
      before = plan.memory.activation_lower_bound;
      EXPECT_EQ(plan.recompute_flops_per_step > 0, recompute == Recompute::kFull);
    }
  }
}

// With one micro-batch a step, gradients lie where activations died: the arena is the smaller by most of their bytes, on every rank, and a gradient
// moved onto any other is refused.
TEST(Plan, GradientsOfOneMicroBatchTakeThePlaceOfActivations) {
  for (ModelFamily family : {ModelFamily::kGpt2, ModelFamily::kLlama})
    for (int64_t ranks : {1, 2}) {
      TrainingPlanOptions options = small_options(family);
      options.evaluates = false;
      options.model.num_layers = 8;
      options.model.vocab_size = 64;
      options.data.size = ranks;
      options.micro_batch_size = options.global_batch_size / ranks;
      const auto gradients = [](const Plan& plan) { return plan.memory.class_bytes[static_cast<size_t>(MemoryClass::kGradients)]; };
      const std::vector<Plan> plans = make_training_plans(options, fake_workspace);
      options.micro_batch_size = *options.micro_batch_size / 2;
      const std::vector<Plan> apart = make_training_plans(options, fake_workspace);
      for (size_t rank = 0; rank < plans.size(); ++rank) {
        EXPECT_TRUE(plans[rank].memory.gradients_by_lifetime && !apart[rank].memory.gradients_by_lifetime);
        EXPECT_LT(2 * gradients(plans[rank]), gradients(apart[rank])) << model_family_name(family) << " " << ranks;
      }
      const Plan& good = plans.front();
      const std::array<int64_t, 2>* last = &good.memory.gradient_offset.back();
      for (size_t i = 0; i < good.memory.gradient_offset.size(); ++i) {
        Plan broken = good;
        broken.memory.gradient_offset[i][0] = (*last)[0];
        EXPECT_FALSE(verify_plan(broken.stage, broken.schedule, broken.memory).empty()) << good.stage.parameters[i].name;
        last = &good.memory.gradient_offset[i];
      }
    }
}

TEST(Plan, ChoosesWhatFitsAndSaysTheLeastThatWould) {
  TrainingPlanOptions options = small_options(ModelFamily::kLlama);
  options.memory_budget_bytes = 1;
  try {
    make_training_plan(options, fake_workspace);
    FAIL() << "a plan of one byte";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidConfig);
    EXPECT_NE(std::string(error.what()).find("the least that would do"), std::string::npos);
  }
}

// A budget between what nothing and everything made again need: the plan fits it, takes no more than it must, and spends less than the policies
// that do not look at it.
TEST(Plan, RecomputesAsMuchAsTheBudgetAsksFor) {
  for (ModelFamily family : {ModelFamily::kGpt2, ModelFamily::kLlama})
    for (int64_t pipeline : {1, 2}) {
      TrainingPlanOptions options = small_options(family);
      options.evaluates = false;
      options.model.num_layers = 12;
      options.model.vocab_size = 64;
      options.sequence_tokens = options.model.max_seq_len = 512;
      options.micro_batch_size = 2;
      options.pipeline.size = pipeline;
      const auto most_bytes = [](const std::vector<Plan>& plans) {
        int64_t most = 0;
        for (const Plan& plan : plans) most = std::max(most, plan.memory.total_bytes);
        return most;
      };
      const auto with = [&](Recompute recompute) {
        options.recompute = recompute;
        return make_training_plans(options, fake_workspace);
      };
      const std::vector<Plan> none = with(Recompute::kNone), selective = with(Recompute::kSelective), full = with(Recompute::kFull);
      options.recompute.reset();
      int last_level = 0;
      double last_flops = 0;
      for (int part = 9; part >= 1; --part) {
        options.memory_budget_bytes = most_bytes(full) + (most_bytes(none) - most_bytes(full)) * part / 10;
        const std::vector<Plan> plans = make_training_plans(options, fake_workspace);
        ASSERT_LE(most_bytes(plans), options.memory_budget_bytes);
        EXPECT_EQ(plans.front().recompute, Recompute::kBudget);
        EXPECT_GE(plans.front().options.recompute_level, last_level);
        EXPECT_GE(plans.front().recompute_flops_per_step, last_flops);
        last_level = plans.front().options.recompute_level;
        last_flops = plans.front().recompute_flops_per_step;
        EXPECT_LT(last_flops, full.front().recompute_flops_per_step);
      }
      EXPECT_GT(last_level, 0);
      // For as many bytes no more time than the policy that makes the same ops again in each layer.
      const auto time_of = [&](const std::vector<Plan>& plans) {
        double time = 0;
        for (const Plan& plan : plans)
          for (const Op& op : plan.stage.block(Phase::kBackward).ops) {
            const OpCost cost = op_cost(plan.stage, op, options.sequence_tokens, 1);
            if (op.recomputed) time += cost.bytes_read + cost.bytes_written + cost.flops / options.flops_per_byte;
          }
        return time;
      };
      options.memory_budget_bytes = most_bytes(selective);
      EXPECT_LE(time_of(make_training_plans(options, fake_workspace)), time_of(selective));
    }
}

// Each mutation breaks one promise of verify.h; each must be named.
TEST(Verify, RefusesBrokenPlans) {
  TrainingPlanOptions options = small_options(ModelFamily::kLlama);
  options.micro_batch_size = 1;
  const Plan good = make_training_plan(options, fake_workspace);
  const auto broken = [&](auto&& mutate) {
    Plan plan = good;
    mutate(plan);
    if (!verify_plan(plan.stage, plan.schedule, plan.memory).empty()) return true;
    const std::vector<Plan> world = {plan};
    return !verify_schedules({plan.schedule}, schedule_context(world)).empty();
  };
  EXPECT_TRUE(broken([](Plan& plan) { plan.schedule.actions.pop_back(); }));
  EXPECT_TRUE(broken([](Plan& plan) { std::swap(plan.schedule.actions[1], plan.schedule.actions[2]); }));
  EXPECT_TRUE(broken([](Plan& plan) { plan.schedule.actions.erase(plan.schedule.actions.begin()); }));
  EXPECT_TRUE(broken([](Plan& plan) { plan.schedule.actions[1].merges.push_back(1); }));
  for (size_t i = 0; i < good.schedule.actions.size(); ++i) {
    EXPECT_TRUE(broken([&](Plan& plan) { plan.schedule.actions.erase(plan.schedule.actions.begin() + static_cast<long>(i)); })) << i;
    if (good.schedule.actions[i].kind == ActionKind::kOptimizer) continue;
    EXPECT_TRUE(broken([&](Plan& plan) { plan.schedule.actions[i].gradient_buffer ^= 1; })) << i << to_string(good.schedule.actions[i], good.schedule);
  }
  // Any activation that is read moved onto its neighbour, or out of the arena.
  int moved = 0;
  for (size_t value = 0; value < good.stage.values.size(); ++value) {
    if (good.memory.activation_offset[value] < 0) continue;
    EXPECT_TRUE(broken([&](Plan& plan) { plan.memory.activation_offset[value] = plan.memory.total_bytes; })) << good.stage.values[value].name;
    ++moved;
  }
  EXPECT_GT(moved, 50);
}

// With delayed gradients: every op of the update dropped, or exchanged with the one behind it, that would leave a weight without its older version.
TEST(Verify, RefusesUpdatesThatLoseAWeightVersion) {
  TrainingPlanOptions options = small_options(ModelFamily::kLlama);
  options.optimizer.gradient_delay = 1;
  const Plan plan = make_training_plan(options, fake_workspace);
  const std::vector<Op>& ops = plan.stage.block(Phase::kOptimizer).ops;
  int num_copies = 0;
  for (size_t i = 0; i < ops.size(); ++i) {
    if (ops[i].kind != OpKind::kCopy) continue;
    ++num_copies;
    Plan dropped = plan, exchanged = plan;
    auto& without = dropped.stage.block(Phase::kOptimizer).ops;
    without.erase(without.begin() + static_cast<ptrdiff_t>(i));
    EXPECT_FALSE(verify_plan(dropped.stage, dropped.schedule, dropped.memory).empty()) << i;
    auto& late = exchanged.stage.block(Phase::kOptimizer).ops;
    std::swap(late[i], late[i + 1]);
    EXPECT_FALSE(verify_plan(exchanged.stage, exchanged.schedule, exchanged.memory).empty()) << i;
  }
  EXPECT_EQ(num_copies, static_cast<int>(plan.stage.parameters.size()));
}

// Where steps run into each other, each rank keeps what the next step has read as that step's weights, tied and sharded or not, and has all of it; and
// memory of micro-batches that cross from step to step is nobody else's, the update's included.
TEST(Verify, RefusesCarriedWorkThatLosesItsWeightsOrMemory) {
  TrainingPlanOptions options = small_options(ModelFamily::kLlama);
  options.optimizer.gradient_delay = 1;
  options.micro_batch_size = 1;
  options.recompute = Recompute::kNone;
  options.model.tie_embeddings = true;
  options.pipeline.size = 2, options.pipeline.kind = PipelineKind::k2Bw;
  options.data = {2, 0, 1};
  int num_copies = 0, num_moved = 0;
  for (const Plan& plan : make_training_plans(options, fake_workspace)) {
    ASSERT_TRUE(plan.schedule.carries);
    const auto refused = [&](auto&& breaks) {
      Plan broken = plan;
      breaks(broken);
      return !verify_plan(broken.stage, broken.schedule, broken.memory).empty();
    };
    EXPECT_FALSE(refused([](Plan&) {}));
    const std::vector<Op>& ops = plan.stage.block(Phase::kOptimizer).ops;
    for (size_t i = 0; i < ops.size(); ++i)
      if (ops[i].kind == OpKind::kCopy) {
        EXPECT_TRUE(refused([&](Plan& broken) { broken.stage.block(Phase::kOptimizer).ops.erase(broken.stage.block(Phase::kOptimizer).ops.begin() + static_cast<ptrdiff_t>(i)); })) << i;
        ++num_copies;
      }
    for (size_t i = 0; i < plan.stage.parameters.size(); ++i)
      EXPECT_TRUE(refused([&](Plan& broken) { broken.memory.state_offset[i][static_cast<size_t>(StateField::kNewest)] = -1; })) << plan.stage.parameters[i].name;
    // What a forward saves for the backward, put where another slot of the same value is.
    const auto num_slots = static_cast<size_t>(plan.memory.num_slots);
    for (size_t value = 0; num_slots > 1 && value < plan.stage.values.size(); ++value) {
      const int64_t first = plan.memory.activation_offset[value * num_slots], second = plan.memory.activation_offset[value * num_slots + 1];
      if (first < 0 || second < 0 || first == second) continue;
      EXPECT_TRUE(refused([&](Plan& broken) { broken.memory.activation_offset[value * num_slots + 1] = first; })) << plan.stage.values[value].name;
      ++num_moved;
    }
  }
  EXPECT_GT(num_copies, 20);
  EXPECT_GT(num_moved, 5);
}

// Offloaded activations: memory that is taken for gone, or for back, before it is, is refused by what then lies in it.
TEST(Verify, RefusesActivationsWhoseMemoryIsTakenTooSoon) {
  TrainingPlanOptions options = small_options(ModelFamily::kLlama);
  options.model.num_layers = 6;
  options.offload_activations = true;
  options.recompute = Recompute::kNone;
  const Plan plan = make_training_plan(options, fake_workspace);
  ASSERT_GE(plan.activation_groups.size(), 3u);
  const auto problems_of = [&](const std::vector<ActivationGroup>& groups) { return verify_plan(plan.stage, plan.schedule, plan.memory, {}, groups); };
  EXPECT_TRUE(problems_of(plan.activation_groups).empty());
  for (size_t i = 0; i < plan.activation_groups.size(); ++i) {
    std::vector<ActivationGroup> groups = plan.activation_groups;
    groups[i].gone_before = groups[i].leaves_after;  // before its last use
    EXPECT_FALSE(problems_of(groups).empty()) << i;
    groups = plan.activation_groups;
    groups[i].comes_after = groups[i].needed_before;  // behind its first use
    EXPECT_FALSE(problems_of(groups).empty()) << i;
  }
  // As if nothing left: what the map put into the same place is found there.
  EXPECT_FALSE(problems_of({}).empty());
}

}  // namespace
}  // namespace orrery
