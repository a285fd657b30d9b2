// Ranks that share layers (tensor, sequence and context parallel): they change sums inside ops (the gradients' bounds against float64 are in
// tests/equivalence), and for a given way of sharing nothing else changes a bit: data-parallel ranks, ZeRO stage, pipeline, micro-batch, recompute.
// The bytes on each link are the planned ones (GroupTest::check_bytes), and activations fall as they should.
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

}  // namespace
}  // namespace orrery
