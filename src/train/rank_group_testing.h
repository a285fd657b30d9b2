// What tests of rank groups share: a small model and data set, a run of a few steps in any layout, and what has to be equal at its end.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "data/testing.h"
#include "planner/shared_layers.h"
#include "train/rank_group.h"

namespace orrery::testing {

constexpr int kGroupSequenceTokens = 32, kGroupVocabulary = 53;

inline TrainingPlanOptions group_options(ModelFamily family, bool tied, DType dtype, const Dataset& dataset) {
  TrainingPlanOptions options;
  options.model = default_model_config(family);
  options.model.hidden_size = 96;  // matrices of more than one norm block, none a multiple of it
  options.model.num_layers = 2;
  options.model.num_heads = 4;
  options.model.num_kv_heads = family == ModelFamily::kGpt2 ? 4 : 2;
  options.model.intermediate_size = 96;
  options.model.vocab_size = kGroupVocabulary;
  options.model.max_seq_len = kGroupSequenceTokens;
  options.model.tie_embeddings = tied;
  resolve(options.model);
  options.compute_dtype = dtype;
  options.sequence_tokens = kGroupSequenceTokens;
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

inline void append_tensors(const std::vector<PhysicalTensor>& tensors, std::vector<std::byte>& bytes) {
  for (const TensorSource& source : tensor_sources(tensors, "")) {
    const size_t begin = bytes.size();
    bytes.resize(begin + source.bytes());
    source.read(0, std::span(bytes).subspan(begin));
  }
}

class GroupTest : public ::testing::Test {
 protected:
  GroupTest()
      : shard_((write_shard(directory_ / "data.orrtok", random_documents(200, 60, kGroupVocabulary, true, 5), kGroupVocabulary), directory_ / "data.orrtok")),
        dataset_({{"data", {shard_}, 1.0}}, {.seq_len = kGroupSequenceTokens, .vocab_size = kGroupVocabulary}) {}

  /// evaluate_every: steps between evaluations, which are not in the outcome; 0: one at the end alone, which is.
  Outcome train(const TrainingPlanOptions& options, int num_steps = 3, int evaluate_every = 0) {
    EngineOptions engine = default_engine_options(2);
    engine.offload_place = directory_.path();
    EngineOptions each = engine;
    each.num_threads = rank_threads(engine.num_threads, static_cast<int>(options.world_size()));
    RankGroup group(make_training_plans(options, workspace_traits(each, kGroupSequenceTokens)), engine);
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
      if (evaluate_every > 0 && step > 0 && step % evaluate_every == 0) {
        group.exchange_weight_versions();
        group.evaluate(dataset_, 3, 5);
        group.exchange_weight_versions();
      }
      const StepResult result = group.step(step, hyper, {});
      outcome.numbers.insert(outcome.numbers.end(), {result.loss_sum, result.gradient_norm, static_cast<double>(result.num_valid)});
    }
    group.exchange_weight_versions();
    const StepResult evaluated = group.evaluate(dataset_, 0, 11);
    group.exchange_weight_versions();
    outcome.numbers.insert(outcome.numbers.end(), {evaluated.loss_sum, static_cast<double>(evaluated.num_valid)});
    std::vector<std::byte> first;
    append_tensors(group.weights(0), first);
    for (int replica : group.local_replicas()) {
      std::vector<std::byte> other;
      append_tensors(group.weights(replica), other);
      EXPECT_TRUE(other == first) << "replica " << replica << " ends with other weights";
    }
    for (int part : group.local_parts()) {
      std::vector<std::byte> other;
      append_tensors(group.weights(0, part), other);
      EXPECT_TRUE(other == first) << "part " << part << " of the layers ends with other weights";
    }
    outcome.weights_and_state = first;
    for (StateField field : {StateField::kLow, StateField::kMoment1, StateField::kMoment2}) append_tensors(group.state(field, 0), outcome.weights_and_state);
    if (group.delays_gradients()) append_tensors(group.state(StateField::kNewest, 0), outcome.weights_and_state);
    check_bytes(group, num_steps, evaluate_every > 0 ? 1 + (num_steps - 1) / evaluate_every : 1);
    return outcome;
  }

  // What the counters of all groups say is what the plan says, action by action.
  static void check_bytes(const RankGroup& group, int num_steps, int num_starts) {
    for (int rank = 0; rank < group.size() && group.size() > 1; ++rank) {
      const Plan& plan = group.plan(rank);
      std::map<std::string, int64_t> planned, counted;
      for (const Action& action : plan.schedule.actions)
        if (stream_of(action.kind) == Stream::kPoint || stream_of(action.kind) == Stream::kCollective) planned[to_string(action, plan.schedule)] += num_steps * bytes_sent(plan, action);
      for (const auto& [kind, bytes] : op_bytes_sent(plan)) planned[std::string(op_name(kind))] = num_steps * bytes;
      // What a fresh start, at the beginning and after an evaluation, runs before the step.
      Plan begun = plan;
      std::erase_if(begun.schedule.actions, [](const Action& action) { return !action.next_step; });
      for (const Action& action : begun.schedule.actions)
        if (stream_of(action.kind) == Stream::kPoint) planned[to_string(action, plan.schedule)] += num_starts * bytes_sent(plan, action);
      for (const auto& [kind, bytes] : op_bytes_sent(begun)) planned[std::string(op_name(kind))] += num_starts * bytes;
      for (const Communicator* communicator : group.communicators(rank))
        for (const CommLabelCounter& counter : communicator->label_counters())
          if (planned.count(counter.label)) counted[counter.label] += counter.bytes_sent;
      EXPECT_EQ(counted, planned) << "rank " << rank;
    }
  }

  // The case differs from one rank in nothing that NUMERICS promises.
  void expect_equal(const TrainingPlanOptions& options, const Outcome& reference, int num_steps = 3) {
    const std::string name =
        fmt::format("tp {}{} cp {} pp {} {} x{}, dp {} ZeRO-{} in groups of {}, micro-batch {}, recompute {}, offload {}{}{}", options.parallel.tensor_size, options.parallel.sequence_parallel ? " sp" : "", options.parallel.context_size, options.pipeline.size, pipeline_name(options.pipeline.kind), options.pipeline.virtual_stages, options.data.size,
                    options.data.zero_stage, options.data.num_shards(), options.micro_batch_size.value_or(0), recompute_name(options.recompute.value_or(Recompute::kNone)), options.optimizer.offload_piece_bytes, options.offload_activations ? " activations" : "",
                    options.optimizer.offload_weights ? " weights" : "");
    SCOPED_TRACE(name);
    const Outcome outcome = train(options, num_steps);
    EXPECT_EQ(outcome.numbers, reference.numbers);
    EXPECT_TRUE(outcome.weights_and_state == reference.weights_and_state);
  }

  TemporaryDirectory directory_;
  std::string shard_;
  Dataset dataset_;
};

}  // namespace orrery::testing
