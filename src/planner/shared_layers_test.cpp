// Ranks that share layers agree in every way of sharing, and a plan of one of them that is broken in any collective op (dropped, doubled, moved
// behind the next one, of another size or group) is refused: each of these would hang, or add what does not belong together.
#include "planner/shared_layers.h"

#include <gtest/gtest.h>

#include <set>

#include "base/error.h"
#include "ir/op_table.h"
#include "planner/plan_testing.h"

namespace orrery {
namespace {

std::vector<Plan> plans_of(ModelFamily family, const ParallelContext& parallel) {
  TrainingPlanOptions options = small_plan_options(family, 2, 101);
  options.model.qk_norm = family == ModelFamily::kLlama;
  options.parallel = parallel;
  options.data = {2, 0, 1};
  return make_training_plans(options, [](const Stage&, const Op&) { return 64; });
}

struct Way {
  ModelFamily family;
  ParallelContext parallel;
};
const Way kWays[] = {{ModelFamily::kLlama, {.tensor_size = 4}},
                     {ModelFamily::kGpt2, {.tensor_size = 2, .context_size = 2, .context_method = ContextMethod::kUlysses}},
                     {ModelFamily::kLlama, {.tensor_size = 2, .context_size = 2, .sequence_parallel = true}}};

TEST(SharedLayers, EveryBrokenOpIsRefused) {
  for (const Way& way : kWays) {
    std::vector<Plan> plans = plans_of(way.family, way.parallel);
    ASSERT_EQ(verify_shared_layers(plans), std::vector<std::string>{});
    Stage& stage = plans[3].stage;
    size_t num_mutants = 0;
    for (size_t block = 0; block < stage.blocks.size(); ++block) {
      std::vector<Op>& ops = stage.blocks[block].ops;
      const std::vector<Op> valid = ops;
      std::vector<size_t> collectives;
      for (size_t i = 0; i < valid.size(); ++i)
        if (is_collective(valid[i].kind)) collectives.push_back(i);
      const auto expect_refused = [&](const char* what, size_t index) {
        EXPECT_FALSE(verify_shared_layers(plans).empty()) << what << " " << op_name(valid[index].kind) << " in " << phase_name(Stage::phase_of(block));
        ops = valid;
        ++num_mutants;
      };
      for (size_t at = 0; at < collectives.size(); ++at) {
        const size_t i = collectives[at];
        ops.erase(ops.begin() + static_cast<std::ptrdiff_t>(i));
        expect_refused("dropped", i);
        ops.insert(ops.begin() + static_cast<std::ptrdiff_t>(i), valid[i]);
        expect_refused("doubled", i);
        if (at + 1 < collectives.size()) {
          std::swap(ops[i], ops[collectives[at + 1]]);
          expect_refused("swapped", i);
        }
        Value& value = stage.values[static_cast<size_t>(valid[i].inputs[0])];
        const Value whole = value;
        value.shape.back().bound += 1;
        expect_refused("longer", i);
        value = whole;
        if (auto* group = std::get_if<GroupAttributes>(&ops[i].attributes)) {
          std::swap(group->size, group->stride);
          if (*group != std::get<GroupAttributes>(valid[i].attributes)) expect_refused("another group for", i);
          ops = valid;
        }
      }
    }
    EXPECT_GT(num_mutants, 70u);
  }
}

// By the formulas: 2 (n - 1) / n of an all_reduce's bytes, half of it for each of gather and reduce_scatter, a ring's keys and values n - 1 times.
TEST(SharedLayers, BytesAreThoseOfTheFormulas) {
  constexpr int64_t kTokens = 8 * 32 / 2, kHidden = 64, kLayers = 2;  // of a data-parallel rank
  const auto bytes_of = [](const Way& way) { return op_bytes_sent(plans_of(way.family, way.parallel).front()); };
  const auto tensor = bytes_of({ModelFamily::kGpt2, {.tensor_size = 4}});
  // Forward: embedding, and two a layer; backward: two a layer, and the head.
  EXPECT_EQ(tensor.at(OpKind::kAllReduce), (2 + 4 * kLayers) * 2 * kTokens * kHidden * 2 * 3 / 4);
  const auto tokens = bytes_of({ModelFamily::kGpt2, {.tensor_size = 4, .sequence_parallel = true}});
  const int64_t share = kTokens * kHidden * 2 * 3 / 4;
  EXPECT_EQ(tokens.at(OpKind::kReduceScatterTokens), (2 + 4 * kLayers) * share);
  // Two a layer and the head's in the forward, again in the backward, where the gradients behind each product and the embedding's come too.
  EXPECT_EQ(tokens.at(OpKind::kGatherTokens), (2 * (2 * kLayers + 1) + 2 * kLayers + 1) * share);
  const auto ring = bytes_of({ModelFamily::kLlama, {.context_size = 4}});
  const int64_t keys_and_values = kTokens / 4 * 2 * 32;  // elements of two kv heads of 16
  EXPECT_EQ(ring.at(OpKind::kRingAttention), kLayers * 3 * keys_and_values * 2);
  EXPECT_EQ(ring.at(OpKind::kRingAttentionGrad), kLayers * (3 * keys_and_values * 2 + 4 * keys_and_values * 4));
}

// Ranks that outnumber the kv heads hold whole heads of keys and values, more than an even share. Every block of squares has a place of its
// own among the sums of all ranks, and every element of the model counts once.
TEST(SharedLayers, EveryNormBlockHasItsPlace) {
  TrainingPlanOptions options = small_plan_options(ModelFamily::kLlama, 2, 101);
  options.model.hidden_size = 1024, options.model.num_heads = 8, options.model.num_kv_heads = 2, options.model.head_dim = 128;
  options.parallel = {.tensor_size = 8};
  std::set<int64_t> taken;
  int64_t num_elements = 0;
  for (const Plan& plan : make_training_plans(options, [](const Stage&, const Op&) { return 64; }))
    for (const Op& op : plan.stage.block(Phase::kNorm, 0).ops) {
      if (op.kind != OpKind::kSquaredSums) continue;
      const Value& sums = plan.stage.values[static_cast<size_t>(op.outputs[0])];
      for (int64_t block = 0; block < sums.shape[0].bound; ++block) EXPECT_TRUE(taken.insert(sums.element_offset + block).second) << sums.name;
      EXPECT_LE(sums.element_offset + sums.shape[0].bound, plan.num_norm_blocks) << sums.name;
      num_elements += plan.stage.values[static_cast<size_t>(op.inputs[0])].shape[0].bound;
    }
  EXPECT_EQ(num_elements, num_parameters(options.model));
}

}  // namespace
}  // namespace orrery
