#include "equivalence/golden_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <thread>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "serve/generator.h"
#include "train/engine.h"
#include "train/lr_schedule.h"

namespace orrery {
namespace {

template <typename T>
void append(std::span<const std::byte> bytes, std::vector<double>* out) {
  for (size_t i = 0; i + sizeof(T) <= bytes.size(); i += sizeof(T)) {
    T value;
    std::memcpy(&value, bytes.data() + i, sizeof value);
    out->push_back(static_cast<double>(value));
  }
}

double norm(const std::vector<double>& x) {
  double sum = 0;
  for (double value : x) sum += value * value;
  return std::sqrt(sum);
}

// The plans and engines of ranks that share the layers, each step on a thread a rank; the weights are loaded.
struct Training {
  std::vector<Plan> plans;
  std::vector<std::unique_ptr<Communicator>> worlds;
  std::vector<std::unique_ptr<TrainingEngine>> engines;

  Training(const ModelSource& source, DType compute_dtype, int64_t num_sequences, int64_t num_tokens, int num_threads, const ParallelContext& parallel) {
    TrainingPlanOptions options;
    options.model = source.config();
    options.compute_dtype = compute_dtype;
    options.sequence_tokens = num_tokens;
    options.global_batch_size = num_sequences;
    options.lanes = num_sequences;
    options.parallel = parallel;
    const auto num_ranks = static_cast<int>(options.world_size());
    EngineOptions machine = default_engine_options(num_threads);
    machine.pin_threads = num_ranks == 1;
    plans = make_training_plans(options, workspace_traits(machine, num_tokens));
    if (num_ranks > 1) worlds = make_local_communicators(num_ranks);
    for (int rank = 0; rank < num_ranks; ++rank)
      engines.push_back(std::make_unique<TrainingEngine>(plans[static_cast<size_t>(rank)], machine, num_ranks > 1 ? worlds[static_cast<size_t>(rank)].get() : nullptr));
    on_every_rank([&](size_t rank) { engines[rank]->connect(); });
    for (int64_t copy = 0; copy < parallel.num_parts(); ++copy) {
      std::vector<PhysicalTensor> weights, low;
      for_each_parameter([&](size_t rank, size_t i) {
        const ParameterSpec& spec = plans[rank].stage.parameters[i];
        weights.push_back({&spec, engines[rank]->parameter_data(i), compute_dtype, 0, -1, 0, copy});
        if (compute_dtype != DType::kF32) low.push_back({&spec, engines[rank]->state_data(i, StateField::kLow), DType::kI16, 0, -1, 0, copy});
      });
      load_model(source, weights, low);
    }
  }

  void on_every_rank(const std::function<void(size_t)>& body) {
    std::vector<std::thread> threads;
    for (size_t rank = 1; rank < engines.size(); ++rank)
      threads.emplace_back([&body, rank] {
        set_floating_point_mode();
        body(rank);
      });
    body(0);
    for (std::thread& thread : threads) thread.join();
  }

  template <typename Visit>
  void for_each_parameter(Visit&& visit) const {
    for (size_t rank = 0; rank < plans.size(); ++rank)
      for (size_t i = 0; i < plans[rank].stage.parameters.size(); ++i) visit(rank, i);
  }

  StepResult step(int copy, const OptimizerHyper& hyper, const std::function<void(size_t)>& before_update = {}) {
    std::vector<StepResult> results(engines.size());
    on_every_rank([&](size_t rank) {
      results[rank] = engines[rank]->step(copy, hyper, [&] {
        if (before_update) before_update(rank);
      });
    });
    return results.front();
  }
};

// Parameter gradients by Hugging Face name: sums over the batch's valid tokens, the two uses of a tied matrix added.
class Gradients {
 public:
  explicit Gradients(const Training& training) : training_(training), sums_(training.plans.size()) {}

  // Of one rank, before its update.
  void read(size_t rank) {
    const Plan& plan = training_.plans[rank];
    for (size_t i = 0; i < plan.stage.parameters.size(); ++i) {
      // NORM has added the second use of a tied matrix to the first.
      const int64_t offset = plan.memory.gradient_buffer_offset[0][0] + plan.memory.gradient_offset[i][0];
      const auto* from = reinterpret_cast<const float*>(training_.engines[rank]->arena().data() + offset);
      sums_[rank].emplace_back(from, from + plan.stage.parameters[i].num_elements());
    }
  }

