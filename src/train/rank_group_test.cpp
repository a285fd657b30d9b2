// Groups of ranks against one rank: the same weights, state, losses and norms bit for bit for every number of data-parallel ranks, ZeRO
// stage, micro-batch size, recompute policy, pipeline schedule, split of the layers and model family; planned arena bytes are allocated
// bytes on every rank; and the bytes that each rank sends are those that its plan says. Many more compositions: composition_test.cpp; ranks that share
// layers: shared_layers_test.cpp.
#include "train/rank_group_testing.h"

namespace orrery {
namespace {

using testing::group_options;
using testing::GroupTest;
using testing::Outcome;

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
    // Every pair of (ranks, micro-batch size); the ZeRO stage and the recompute policy go round.
    int round = 0;
    for (int64_t ranks : {2, 3, 4, 8})
      for (int64_t micro_batch : {1, 3, 4})
        for (int zero_stage : {round % 4}) {
          options.data = {ranks, 0, zero_stage};
          options.micro_batch_size = micro_batch;
          options.recompute = std::array{Recompute::kNone, Recompute::kSelective, Recompute::kFull}[static_cast<size_t>(round++ % 3)];
          expect_equal(options, reference);
        }
  }
}

// Every synchronous schedule on 2 and 4 ranks, alone and with data parallel ranks, of a tied model.
TEST_F(GroupTest, SameBitsForEveryPipeline) {
  struct Pipe {
    PipelineKind kind;
    int64_t virtual_stages;
  };
  int round = 0;
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_);
  options.model.num_layers = 7;
  options.micro_batch_size = 16;
  const Outcome reference = train(options);
  for (const Pipe& pipe : {Pipe{PipelineKind::kGPipe, 1}, Pipe{PipelineKind::k1F1B, 1}, Pipe{PipelineKind::kInterleaved, 2}, Pipe{PipelineKind::kZbH1, 1}, Pipe{PipelineKind::kZbV, 1},
                           Pipe{PipelineKind::kDualPipeV, 1}})
    for (int64_t ranks : {2, 4}) {
      const int64_t data = round % 4 < 2 ? 2 : 1;
      options.pipeline = {ranks, 0, pipe.kind, pipe.virtual_stages, {}, {}};
      options.data = {data, 0, round % 2};
      options.micro_batch_size = data == 1 ? 2 : 1;
      options.recompute = std::array{Recompute::kNone, Recompute::kSelective, Recompute::kFull}[static_cast<size_t>(round++ % 3)];
      expect_equal(options, reference);
    }
}

// An order that no kind has: rank 0 runs ahead, rank 1 puts some weight gradients off, and the two hold three stages.
TEST_F(GroupTest, SameBitsForAScheduleFile) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_);
  options.model.num_layers = 3;
  options.micro_batch_size = 16;
  const Outcome reference = train(options);
  options.micro_batch_size = 8;
  options.pipeline.size = 2;
  options.pipeline.order = parse_pipeline_order(
      "rank 0: 0F0 0F1 2F0 2B0 2F1 2B1 0B0 0B1\n"
      "rank 1: 1F0 1F1 1I0 1I1 1W0 1W1\n");
  expect_equal(options, reference);
  options.micro_batch_size = 4;
  const WorkspaceBytes traits = workspace_traits(default_engine_options(1), testing::kGroupSequenceTokens);
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("2 ranks and 2 micro-batches"), std::string::npos);
  // Rank 1 waits for a gradient before it sends what that depends on.
  options.micro_batch_size = 8;
  options.pipeline.order = parse_pipeline_order(
      "rank 0: 0F0 2F0 2B0 0B0 0F1 2F1 2B1 0B1\n"
      "rank 1: 1F0 1F1 1B0 1B1\n");
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("does not verify"), std::string::npos);
}

