// Ranks that share layers (tensor, sequence and context parallel): they change sums inside ops (the gradients' bounds against float64 are in
// tests/equivalence), and for a given way of sharing nothing else changes a bit: data-parallel ranks, ZeRO stage, pipeline, micro-batch, recompute.
// The bytes on each link are the planned ones (GroupTest::check_bytes), and activations fall as they should.
#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "train/rank_group_testing.h"

namespace orrery {
namespace {

using testing::group_options;
using testing::Outcome;

class SharedLayersTest : public testing::GroupTest {
 protected:
  // The reference by one micro-batch, then the same way of sharing with everything else.
  void expect_composes(TrainingPlanOptions options, const ParallelContext& parallel) {
    SCOPED_TRACE(fmt::format("tensor {}{} context {} {}", parallel.tensor_size, parallel.sequence_parallel ? " sequence" : "", parallel.context_size, context_method_name(parallel.context_method)));
    const Outcome one_rank = train(options, 1);
    options.parallel = parallel;
    options.micro_batch_size = 16;
    // The same run but for roundings: the first loss and norm, before any update.
    const Outcome first = train(options, 1);
    const double precision = options.compute_dtype == DType::kBF16 ? 0x1p-8 : 0x1p-20;
    EXPECT_NEAR(first.numbers[0], one_rank.numbers[0], precision * one_rank.numbers[0]);
    EXPECT_NEAR(first.numbers[1], one_rank.numbers[1], 4 * precision * one_rank.numbers[1]);
    EXPECT_EQ(first.numbers[2], one_rank.numbers[2]);
    EXPECT_EQ(first.weights_and_state.size(), one_rank.weights_and_state.size());
    const Outcome reference = train(options);
    options.micro_batch_size = 1;
    options.recompute = Recompute::kFull;
    options.data = {2, 0, 1};
    expect_equal(options, reference);
    if (parallel.num_parts() <= 4) {
      options.data = {3, 0, 0};
      options.micro_batch_size = 4;
      expect_equal(options, reference);
    }
    options.data = {1, 0, 0};
    options.pipeline.size = 2;
    options.pipeline.kind = PipelineKind::kZbV;
    options.micro_batch_size = 2;
    options.recompute = Recompute::kSelective;
    options.model.num_layers = 2;
    options.pipeline.stage_layers = {0, 1, 1, 0};
    expect_equal(options, reference);
    options.data = {2, 0, 1};
    options.pipeline.kind = PipelineKind::k1F1B;
    options.pipeline.stage_layers = {};
    expect_equal(options, reference);
  }
};

TEST_F(SharedLayersTest, TensorRanksCompose) {
  expect_composes(group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_), {.tensor_size = 2});
  expect_composes(group_options(ModelFamily::kGpt2, true, DType::kBF16, dataset_), {.tensor_size = 4});
}

// Two kv heads for four ranks, and norms of heads that every rank has some of.
TEST_F(SharedLayersTest, TensorRanksThatShareKvHeadsCompose) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, false, DType::kF32, dataset_);
  options.model.qk_norm = true;
  options.model.attention_bias = true;
  expect_composes(options, {.tensor_size = 4});
  options.compute_dtype = DType::kBF16;
  expect_composes(options, {.tensor_size = 2});
}

// Packed documents that begin and end anywhere in the chunks.
TEST_F(SharedLayersTest, ContextRanksCompose) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_);
  options.model.sliding_window = 7;
  expect_composes(options, {.context_size = 2});
  options.compute_dtype = DType::kF32;
  options.model.sliding_window = 0;
  expect_composes(options, {.context_size = 4});
  expect_composes(group_options(ModelFamily::kGpt2, true, DType::kBF16, dataset_), {.context_size = 2, .context_method = ContextMethod::kUlysses});
}

TEST_F(SharedLayersTest, TensorRanksThatShareTokensCompose) {
  expect_composes(group_options(ModelFamily::kLlama, false, DType::kBF16, dataset_), {.tensor_size = 2, .sequence_parallel = true});
  expect_composes(group_options(ModelFamily::kGpt2, true, DType::kF32, dataset_), {.tensor_size = 4, .sequence_parallel = true});
  expect_composes(group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_), {.tensor_size = 2, .context_size = 2, .sequence_parallel = true});
}