  std::map<std::string, std::vector<double>> by_name() {
    std::vector<PhysicalTensor> physical;
    training_.for_each_parameter([&](size_t rank, size_t i) {
      physical.push_back({&training_.plans[rank].stage.parameters[i], reinterpret_cast<std::byte*>(sums_[rank][i].data()), DType::kF32});
    });
    std::map<std::string, std::vector<double>> gradients;
    for (const LogicalView& view : logical_views(physical)) {
      std::vector<float> values(static_cast<size_t>(view.num_elements()));
      view.read(0, std::as_writable_bytes(std::span(values)));
      gradients[view.name()].assign(values.begin(), values.end());
    }
    return gradients;
  }

 private:
  const Training& training_;
  std::vector<std::vector<std::vector<float>>> sums_;  // by rank and parameter
};

}  // namespace

GoldenCase::GoldenCase(const std::string& folder, int num_threads)
    : num_threads_(num_threads), source_(open_model(std::filesystem::exists(folder + "/model.gguf") ? folder + "/model.gguf" : folder)) {
  const FileSource file(folder + "/golden.safetensors");
  const SafetensorsHeader header = read_safetensors_header(file);
  optimizer_ = header.metadata;
  for (const SafetensorsEntry& entry : header.tensors) {
    std::vector<std::byte> bytes(entry.bytes);
    file.read(entry.begin, bytes);
    Tensor& tensor = values_[entry.name];
    tensor.shape = entry.shape;
    if (entry.dtype_name == "F64")
      append<double>(bytes, &tensor.values);
    else if (entry.dtype_name == "F32")
      append<float>(bytes, &tensor.values);
    else if (entry.dtype_name == "I32")
      append<int32_t>(bytes, &tensor.values);
    else
      throw Error(ErrorCode::kCorruptData, "{}: {} is {}, wanted F64, F32 or I32", file.name(), entry.name, entry.dtype_name);
  }
}

const GoldenCase::Tensor& GoldenCase::tensor(const std::string& name) const {
  const auto found = values_.find(name);
  if (found == values_.end()) throw Error(ErrorCode::kCorruptData, "golden.safetensors of {} has no {}", source_.path(), name);
  return found->second;
}

Measurement GoldenCase::measure(const std::string& name, const std::vector<double>& x, DType compute_dtype) const {
  const Tensor &exact = tensor(name), &errors = tensor(name + ".errors");
  if (exact.values.size() != x.size())
    throw Error(ErrorCode::kCorruptData, "{}: {} numbers here, {} in the golden file", name, x.size(), exact.values.size());
  std::vector<double> difference(x.size());
  for (size_t i = 0; i < x.size(); ++i) difference[i] = x[i] - exact.values[i];
  // The file holds f32 roundings of the oracle; by the triangle inequality this is at least the distance from the oracle itself.
  const double error = norm(difference) + errors.values[0];
  return {name, error, 2 * errors.values[compute_dtype == DType::kF32 ? 1 : 2], norm(exact.values)};
}

Measurement GoldenCase::logits(DType compute_dtype) const {
  const Tensor& ids = tensor("ids");
  const int64_t num_sequences = ids.shape[1], num_tokens = ids.shape[2];
  Generator generator(source_, {.num_threads = num_threads_, .max_context = num_tokens, .compute_dtype = compute_dtype});
  std::vector<double> logits;
  for (int64_t sequence = 0; sequence < num_sequences; ++sequence) {
    generator.clear();
    for (int64_t i = 0; i < num_tokens; ++i) {
      const auto id = static_cast<int32_t>(ids.values[static_cast<size_t>(sequence * num_tokens + i)]);
      const std::span<const float> row = generator.append(std::span(&id, 1));
      logits.insert(logits.end(), row.begin(), row.end());
    }
  }
  return measure("logits", logits, compute_dtype);
}

void GoldenCase::fill_batch(TrainingEngine& engine, int copy, int64_t batch) const {
  const Tensor &ids = tensor("ids"), &targets = tensor("targets");
  const int64_t num_sequences = ids.shape[1], num_tokens = ids.shape[2], first = batch * num_sequences * num_tokens;
  const BatchView view = engine.batch(copy);
  // A context rank has two chunks of each sequence.
  const ParallelContext& parallel = engine.plan().options.parallel;
  const int64_t chunk = parallel.context_size == 1 ? num_tokens : num_tokens / (2 * parallel.context_size);
  size_t at = 0;
  for (int64_t i = 0; i < num_sequences * num_tokens; ++i) {
    const int64_t position = i % num_tokens, place = position / chunk;
    if (place != parallel.context_rank && place != 2 * parallel.context_size - 1 - parallel.context_rank) continue;
    view.ids[at] = static_cast<int32_t>(ids.values[static_cast<size_t>(first + i)]);
    view.targets[at] = static_cast<int32_t>(targets.values[static_cast<size_t>(first + i)]);
    view.positions[at++] = static_cast<int32_t>(position);
  }
  for (int64_t i = 0; i < num_sequences; ++i) {
    view.segment_starts[static_cast<size_t>(i)] = static_cast<int32_t>(i * num_tokens);
    view.segment_counts[static_cast<size_t>(i)] = 1;
  }
}

std::vector<Measurement> GoldenCase::gradients(DType compute_dtype, const ParallelContext& parallel) const {
  const Tensor& ids = tensor("ids");
  Training training(source_, compute_dtype, ids.shape[1], ids.shape[2], num_threads_, parallel);
  for (const auto& engine : training.engines) fill_batch(*engine, 0, 0);
  Gradients found(training);
  const StepResult result = training.step(0, OptimizerHyper{}, [&](size_t rank) { found.read(rank); });
  std::vector<Measurement> measurements;
  for (auto& [name, values] : found.by_name()) {
    if (!values_.contains("gradient/" + name)) continue;
    // The engine's gradients are of the sum over valid tokens (NUMERICS rule 7).
    for (double& value : values) value /= static_cast<double>(result.num_valid);
    measurements.push_back(measure("gradient/" + name, values, compute_dtype));
  }
  const auto wanted = std::count_if(values_.begin(), values_.end(), [](const auto& entry) { return entry.first.starts_with("gradient/") && !entry.first.ends_with(".errors"); });
  if (wanted != static_cast<int64_t>(measurements.size()))
    throw Error(ErrorCode::kCorruptData, "the golden file of {} has {} gradients, the model {} of them", source_.path(), wanted, measurements.size());
  return measurements;
}

std::vector<Measurement> GoldenCase::losses(const ParallelContext& parallel) const {
  const Tensor &ids = tensor("ids"), &losses = tensor("losses");
  const int64_t num_batches = ids.shape[0], num_steps = losses.shape[1];
  const auto number = [&](const char* key) { return std::stod(optimizer_.at(key)); };
  OptimizerSection optimizer;
  optimizer.lr = number("lr");
  optimizer.schedule = LrScheduleName::kCosine;
  optimizer.warmup_steps = static_cast<int64_t>(number("warmup_steps"));
  optimizer.min_lr_ratio = number("min_lr_ratio");
  optimizer.beta1 = number("beta1");
  optimizer.beta2 = number("beta2");
  optimizer.eps = number("eps");
  optimizer.weight_decay = number("weight_decay");
  optimizer.clip = number("clip");
  Training training(source_, DType::kF32, ids.shape[1], ids.shape[2], num_threads_, parallel);
  std::vector<Measurement> measurements;
  double reference = 0;
  for (int64_t step = 0; step < num_steps; ++step) {
    const auto copy = static_cast<int>(step % 2);
    for (const auto& engine : training.engines) fill_batch(*engine, copy, step % num_batches);
    const StepResult result = training.step(copy, optimizer_hyper(optimizer, step, num_steps));
    const double loss = result.loss_sum / static_cast<double>(result.num_valid);
    const double exact = losses.values[static_cast<size_t>(step)];
    reference = std::max(reference, losses.values[static_cast<size_t>(num_steps + step)]);
    measurements.push_back({fmt::format("loss of step {}", step), std::abs(loss - exact), 2 * std::max(reference, std::ldexp(exact, -24)), exact});
  }
  return measurements;
}

}  // namespace orrery