// Delayed gradients: the bits of one rank with the same delay, which are others than without, for 2BW and every other pipeline, ZeRO stage and
// number of ranks, with clipping at work.
TEST_F(GroupTest, DelayedGradientsHaveTheBitsOfOneRank) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, dtype, dataset_);
    options.model.num_layers = 4;
    options.micro_batch_size = 16;
    const Outcome undelayed = train(options, 5);
    options.optimizer.gradient_delay = 1;
    const Outcome reference = train(options, 5);
    EXPECT_GT(reference.numbers[1], 0.5) << "nothing is clipped";
    // The first two steps are taken at the same weights, so the second update is the first that differs.
    EXPECT_EQ(reference.numbers[0], undelayed.numbers[0]);
    EXPECT_NE(reference.numbers[3], undelayed.numbers[3]);
    struct Case {
      int64_t pipeline, data;
      PipelineKind kind;
      int zero_stage;
      int64_t micro_batch;
    };
    for (const Case& one : {Case{1, 1, PipelineKind::k1F1B, 0, 4}, Case{2, 1, PipelineKind::k2Bw, 0, 2}, Case{4, 1, PipelineKind::k2Bw, 0, 1}, Case{4, 2, PipelineKind::k2Bw, 1, 1},
                            Case{2, 3, PipelineKind::k2Bw, 2, 1}, Case{2, 2, PipelineKind::k2Bw, 3, 2}, Case{2, 2, PipelineKind::kZbV, 1, 2}, Case{1, 4, PipelineKind::k1F1B, 1, 2},
                            Case{1, 4, PipelineKind::k1F1B, 3, 2}, Case{2, 2, PipelineKind::k2Bw, 0, 1}, Case{3, 2, PipelineKind::k2Bw, 1, 1}, Case{2, 3, PipelineKind::k2Bw, 0, 1}, Case{3, 1, PipelineKind::k2Bw, 0, 3}}) {
      options.pipeline = {one.pipeline, 0, one.kind, 1, {}, {}};
      options.data = {one.data, 0, one.zero_stage};
      options.data.reshard_after_forward = one.micro_batch != 2;
      options.micro_batch_size = one.micro_batch;
      expect_equal(options, reference, 5);
    }
    // State that comes piece by piece does not keep the steps apart.
    options.pipeline = {2, 0, PipelineKind::k2Bw, 1, {}, {}};
    options.optimizer.offload_piece_bytes = 1 << 14;
    const WorkspaceBytes traits = workspace_traits(default_engine_options(1), testing::kGroupSequenceTokens);
    for (int zero_stage : {0, 1, 2}) {
      options.data = {2, 0, zero_stage};
      EXPECT_EQ(make_training_plans(options, traits).front().schedule.carries, zero_stage < 2);
      expect_equal(options, reference, 5);
    }
    options.optimizer.offload_weights = true;
    options.data = {};
    EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("use parallel.offload = [\"optimizer\", \"activations\"], or parallel.schedule = \"1f1b\""),
              std::string::npos);
    options.optimizer.offload_piece_bytes = 0;
    options.optimizer.offload_weights = false;
    options.optimizer.gradient_delay = 0;
    options.pipeline = {2, 0, PipelineKind::k2Bw, 1, {}, {}};
    EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("a step late"), std::string::npos);
  }
}

