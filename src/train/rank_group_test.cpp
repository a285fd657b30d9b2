// Groups of ranks against one rank: the same weights, state, losses and norms bit for bit for every number of data-parallel ranks, ZeRO
// stage, micro-batch size, recompute policy, pipeline schedule, split of the layers and model family; planned arena bytes are allocated
// bytes on every rank; and the bytes that each rank sends are those that its plan says.
#include "train/rank_group.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <map>
#include <string>

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
    each.num_threads = rank_threads(engine.num_threads, static_cast<int>(options.world_size()));
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
    for (int replica : group.local_replicas()) {
      std::vector<std::byte> other;
      append_tensors(group.weights(replica), other);
      EXPECT_TRUE(other == first) << "replica " << replica << " ends with other weights";
    }
    outcome.weights_and_state = first;
    for (StateField field : {StateField::kLow, StateField::kMoment1, StateField::kMoment2}) append_tensors(group.state(field, 0), outcome.weights_and_state);
    check_bytes(group, num_steps);
    return outcome;
  }

  // What the counters of all groups say is what the plan says, action by action.
  static void check_bytes(const RankGroup& group, int num_steps) {
    for (int rank = 0; rank < group.size() && group.size() > 1; ++rank) {
      const Plan& plan = group.plan(rank);
      std::map<std::string, int64_t> planned, counted;
      for (const Action& action : plan.schedule.actions)
        if (stream_of(action.kind) == Stream::kPoint || stream_of(action.kind) == Stream::kCollective) planned[to_string(action, plan.schedule)] += num_steps * bytes_sent(plan, action);
      for (const Communicator* communicator : group.communicators(rank))
        for (const CommLabelCounter& counter : communicator->label_counters())
          if (planned.count(counter.label)) counted[counter.label] += counter.bytes_sent;
      EXPECT_EQ(counted, planned) << "rank " << rank;
    }
  }

  // The case differs from one rank in nothing that NUMERICS promises.
  void expect_equal(const TrainingPlanOptions& options, const Outcome& reference, int num_steps = 3) {
    const std::string name =
        fmt::format("pp {} {} x{}, dp {} ZeRO-{}, micro-batch {}, recompute {}", options.pipeline.size, pipeline_name(options.pipeline.kind), options.pipeline.virtual_stages, options.data.size,
                    options.data.zero_stage, options.micro_batch_size.value_or(0), recompute_name(options.recompute.value_or(Recompute::kNone)));
    SCOPED_TRACE(name);
    const Outcome outcome = train(options, num_steps);
    EXPECT_EQ(outcome.numbers, reference.numbers);
    EXPECT_TRUE(outcome.weights_and_state == reference.weights_and_state);
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
          expect_equal(options, reference);
        }
  }
}

// Every synchronous schedule on 2 and 4 ranks, alone and with data parallel ranks; split by cost and by hand.
TEST_F(GroupTest, SameBitsForEveryPipeline) {
  struct Case {
    ModelFamily family;
    bool tied;
    DType dtype;
  };
  struct Pipe {
    PipelineKind kind;
    int64_t virtual_stages;
  };
  int round = 0;
  for (const Case& shape : {Case{ModelFamily::kLlama, true, DType::kBF16}, Case{ModelFamily::kLlama, false, DType::kF32}, Case{ModelFamily::kGpt2, true, DType::kBF16}}) {
    TrainingPlanOptions options = group_options(shape.family, shape.tied, shape.dtype, dataset_);
    options.model.num_layers = 7;
    options.micro_batch_size = 16;
    const Outcome reference = train(options);
    for (const Pipe& pipe : {Pipe{PipelineKind::kGPipe, 1}, Pipe{PipelineKind::k1F1B, 1}, Pipe{PipelineKind::kInterleaved, 2}, Pipe{PipelineKind::kZbH1, 1}, Pipe{PipelineKind::kZbV, 1},
                             Pipe{PipelineKind::kDualPipeV, 1}})
      for (int64_t ranks : {2, 4})
        for (int64_t data : {1, 2}) {
          options.pipeline = {ranks, 0, pipe.kind, pipe.virtual_stages, {}};
          options.data = {data, 0, round % 2};
          // Eight micro-batches a pipeline of 16 / data sequences, or as many as there are.
          options.micro_batch_size = data == 1 ? 2 : 1;
          options.recompute = std::array{Recompute::kNone, Recompute::kSelective, Recompute::kFull}[static_cast<size_t>(round++ % 3)];
          expect_equal(options, reference);
        }
  }
}