// What the formulas say (Korthikanti et al. 2022, arXiv:2205.05198, table 2, with attention that keeps no scores): context ranks divide all that a
// token leaves behind; tensor ranks divide what stands inside attention and MLP, and with shared tokens the rest too.
TEST_F(SharedLayersTest, ActivationsFallAsTokensAreShared) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_);
  options.model.hidden_size = 512;
  options.model.num_layers = 6;
  options.model.num_heads = 8;
  options.model.num_kv_heads = 4;
  options.model.head_dim = 64;
  options.model.intermediate_size = 1024;
  options.model.max_seq_len = options.sequence_tokens = 2048;
  options.lanes = options.global_batch_size = 2;
  options.micro_batch_size = 1;
  options.recompute = Recompute::kNone;
  const auto activations = [&](const ParallelContext& parallel) {
    options.parallel = parallel;
    int64_t most = 0;
    for (const Plan& plan : make_training_plans(options, workspace_traits(default_engine_options(1), options.sequence_tokens)))
      most = std::max(most, plan.memory.class_bytes[static_cast<size_t>(MemoryClass::kActivations)]);
    return static_cast<double>(most) / (1 << 20);
  };
  const double whole = activations({});
  // What is one op's at a time (a product's packed operand, keys that come round) adds to what is kept: a tenth. And where tensor ranks share
  // tokens, a product has all: of its input, its output's gradient and its input's.
  constexpr double kTransient = 1.1;
  const auto gathered = [&](const ParallelContext& parallel) {
    return parallel.shares_tokens() ? 3.0 * static_cast<double>(options.sequence_tokens / parallel.context_size * options.model.hidden_size * 2) / (1 << 20) : 0;
  };
  for (const ParallelContext& parallel :
       {ParallelContext{.context_size = 2}, ParallelContext{.context_size = 4}, ParallelContext{.context_size = 8}, ParallelContext{.context_size = 2, .context_method = ContextMethod::kUlysses},
        ParallelContext{.tensor_size = 2, .sequence_parallel = true}, ParallelContext{.tensor_size = 4, .sequence_parallel = true},
        ParallelContext{.tensor_size = 2, .context_size = 2, .sequence_parallel = true}}) {
    const double shared = activations(parallel);
    std::printf("tensor %ld%s context %ld %s: %.1f of %.1f MiB, a %ldth is %.1f\n", parallel.tensor_size, parallel.sequence_parallel ? " sequence" : "", parallel.context_size,
                std::string(context_method_name(parallel.context_method)).c_str(), shared, whole, parallel.num_parts(), whole / static_cast<double>(parallel.num_parts()));
    EXPECT_LT(shared, kTransient * whole / static_cast<double>(parallel.num_parts()) + gathered(parallel));
  }
  // Without shared tokens residuals and norms stay whole.
  EXPECT_GT(activations({.tensor_size = 4}), 1.3 * activations({.tensor_size = 4, .sequence_parallel = true}));
}

TEST_F(SharedLayersTest, RefusesWhatDoesNotDivideAndSaysWhatWould) {
  const WorkspaceBytes traits = workspace_traits(default_engine_options(1), testing::kGroupSequenceTokens);
  const auto refusal = [&](const ParallelContext& parallel) {
    TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_);
    options.parallel = parallel;
    return testing::error_of([&] { make_training_plans(options, traits); }).first;
  };
  const auto expect_says = [](const std::string& message, std::string_view wanted) { EXPECT_NE(message.find(wanted), std::string::npos) << message; };
  expect_says(refusal({.tensor_size = 3}), "tensor_parallel_size = 3 does not divide model.num_heads = 4; use one of 1, 2, 4");
  expect_says(refusal({.context_size = 3}), "context_parallel_size = 3 does not cut data.seq_len = 32 into 6 equal chunks, two for each rank; use a seq_len that is a multiple of 6");
  expect_says(refusal({.context_size = 4, .context_method = ContextMethod::kUlysses}),
              "context_parallel_size = 4 does not divide the 4 heads and 2 kv heads of a rank; use one of 2, or context_method = \"ring\"");
  expect_says(refusal({.tensor_size = 4, .context_size = 16, .sequence_parallel = true}), "tensor_parallel_size = 4 does not divide the 2 tokens of a sequence on each context rank; use a seq_len that is a multiple of 128");
}

}  // namespace
}  // namespace orrery