// Steps that run into each other: evaluations between them drop what was begun of the next, and ranks that share layers run it together. Same bits.
TEST_F(GroupTest, CarriedWorkIsDroppedForAnEvaluation) {
  TrainingPlanOptions options = group_options(ModelFamily::kGpt2, true, DType::kBF16, dataset_);
  options.model.num_layers = 4;
  options.optimizer.gradient_delay = 1;
  for (int64_t tensor_size : {1, 2}) {
    options.parallel = {.tensor_size = tensor_size};
    options.pipeline = {};
    options.optimizer.offload_piece_bytes = 0;
    options.micro_batch_size = 4;
    const Outcome reference = train(options, 6);
    options.pipeline = {2, 0, PipelineKind::k2Bw, 1, {}, {}};
    options.micro_batch_size = 2;
    const Plan plan = make_training_plans(options, workspace_traits(default_engine_options(1), testing::kGroupSequenceTokens)).front();
    EXPECT_TRUE(plan.schedule.carries);
    for (int every : {0, 1, 2, 5}) {
      // State that comes piece by piece stays out of their way: the newest weights, which the next step reads, are in the arena.
      options.optimizer.offload_piece_bytes = every % 2 == 0 ? 1 << 14 : 0;
      const Outcome outcome = train(options, 6, every);
      EXPECT_EQ(outcome.numbers, reference.numbers) << tensor_size << " " << every;
      EXPECT_TRUE(outcome.weights_and_state == reference.weights_and_state) << tensor_size << " " << every;
    }
  }
}

// Activations of micro-batches that are begun in one step and ended in the next leave in the one and come in the other, evaluations in between or not.
TEST_F(GroupTest, CarriedActivationsThatAreOffloadedHaveTheBitsOfThoseInTheArena) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_);
  options.model.num_layers = 9;
  options.optimizer.gradient_delay = 1;
  options.recompute = Recompute::kNone;
  options.micro_batch_size = 4;
  const Outcome reference = train(options, 5);
  options.offload_activations = true;
  options.micro_batch_size = 1;
  for (int64_t ranks : {2, 3})
    for (int64_t data_size : {1, 2}) {
      options.pipeline = {ranks, 0, PipelineKind::k2Bw, 1, {}, {}};
      options.data = {data_size, 0, 1};
      options.optimizer.offload_piece_bytes = data_size == 2 ? 1 << 14 : 0;
      const Plan plan = make_training_plans(options, workspace_traits(default_engine_options(1), testing::kGroupSequenceTokens)).front();
      const auto leaves_carried = [](const Action& action) { return action.kind == ActionKind::kOffload && action.micro_batch >= 0 && action.next_step; };
      EXPECT_TRUE(std::any_of(plan.schedule.actions.begin(), plan.schedule.actions.end(), leaves_carried)) << ranks;
      const Outcome outcome = train(options, 5, ranks == 2 ? 0 : 2);
      EXPECT_EQ(outcome.numbers, reference.numbers) << ranks << " " << data_size;
      EXPECT_TRUE(outcome.weights_and_state == reference.weights_and_state) << ranks << " " << data_size;
    }
}

// State in a file, in many small pieces: the bits of a run that keeps it, and an arena that is smaller by it.
TEST_F(GroupTest, OffloadedStateHasTheBitsOfStateInTheArena) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    TrainingPlanOptions options = group_options(ModelFamily::kGpt2, true, dtype, dataset_);
    options.micro_batch_size = 16;
    options.optimizer.gradient_delay = dtype == DType::kF32 ? 1 : 0;
    const Outcome reference = train(options);
    const WorkspaceBytes traits = workspace_traits(default_engine_options(1), testing::kGroupSequenceTokens);
    const auto state_bytes = [&] {
      const Plan plan = make_training_plans(options, traits).front();
      int64_t bytes = 0;
      for (MemoryClass kept : {MemoryClass::kNewestWeights, MemoryClass::kMasterLow, MemoryClass::kMoments, MemoryClass::kOffloadSlots}) bytes += plan.memory.class_bytes[static_cast<size_t>(kept)];
      return bytes;
    };
    const int64_t kept = state_bytes();
    for (int64_t piece_bytes : {1 << 10, 1 << 18, 8 << 20}) {
      options.optimizer.offload_piece_bytes = piece_bytes;
      options.data = {1, 0, 0};
      options.pipeline = {};
      expect_equal(options, reference);
      const Plan plan = make_training_plans(options, traits).front();
      EXPECT_EQ(state_bytes(), plan.offload.slots.count * plan.offload.slots.bytes);
      if (piece_bytes == 1 << 10) {
        EXPECT_GT(plan.offload.pieces.size(), 10u);
        EXPECT_LT(3 * state_bytes(), kept);
      }
      for (int zero_stage : {0, 1, 3}) {
        options.data = {2, 0, zero_stage};
        options.micro_batch_size = 2;
        expect_equal(options, reference);
      }
      options.pipeline = {2, 0, PipelineKind::k1F1B, 1, {}, {}};
      expect_equal(options, reference);
    }
  }
}