TEST_F(GroupTest, SameBitsForEveryShareAndSplit) {
  TrainingPlanOptions options = group_options(ModelFamily::kGpt2, true, DType::kBF16, dataset_);
  options.model.num_layers = 3;
  options.micro_batch_size = 16;
  const Outcome reference = train(options);
  // Micro-batches that are no divisor of a share, shares that are no power of two, the embedding and the head by themselves.
  for (int64_t micro_batch : {1, 3, 4, 16}) {
    options.micro_batch_size = micro_batch;
    options.data = {1, 0, 0};
    options.pipeline = {2, 0, PipelineKind::k1F1B, 1, {0, 3}};
    expect_equal(options, reference);
    options.pipeline = {2, 0, PipelineKind::kZbV, 1, {0, 1, 2, 0}};
    expect_equal(options, reference);
    options.data = {3, 0, 1};
    options.pipeline = {2, 0, PipelineKind::kZbH1, 1, {3, 0}};
    expect_equal(options, reference);
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

// The plan's bytes against the formulas: a ring all-reduce's, plus one reduction of the tied matrix.
TEST_F(GroupTest, PlannedBytesAreThoseOfTheFormulas) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_);
  const WorkspaceBytes traits = workspace_traits(default_engine_options(1), kSequenceTokens);
  for (int64_t ranks : {2, 4}) {
    options.data = {ranks, 0, 0};
    int64_t reduced = 0, gathered = 0;
    const std::vector<Plan> plans = make_training_plans(options, traits);
    for (const Plan& plan : plans)
      for (const Action& action : plan.schedule.actions) {
        if (action.kind == ActionKind::kReduceScatterGradients) reduced += bytes_sent(plan, action);
        if (action.kind == ActionKind::kAllGatherGradients) gathered += bytes_sent(plan, action);
      }
    // Gaps of up to a cache line between the parameters of a unit travel with them.
    const int64_t parameters = plans[0].num_parameters * 4, tied = options.model.vocab_size * options.model.hidden_size * 4;
    const auto num_gaps = static_cast<int64_t>(plans[0].stage.parameters.size());
    EXPECT_GE(reduced, (parameters + tied) * (ranks - 1));
    EXPECT_LE(reduced, (parameters + tied + num_gaps * kArenaAlignment) * (ranks - 1));
    EXPECT_GE(gathered, parameters * (ranks - 1));
    EXPECT_LE(gathered, (parameters + num_gaps * kArenaAlignment) * (ranks - 1));
  }
}

TEST_F(GroupTest, RefusesWhatCannotBe) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_);
  const WorkspaceBytes traits = workspace_traits(default_engine_options(1), kSequenceTokens);
  options.data = {9, 0, 0};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("at most 8 ranks"), std::string::npos);
  options.data = {1, 0, 0};
  options.pipeline = {8, 0, PipelineKind::k1F1B, 1, {}};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("8 pipeline stages"), std::string::npos);
  options.pipeline = {2, 0, PipelineKind::k1F1B, 1, {1, 2}};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("2 stages with 3 layers"), std::string::npos);
  options.pipeline = {};
  options.data = {2, 0, 3};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("zero_stage = 3"), std::string::npos);
}

}  // namespace
}  // namespace orrery
