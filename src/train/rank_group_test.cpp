// A data-parallel group against one rank: the same weights, state, losses and norms bit for bit for every number of ranks, ZeRO stage,
// micro-batch size and model family; planned arena bytes are allocated bytes on every rank; and the bytes that each rank sends are
// those of the ring all-reduce plus one reduction of the tied matrix, as the plan's cuts say.
#include "train/rank_group.h"

#include <gtest/gtest.h>

#include <cstring>

#include "data/testing.h"

namespace orrery {
namespace {

constexpr int kSequenceTokens = 32, kVocabulary = 53;

TrainingPlanOptions group_options(ModelFamily family, bool tied, DType dtype, const Dataset& dataset) {
  TrainingPlanOptions options;
  options.model = default_model_config(family);
  options.model.hidden_size = 96;  // matrices of more than one norm block, none a multiple of it
  options.model.num_layers = 2;
  options.model.num_heads = 4;
  options.model.num_kv_heads = family == ModelFamily::kGpt2 ? 4 : 2;
  options.model.intermediate_size = 96;
  options.model.vocab_size = kVocabulary;
  options.model.max_seq_len = kSequenceTokens;
  if (family == ModelFamily::kLlama) options.model.tie_embeddings = tied;
  resolve(options.model);
  options.compute_dtype = dtype;
  options.sequence_tokens = kSequenceTokens;
  options.global_batch_size = 16;
  options.lanes = 8;
  options.segments_per_sequence = dataset.max_segments_per_sample();
  options.evaluates = true;
  return options;
}

struct Outcome {
  std::vector<std::byte> weights_and_state;  // of the logical tensors
  std::vector<double> numbers;               // losses and norms of the steps, the loss of an evaluation
  bool operator==(const Outcome&) const = default;
};

void append_tensors(const std::vector<PhysicalTensor>& tensors, std::vector<std::byte>& bytes) {
  for (const TensorSource& source : tensor_sources(tensors, "")) {
    const size_t begin = bytes.size();
    bytes.resize(begin + source.bytes());
    source.read(0, std::span(bytes).subspan(begin));
  }
}

class GroupTest : public ::testing::Test {
 protected:
  GroupTest()
      : shard_((testing::write_shard(directory_ / "data.orrtok", testing::random_documents(200, 60, kVocabulary, true, 5), kVocabulary), directory_ / "data.orrtok")),
        dataset_({{"data", {shard_}, 1.0}}, {.seq_len = kSequenceTokens, .vocab_size = kVocabulary}) {}

  Outcome train(const TrainingPlanOptions& options, int num_steps = 3) {
    const EngineOptions engine = default_engine_options(2);
    EngineOptions each = engine;
    each.num_threads = rank_threads(engine.num_threads, static_cast<int>(options.data.size));
    RankGroup group(make_training_plans(options, workspace_traits(each, kSequenceTokens)), engine);
    for (int rank = 0; rank < group.size(); ++rank) EXPECT_EQ(group.engine(rank).arena().bytes(), group.plan(rank).memory.total_bytes);
    group.initialize_weights(11);
    group.start_data(dataset_, 0);
    Outcome outcome;
    for (int step = 0; step < num_steps; ++step) {
      OptimizerHyper hyper;
      hyper.lr = 1e-2f;
      hyper.beta1 = 0.9f;
      hyper.beta2 = 0.95f;
      hyper.eps = 1e-8f;
      hyper.weight_decay = 0.1f;
      hyper.clip = 0.5f;
      const StepResult result = group.step(step, hyper, {});
      outcome.numbers.insert(outcome.numbers.end(), {result.loss_sum, result.gradient_norm, static_cast<double>(result.num_valid)});
    }
    const StepResult evaluated = group.evaluate(dataset_, 0, 11);
    outcome.numbers.insert(outcome.numbers.end(), {evaluated.loss_sum, static_cast<double>(evaluated.num_valid)});
    std::vector<std::byte> first;
    append_tensors(group.weights(0), first);
    for (int rank = 1; rank < group.size(); ++rank) {
      std::vector<std::byte> other;
      append_tensors(group.weights(rank), other);
      EXPECT_TRUE(other == first) << "rank " << rank << " ends with other weights";
    }
    outcome.weights_and_state = first;
    for (StateField field : {StateField::kLow, StateField::kMoment1, StateField::kMoment2}) append_tensors(group.state(field, 0), outcome.weights_and_state);
    return outcome;
  }