// Activations of all layers but the last ones leave, and weights come layer by layer: the same bits, and an arena that is smaller by them.
TEST_F(GroupTest, OffloadedActivationsAndWeightsHaveTheBitsOfThoseInTheArena) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, false, DType::kBF16, dataset_);
  options.model.num_layers = 7;
  options.micro_batch_size = 16;
  options.recompute = Recompute::kNone;
  const Outcome reference = train(options);
  const WorkspaceBytes traits = workspace_traits(default_engine_options(1), testing::kGroupSequenceTokens);
  const auto bytes = [&](MemoryClass memory_class) { return make_training_plans(options, traits).front().memory.class_bytes[static_cast<size_t>(memory_class)]; };
  const int64_t activations = bytes(MemoryClass::kActivations), weights = bytes(MemoryClass::kWeights);
  options.offload_activations = true;
  EXPECT_LT(bytes(MemoryClass::kActivations), activations * 3 / 4);
  options.optimizer.offload_piece_bytes = 1 << 16;
  options.optimizer.offload_weights = true;
  EXPECT_EQ(bytes(MemoryClass::kWeights), 0);
  EXPECT_LT(bytes(MemoryClass::kGatheredWeights), weights * 2 / 3);
  expect_equal(options, reference);
  struct Case {
    int64_t pipeline;
    PipelineKind kind;
    int64_t data;
    int zero_stage;
    Recompute recompute;
    bool weights;
  };
  for (const Case& one : {Case{1, PipelineKind::k1F1B, 2, 0, Recompute::kNone, true}, Case{1, PipelineKind::k1F1B, 4, 3, Recompute::kSelective, true}, Case{1, PipelineKind::k1F1B, 3, 2, Recompute::kNone, false},
                          Case{2, PipelineKind::k1F1B, 1, 0, Recompute::kNone, true}, Case{2, PipelineKind::kZbV, 1, 0, Recompute::kFull, true}, Case{2, PipelineKind::kZbH1, 2, 1, Recompute::kNone, false},
                          Case{2, PipelineKind::kInterleaved, 2, 3, Recompute::kNone, true}, Case{2, PipelineKind::kGPipe, 1, 0, Recompute::kSelective, true}}) {
    options.pipeline = {one.pipeline, 0, one.kind, one.kind == PipelineKind::kInterleaved ? 2 : 1, {}, {}};
    options.data = {one.data, 0, one.zero_stage};
    options.recompute = one.recompute;
    options.optimizer.offload_weights = one.weights;
    options.micro_batch_size = 2;
    expect_equal(options, reference);
  }
  options.optimizer.offload_weights = true;
  options.pipeline = {};
  options.data = {2, 0, 1};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("use zero_stage 3, or 0"), std::string::npos);
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
    options.pipeline = {2, 0, PipelineKind::k1F1B, 1, {0, 3}, {}};
    expect_equal(options, reference);
    options.pipeline = {2, 0, PipelineKind::kZbV, 1, {0, 1, 2, 0}, {}};
    expect_equal(options, reference);
    options.data = {3, 0, 1};
    options.pipeline = {2, 0, PipelineKind::kZbH1, 1, {3, 0}, {}};
    expect_equal(options, reference);
  }
}

