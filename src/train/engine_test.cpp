// The engine on small models: loss falls, and the same bits come out for every micro-batch size, recompute policy, number of
// threads and batch copy; planned arena bytes are allocated bytes; gradients of the whole model agree with finite differences.
#include "train/engine.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "base/philox.h"

namespace orrery {
namespace {

struct TestShape {
  ModelFamily family;
  bool tied, qk_norm, bias;
};

TrainingPlanOptions small_options(const TestShape& shape, DType dtype) {
  TrainingPlanOptions options;
  options.model = default_model_config(shape.family);
  options.model.hidden_size = 64;
  options.model.num_layers = 2;
  options.model.num_heads = 4;
  options.model.num_kv_heads = shape.family == ModelFamily::kGpt2 ? 4 : 2;
  options.model.intermediate_size = 96;
  options.model.vocab_size = 53;
  options.model.max_seq_len = 32;
  if (shape.family == ModelFamily::kLlama) {
    options.model.tie_embeddings = shape.tied;
    options.model.qk_norm = shape.qk_norm;
    options.model.attention_bias = shape.bias;
  }
  resolve(options.model);
  options.compute_dtype = dtype;
  options.sequence_tokens = 32;
  options.global_batch_size = 8;
  options.lanes = 4;
  options.segments_per_sequence = 3;
  options.evaluates = true;
  return options;
}

constexpr TestShape kShapes[] = {{ModelFamily::kGpt2, true, false, false}, {ModelFamily::kLlama, true, false, false}, {ModelFamily::kLlama, false, true, false}, {ModelFamily::kLlama, false, false, true}};

void fill_batch(TrainingEngine& engine, int copy, uint32_t step) {
  const BatchView batch = engine.batch(copy);
  const auto& options = engine.plan().options;
  const auto vocab = static_cast<uint32_t>(options.model.vocab_size);
  for (int64_t sequence = 0; sequence < options.global_batch_size; ++sequence) {
    const int32_t cut = 5 + static_cast<int32_t>(sequence) * 2;
    const auto base = static_cast<int32_t>(sequence * options.sequence_tokens);
    batch.segment_counts[static_cast<size_t>(sequence)] = 2;
    batch.segment_starts[static_cast<size_t>(2 * sequence)] = base;
    batch.segment_starts[static_cast<size_t>(2 * sequence + 1)] = base + cut;
    for (int64_t i = 0; i < options.sequence_tokens; ++i) {
      const int64_t token = sequence * options.sequence_tokens + i;
      // A learnable rule: the next id is a function of this one.
      const uint32_t start = philox4x32({static_cast<uint32_t>(sequence), step, 0, 0}, {7, 7})[0] % vocab;
      batch.ids[token] = static_cast<int32_t>((start + 5 * static_cast<uint32_t>(i)) % vocab);
      batch.targets[token] = i + 1 == cut ? -1 : static_cast<int32_t>((start + 5 * static_cast<uint32_t>(i + 1)) % vocab);
      batch.positions[token] = static_cast<int32_t>(i < cut ? i : i - cut);
    }
  }
}

OptimizerHyper hyper_at(int step) {
  OptimizerHyper hyper;
  hyper.lr = 3e-3f;
  hyper.beta1 = 0.9f;
  hyper.beta2 = 0.95f;
  hyper.eps = 1e-8f;
  hyper.weight_decay = 0.1f;
  hyper.clip = 1.0f;
  hyper.bias_correction1 = static_cast<float>(1 - std::pow(0.9, step + 1));
  hyper.bias_correction2 = static_cast<float>(1 - std::pow(0.95, step + 1));
  return hyper;
}

struct Outcome {
  std::vector<std::byte> weights;  // and state
  std::vector<double> losses;
  bool operator==(const Outcome&) const = default;
};

Outcome train(const TrainingPlanOptions& options, const EngineOptions& engine_options, int num_steps) {
  const Plan plan = make_training_plan(options, workspace_traits(engine_options, options.sequence_tokens));
  TrainingEngine engine(plan, engine_options);
  EXPECT_EQ(engine.arena().bytes(), plan.memory.total_bytes);
  engine.initialize_weights(11);
  Outcome outcome;
  for (int step = 0; step < num_steps; ++step) {
    fill_batch(engine, step % 2, static_cast<uint32_t>(step));
    const StepResult result = engine.step(step % 2, hyper_at(step));
    outcome.losses.push_back(result.loss_sum);
    outcome.losses.push_back(result.gradient_norm);
  }
  fill_batch(engine, 2, 1000);
  std::vector<double> losses(static_cast<size_t>(options.global_batch_size));
  EXPECT_GT(engine.evaluate(options.global_batch_size, options.global_batch_size, losses), 0);
  outcome.losses.insert(outcome.losses.end(), losses.begin(), losses.end());
  for (size_t i = 0; i < plan.stage.parameters.size(); ++i) {
    const int64_t count = plan.stage.parameters[i].num_elements();
    const auto append = [&](const std::byte* data, int64_t bytes) {
      if (data) outcome.weights.insert(outcome.weights.end(), data, data + bytes);
    };
    append(engine.parameter_data(i), count * dtype_bytes(options.compute_dtype));
    append(engine.state_data(i, StateField::kLow), count * 2);
    append(engine.state_data(i, StateField::kMoment1), count * 4);
    append(engine.state_data(i, StateField::kMoment2), count * 4);
  }
  return outcome;
}

TEST(Engine, LossFalls) {
  for (const TestShape& shape : kShapes)
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      const Outcome outcome = train(small_options(shape, dtype), default_engine_options(), 30);
      const double first = outcome.losses[0] / (8 * 31), last = outcome.losses[2 * 29] / (8 * 31);
      EXPECT_NEAR(first, std::log(53.0), 0.3);
      EXPECT_LT(last, 0.7 * first);
    }
}

TEST(Engine, SameBitsForEveryPlan) {
  for (const TestShape& shape : kShapes)
    for (DType dtype : {DType::kBF16, DType::kF32}) {
      TrainingPlanOptions options = small_options(shape, dtype);
      options.micro_batch_size = 8;
      options.recompute = Recompute::kNone;
      const Outcome reference = train(options, default_engine_options(1), 3);
      for (int64_t micro_batch : {1, 2, 3, 4, 8})
        for (Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
          options.micro_batch_size = micro_batch;
          options.recompute = recompute;
          const Outcome outcome = train(options, default_engine_options(micro_batch % 2 ? 2 : 1), 3);
          EXPECT_EQ(outcome.losses, reference.losses) << micro_batch << " " << recompute_name(recompute);
          EXPECT_TRUE(outcome.weights == reference.weights) << micro_batch << " " << recompute_name(recompute);
        }
    }
}

// The f32 numbers that a parameter's values stand for: master weights where `low` holds their other half.
std::vector<double> numbers_of(const std::byte* data, const std::byte* low, DType dtype, int64_t count) {
  std::vector<double> numbers;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits = 0;
    if (dtype == DType::kF32) {
      std::memcpy(&bits, data + 4 * i, 4);
    } else {
      uint16_t high = 0;
      int16_t rest = 0;
      std::memcpy(&high, data + 2 * i, 2);
      if (low != nullptr) std::memcpy(&rest, low + 2 * i, 2);
      bits = (static_cast<uint32_t>(high) << 16) + static_cast<uint32_t>(static_cast<int32_t>(rest));
    }
    numbers.push_back(static_cast<double>(std::bit_cast<float>(bits)));
  }
  return numbers;
}