  testing::TemporaryDirectory directory_;
  std::string shard_;
  Dataset dataset_;
};

TEST_F(GroupTest, SameBitsForEveryNumberOfRanksAndZeroStage) {
  struct Case {
    ModelFamily family;
    bool tied;
    DType dtype;
  };
  for (const Case& shape : {Case{ModelFamily::kLlama, true, DType::kBF16}, Case{ModelFamily::kLlama, false, DType::kF32}, Case{ModelFamily::kGpt2, true, DType::kBF16}}) {
    TrainingPlanOptions options = group_options(shape.family, shape.tied, shape.dtype, dataset_);
    options.micro_batch_size = 16;
    const Outcome reference = train(options);
    ASSERT_NE(reference.numbers[0], reference.numbers[3]);
    // Every pair of (ranks, micro-batch size) and both stages; the recompute policy goes round.
    int round = 0;
    for (int64_t ranks : {2, 3, 4, 8})
      for (int64_t micro_batch : {1, 3, 4})
        for (int zero_stage : {0, 1}) {
          options.data = {ranks, 0, zero_stage};
          options.micro_batch_size = micro_batch;
          options.recompute = std::array{Recompute::kNone, Recompute::kSelective, Recompute::kFull}[static_cast<size_t>(round++ % 3)];
          const Outcome outcome = train(options);
          EXPECT_EQ(outcome.numbers, reference.numbers) << ranks << " ranks, micro-batch " << micro_batch << ", ZeRO-" << zero_stage;
          EXPECT_TRUE(outcome.weights_and_state == reference.weights_and_state) << ranks << " ranks, micro-batch " << micro_batch << ", ZeRO-" << zero_stage;
        }
  }
}

TEST_F(GroupTest, MomentsInShardsTakeTheirPartOfTheMemory) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_);
  const WorkspaceBytes traits = workspace_traits(default_engine_options(1), kSequenceTokens);
  options.data = {4, 0, 0};
  const auto whole = make_training_plans(options, traits);
  options.data.zero_stage = 1;
  const auto sharded = make_training_plans(options, traits);
  const auto moments = [](const Plan& plan) { return plan.memory.class_bytes[static_cast<size_t>(MemoryClass::kMoments)]; };
  int64_t sum = 0;
  for (const Plan& plan : sharded) {
    sum += moments(plan);
    EXPECT_LT(moments(plan), moments(whole[0]) / 2);
  }
  // Each shard starts on a cache line, nothing else is lost.
  const auto num_ranges = static_cast<int64_t>(2 * whole[0].stage.parameters.size() * 4);
  EXPECT_GE(sum, moments(whole[0]) - num_ranges * kArenaAlignment);
  EXPECT_LE(sum, moments(whole[0]) + num_ranges * kArenaAlignment);
}

TEST_F(GroupTest, BytesSentAreThoseOfTheCuts) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_);
  for (int64_t ranks : {2, 3, 4}) {
    options.data = {ranks, 0, 0};
    EngineOptions engine = default_engine_options(1);
    RankGroup group(make_training_plans(options, workspace_traits(engine, kSequenceTokens)), engine);
    group.initialize_weights(1);
    group.start_data(dataset_, 0);
    group.step(0, OptimizerHyper{.lr = 1e-3f}, {});
    for (int rank = 0; rank < ranks; ++rank) {
      const Plan& plan = group.plan(rank);
      // RS: each piece's elements that others own. GG: what this rank owns, to each other rank. Both f32.
      int64_t reduced = 0, gathered = 0;
      for (const ParameterUnit& unit : plan.units) {
        const int64_t own = unit.cuts[static_cast<size_t>(rank) + 1] - unit.cuts[static_cast<size_t>(rank)];
        reduced += static_cast<int64_t>(plan.schedule.piece_buffers.size()) * (unit.cuts.back() - unit.cuts.front() - own) * 4;
        if (unit.accumulator == 0) gathered += own * (ranks - 1) * 4;
      }
      int64_t sent_reducing = 0, sent_gathering = 0;
      for (const CommLabelCounter& counter : group.communicator(rank).label_counters()) {
        const std::string_view label = counter.label;
        (label.starts_with("RS") ? sent_reducing : label.starts_with("GG") ? sent_gathering : reduced) += label.starts_with("XS") ? 0 : counter.bytes_sent;
      }
      EXPECT_EQ(sent_reducing, reduced) << rank << " of " << ranks;
      EXPECT_EQ(sent_gathering, gathered) << rank << " of " << ranks;
    }
  }
}

TEST_F(GroupTest, RefusesWhatCannotBe) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_);
  const WorkspaceBytes traits = workspace_traits(default_engine_options(1), kSequenceTokens);
  options.data = {9, 0, 0};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("at most 8 ranks"), std::string::npos);
  options.data = {2, 0, 3};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("zero_stage = 3"), std::string::npos);
}

}  // namespace
}  // namespace orrery