// The fast reduction promises no bits: with two ranks a ring adds what the tree adds, with four in another order.
TEST_F(GroupTest, FastReductionIsTheSameSumInAnotherOrder) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, DType::kF32, dataset_);
  const Outcome reference = train(options, 1);
  for (int64_t ranks : {2, 4})
    for (int zero_stage : {0, 1}) {
      options.data = {ranks, 0, zero_stage, true};
      const Outcome outcome = train(options, 1);
      EXPECT_EQ(outcome.numbers[0], reference.numbers[0]);
      // The norm of sums that differ in f32 roundings alone.
      EXPECT_NEAR(outcome.numbers[1], reference.numbers[1], 16 * 0x1p-24 * reference.numbers[1]);
      if (ranks == 2) {
        EXPECT_TRUE(outcome.weights_and_state == reference.weights_and_state);
      }
    }
  options.data = {3, 0, 0, true};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, workspace_traits(default_engine_options(1), options.sequence_tokens)); }).first.find("unequal lanes"), std::string::npos);
}

TEST_F(GroupTest, MomentsInShardsTakeTheirPartOfTheMemory) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_);
  const WorkspaceBytes traits = workspace_traits(default_engine_options(1), testing::kGroupSequenceTokens);
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

// Classes of memory against the formulas: shards are 1 / N of what is whole without them, what is in flight is two layers and what stands before
// or behind the layers, and the total falls from stage to stage.
TEST_F(GroupTest, ShardsTakeTheirPartOfTheMemory) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, false, DType::kBF16, dataset_);
  options.model.num_layers = 12;
  options.model.hidden_size = options.model.intermediate_size = 256;
  options.micro_batch_size = 2;  // a lane: two rounds of four ranks
  const WorkspaceBytes traits = workspace_traits(default_engine_options(1), testing::kGroupSequenceTokens);
  const auto plans_of = [&](int zero_stage, bool reshard_after_forward = true) {
    options.data = {4, 0, zero_stage};
    options.data.reshard_after_forward = reshard_after_forward;
    return make_training_plans(options, traits);
  };
  const auto bytes = [](const std::vector<Plan>& plans, MemoryClass memory_class) {
    int64_t sum = 0;
    for (const Plan& plan : plans) sum += plan.memory.class_bytes[static_cast<size_t>(memory_class)];
    return sum;
  };
  const auto optimizer = plans_of(1), gradients = plans_of(2), weights = plans_of(3), stay = plans_of(3, false);
  const auto num_units = static_cast<int64_t>(gradients[0].units.size());
  int64_t whole = 0, layer = 0, outside = 0;
  for (const ParameterUnit& unit : gradients[0].units) {
    whole += unit.size();
    const bool in_layer = gradients[0].stage.parameters[static_cast<size_t>(unit.first)].name.find("layers.") == 0;
    (in_layer ? layer : outside) = std::max(in_layer ? layer : outside, unit.size());
  }
  const int64_t padding = 4 * num_units * kArenaAlignment;
  EXPECT_EQ(gradients[0].schedule.num_shard_sums, 1);
  EXPECT_NEAR(static_cast<double>(bytes(gradients, MemoryClass::kGradients)), static_cast<double>(whole * 4), static_cast<double>(padding));
  EXPECT_LE(bytes(gradients, MemoryClass::kUnitGradients), 4 * (2 * layer + 2 * outside) * 4 + padding);
  EXPECT_NEAR(static_cast<double>(bytes(weights, MemoryClass::kWeights)), static_cast<double>(whole * 2), static_cast<double>(padding));
  EXPECT_LE(bytes(weights, MemoryClass::kGatheredWeights), 4 * (2 * layer + 2 * outside) * 2 + padding);
  EXPECT_NEAR(static_cast<double>(bytes(stay, MemoryClass::kWeights)), static_cast<double>(4 * whole * 2), static_cast<double>(padding));
  EXPECT_EQ(bytes(stay, MemoryClass::kGatheredWeights), 0);
  EXPECT_LT(gradients[0].memory.total_bytes, optimizer[0].memory.total_bytes);
  EXPECT_LT(weights[0].memory.total_bytes, gradients[0].memory.total_bytes);
}