// Delayed AdamW against the formula, W(t + 1) = W(t) - u(g(W(t - 1))) (NUMERICS rule 15) in f64. The gradient comes from an engine without a delay whose
// weights are set to W(t - 1): of SGD without momentum its only moment is the clipped mean gradient.
TEST(Engine, DelayedUpdateFollowsTheFormula) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    TrainingPlanOptions options = small_options(kShapes[1], dtype);
    const EngineOptions device = default_engine_options(1);
    const WorkspaceBytes traits = workspace_traits(device, options.sequence_tokens);
    options.optimizer.kind = OptimizerKind::kSgd;
    const Plan plain_plan = make_training_plan(options, traits);
    options.optimizer.kind = OptimizerKind::kAdamW;
    options.optimizer.gradient_delay = 1;
    const Plan plan = make_training_plan(options, traits);
    TrainingEngine plain(plain_plan, device), delayed(plan, device);
    delayed.initialize_weights(11);
    plain.initialize_weights(11);
    const size_t num_parameters = plan.stage.parameters.size();
    const auto count_of = [&](size_t i) { return plan.stage.parameters[i].num_elements(); };
    const auto newest_of = [&](size_t i) { return numbers_of(delayed.state_data(i, StateField::kNewest), delayed.state_data(i, StateField::kLow), dtype, count_of(i)); };
    std::vector<std::vector<double>> master(num_parameters), m(num_parameters), v(num_parameters);
    std::vector<std::vector<std::byte>> before(num_parameters);  // the weights of the update before, in the compute type
    for (size_t i = 0; i < num_parameters; ++i) {
      master[i] = newest_of(i);
      m[i] = v[i] = std::vector<double>(master[i].size(), 0);
      before[i].assign(plain.parameter_data(i), plain.parameter_data(i) + count_of(i) * dtype_bytes(dtype));
    }
    for (int step = 0; step < 5; ++step) {
      OptimizerHyper hyper = hyper_at(step);
      hyper.weight_decay = 0;
      hyper.clip = 0.25f;
      fill_batch(plain, step % 2, static_cast<uint32_t>(step));
      fill_batch(delayed, step % 2, static_cast<uint32_t>(step));
      for (size_t i = 0; i < num_parameters; ++i) std::memcpy(plain.parameter_data(i), before[i].data(), before[i].size());
      for (size_t i = 0; i < num_parameters; ++i) before[i].assign(delayed.state_data(i, StateField::kNewest), delayed.state_data(i, StateField::kNewest) + before[i].size());
      const StepResult wanted = plain.step(step % 2, hyper), found = delayed.step(step % 2, hyper);
      EXPECT_EQ(found.loss_sum, wanted.loss_sum);
      EXPECT_EQ(found.gradient_norm, wanted.gradient_norm);
      EXPECT_GT(found.gradient_norm, hyper.clip);
      for (size_t i = 0; i < num_parameters; ++i) {
        const auto* gradient = reinterpret_cast<const float*>(plain.state_data(i, StateField::kMoment1));
        const std::vector<double> updated = newest_of(i);
        for (size_t k = 0; k < updated.size(); ++k) {
          const double g = static_cast<double>(gradient[k]);
          m[i][k] = 0.9 * m[i][k] + 0.1 * g;
          v[i][k] = 0.95 * v[i][k] + 0.05 * g * g;
          const double change = 3e-3 * (m[i][k] / static_cast<double>(hyper.bias_correction1)) / (std::sqrt(v[i][k] / static_cast<double>(hyper.bias_correction2)) + 1e-8);
          // f32 betas and roundings of the moments, then one of the weight.
          ASSERT_NEAR(updated[k], master[i][k] - change, 1e-5 * std::abs(change) + 1e-9 + 0x1p-23 * std::abs(master[i][k])) << plan.stage.parameters[i].name << " " << k << " step " << step;
        }
        master[i] = updated;
        EXPECT_EQ(std::memcmp(delayed.parameter_data(i), before[i].data(), before[i].size()), 0);
      }
    }
  }
}

}  // namespace
}  // namespace orrery