// The plan's bytes against the formulas: weights are gathered for forward and backward of each micro-batch but for the layers that are there
// still, or once when they stay; gradients are reduced once a micro-batch.
TEST_F(GroupTest, PlannedBytesOfShardsAreThoseOfTheFormulas) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, false, DType::kBF16, dataset_);
  options.model.num_layers = 6;
  const WorkspaceBytes traits = workspace_traits(default_engine_options(1), testing::kGroupSequenceTokens);
  for (int64_t micro_batch : {2, 4}) {
    options.micro_batch_size = micro_batch;
    for (bool reshard : {true, false}) {
      options.data = {4, 0, 3};
      options.data.reshard_after_forward = reshard;
      const std::vector<Plan> plans = make_training_plans(options, traits);
      int64_t reduced = 0, gathered = 0, whole = 0, layers_there = 0, embedding = 0;
      for (const Plan& plan : plans)
        for (const Action& action : plan.schedule.actions) {
          if (action.kind == ActionKind::kReduceScatterGradients) reduced += bytes_sent(plan, action);
          if (action.kind == ActionKind::kAllGatherParameters) gathered += bytes_sent(plan, action);
        }
      for (const ParameterUnit& unit : plans[0].units) {
        whole += unit.size();
        const std::string& name = plans[0].stage.parameters[static_cast<size_t>(unit.first)].name;
        // The last two layers when the backward begins, the first two when the next forward does; the embedding is read in the forward alone.
        if (name.find("layers.4") == 0 || name.find("layers.5") == 0) layers_there += unit.size();
        if (unit.first == 0) embedding += unit.size();
      }
      const int64_t rounds = 16 / 4 / micro_batch;
      EXPECT_EQ(reduced, whole * 4 * 3 * rounds);
      if (!reshard) {
        EXPECT_EQ(gathered, whole * 2 * 3);
      }
      // Head and final norm are there still when the backward begins.
      if (reshard) {
        EXPECT_LE(gathered, (2 * whole - layers_there - embedding) * 2 * 3 * rounds);
        EXPECT_GE(gathered, (2 * whole - 2 * layers_there - 3 * embedding) * 2 * 3 * rounds);
      }
    }
  }
}

// The plan's bytes against the formulas: a ring all-reduce's, plus one reduction of the tied matrix.
TEST_F(GroupTest, PlannedBytesAreThoseOfTheFormulas) {
  TrainingPlanOptions options = group_options(ModelFamily::kLlama, true, DType::kBF16, dataset_);
  const WorkspaceBytes traits = workspace_traits(default_engine_options(1), testing::kGroupSequenceTokens);
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
  const WorkspaceBytes traits = workspace_traits(default_engine_options(1), testing::kGroupSequenceTokens);
  options.data = {9, 0, 0};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("at most 8 ranks"), std::string::npos);
  options.data = {1, 0, 0};
  options.pipeline = {8, 0, PipelineKind::k1F1B, 1, {}, {}};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("8 pipeline stages"), std::string::npos);
  options.pipeline = {2, 0, PipelineKind::k1F1B, 1, {1, 2}, {}};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("2 stages with 3 layers"), std::string::npos);
  options.pipeline = {};
  options.data = {1, 0, 0};
  options.parallel.tensor_size = 3;
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("tensor_parallel_size = 3 does not divide model.num_heads = 4; use one of 1, 2"), std::string::npos);
  options.parallel.tensor_size = 1;
  options.data = {2, 0, 3, true};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("in the lane tree alone"), std::string::npos);
  options.data = {6, 0, 3, false, 4};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("use a divisor of 6"), std::string::npos);
  options.data = {4, 0, 1, false, 2};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("need zero_stage 2 or 3"), std::string::npos);
  options.data = {2, 0, 4};
  EXPECT_NE(testing::error_of([&] { make_training_plans(options, traits); }).first.find("zero_stage = 4"), std::string::npos);
}

}  // namespace
}  // namespace orrery
