#include "train/engine.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "base/error.h"
#include "ir/op_table.h"
#include "runtime/initialize.h"

namespace orrery {
namespace {

constexpr int kEvalCopy = 2;

int usable_cores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

}  // namespace

EngineOptions default_engine_options(int num_threads) {
  const CpuFeatures& features = cpu_features();
  if (!features.avx2) throw Error(ErrorCode::kUnsupported, "this processor ({}) has no AVX2 with FMA, which Orrery's kernels need", features.model_name);
  EngineOptions options;
  options.num_threads = num_threads > 0 ? num_threads : usable_cores();
  options.isa = features.best_isa();
  options.arithmetic = native_arithmetic(features);
  return options;
}

DeviceSpec device_spec(const EngineOptions& options) {
  return {options.isa, options.arithmetic, options.native_arithmetic, options.num_threads};
}

WorkspaceBytes workspace_traits(const EngineOptions& options, int64_t sequence_tokens) {
  return [device = device_spec(options), sequence_tokens](const Stage& stage, const Op& op) { return op_workspace_bytes(device, stage, op, sequence_tokens); };
}

TrainingEngine::TrainingEngine(const Plan& plan, const EngineOptions& options)
    : plan_(plan),
      pool_(options.num_threads, options.pin_threads),
      arena_(plan.memory.total_bytes),
      executor_(plan.stage, plan.memory, arena_, {&pool_, options.isa, options.arithmetic, options.native_arithmetic}, plan.options.sequence_tokens) {
  set_floating_point_mode();
  const size_t copies = plan.options.evaluates ? 3 : 2;
  segment_starts_.assign(copies * static_cast<size_t>(plan.options.global_batch_size * plan.options.segments_per_sequence + 1), 0);
  segment_counts_.assign(copies * static_cast<size_t>(plan.options.global_batch_size), 1);
  for (size_t i = 0; i < plan.stage.constants.size(); ++i)
    fill_rope_table(plan.stage.constants[i], reinterpret_cast<float*>(arena_.data() + plan.memory.constant_offset[i]));
}

std::byte* TrainingEngine::parameter_data(size_t parameter) const { return arena_.data() + plan_.memory.parameter_offset[parameter]; }

std::byte* TrainingEngine::state_data(size_t parameter, StateField field) const {
  const int64_t offset = plan_.memory.state_offset[parameter][static_cast<size_t>(field)];
  return offset < 0 ? nullptr : arena_.data() + offset;
}

std::byte* TrainingEngine::batch_data(BatchField field, int copy) const {
  const auto index = static_cast<size_t>(field);
  ORRERY_CHECK(plan_.memory.batch_offset[index] >= 0, "the model has no batch field {}", index);
  return arena_.data() + plan_.memory.batch_offset[index] + copy * plan_.memory.batch_bytes[index];
}

void TrainingEngine::initialize_weights(uint64_t seed) {
  for (size_t i = 0; i < plan_.stage.parameters.size(); ++i)
    initialize_parameter(plan_.stage.parameters[i], seed, plan_.stage.compute_dtype, parameter_data(i),
                         reinterpret_cast<int16_t*>(state_data(i, StateField::kLow)));
}

BatchView TrainingEngine::batch(int copy) {
  const auto sequences = static_cast<size_t>(plan_.options.global_batch_size);
  const size_t tokens = sequences * static_cast<size_t>(plan_.options.sequence_tokens);
  const size_t starts = sequences * static_cast<size_t>(plan_.options.segments_per_sequence) + 1;
  const auto field = [&](BatchField name) { return std::span(reinterpret_cast<int32_t*>(batch_data(name, copy)), tokens); };
  return {field(BatchField::kIds), field(BatchField::kTargets), field(BatchField::kPositions),
          std::span(segment_starts_).subspan(static_cast<size_t>(copy) * starts, starts),
          std::span(segment_counts_).subspan(static_cast<size_t>(copy) * sequences, sequences)};
}

// cu_seqlens of a micro-batch from its sequences' documents; returns the number of segments.
int64_t TrainingEngine::write_segments(int copy, const MicroBatch& batch, int32_t micro_batch) {
  const int64_t most = plan_.options.segments_per_sequence, tokens = plan_.options.sequence_tokens;
  const int64_t slice = align_up((plan_.micro_batch_size * most + 1) * 4, kArenaAlignment);
  auto* cu_seqlens = reinterpret_cast<int32_t*>(batch_data(BatchField::kCuSeqlens, copy) + micro_batch * slice);
  const BatchView view = this->batch(copy);
  int64_t first = 0, count = 0;
  for (int64_t i = 0; i < batch.first_sequence; ++i) first += view.segment_counts[static_cast<size_t>(i)];
  for (int64_t i = 0; i < batch.num_sequences; ++i) {
    const int32_t segments = view.segment_counts[static_cast<size_t>(batch.first_sequence + i)];
    ORRERY_CHECK(segments >= 1 && segments <= most, "{} segments in a window, planned for {}", segments, most);
    count += segments;
  }
  const auto base = static_cast<int32_t>(batch.first_sequence * tokens);
  for (int64_t i = 0; i < count; ++i) cu_seqlens[i] = view.segment_starts[static_cast<size_t>(first + i)] - base;
  cu_seqlens[count] = static_cast<int32_t>(batch.num_sequences * tokens);
  return count;
}

ActionBinding TrainingEngine::bind(const Action& action, int copy) {
  ActionBinding binding;
  binding.gradient_buffer = action.gradient_buffer;
  binding.source_buffer = std::max(0, action.source_buffer);
  binding.batch_copy = copy;
  if (action.micro_batch < 0) return binding;
  const MicroBatch& batch = plan_.schedule.micro_batches[static_cast<size_t>(action.micro_batch)];
  binding.micro_batch = action.micro_batch;
  binding.first_token = batch.first_sequence * plan_.options.sequence_tokens;
  binding.num_tokens = batch.num_sequences * plan_.options.sequence_tokens;
  binding.num_segments = write_segments(copy, batch, action.micro_batch);
  binding.fold = {batch.num_sequences, plan_.options.sequence_tokens, action.merges.data(), action.add_to_destination};
  return binding;
}

double TrainingEngine::sum_losses(int copy, int64_t num_tokens) const {
  const auto* losses = reinterpret_cast<const float*>(batch_data(BatchField::kTokenLoss, copy));
  double sum = 0;
  for (int64_t i = 0; i < num_tokens; ++i) sum += static_cast<double>(losses[i]);
  return sum;
}

int64_t TrainingEngine::count_valid(int copy, int64_t num_tokens) {
  const auto targets = batch(copy).targets;
  return std::count_if(targets.begin(), targets.begin() + num_tokens, [](int32_t target) { return target >= 0; });
}

StepResult TrainingEngine::step(int copy, const OptimizerHyper& hyper, const std::function<void()>& before_update) {
  const int64_t num_tokens = plan_.options.global_batch_size * plan_.options.sequence_tokens;
  StepResult result;
  result.num_valid = count_valid(copy, num_tokens);
  std::memcpy(step_data(StepField::kHyper), &hyper, sizeof hyper);
  const auto num_valid = static_cast<int32_t>(result.num_valid);
  std::memcpy(step_data(StepField::kNumValid), &num_valid, sizeof num_valid);
  for (const Action& action : plan_.schedule.actions) {
    const ActionBinding binding = bind(action, copy);
    switch (action.kind) {
      case ActionKind::kForward: executor_.run(Phase::kForward, binding); break;
      case ActionKind::kBackward: executor_.run(Phase::kBackward, binding); break;
      case ActionKind::kZero: executor_.run(Phase::kZero, binding); break;
      case ActionKind::kMerge: executor_.run(Phase::kMerge, binding); break;
      case ActionKind::kOptimizer:
        if (before_update) before_update();
        executor_.run(Phase::kOptimizer, binding);
        break;
      default: ORRERY_CHECK(false, "{} is not an action of one rank", to_string(action, plan_.schedule));
    }
  }
  ++num_steps_timed_;
  result.loss_sum = sum_losses(copy, num_tokens);
  float scale[2];
  double stats[4];
  std::memcpy(scale, step_data(StepField::kScale), sizeof scale);
  std::memcpy(stats, step_data(StepField::kStats), sizeof stats);
  result.gradient_norm = stats[0];
  result.skipped = scale[1] == 0;
  return result;
}

StepResult TrainingEngine::evaluate(int64_t num_sequences) {
  ORRERY_CHECK(plan_.options.evaluates && num_sequences <= plan_.options.global_batch_size, "evaluation of {} sequences", num_sequences);
  for (int64_t first = 0; first < num_sequences; first += plan_.micro_batch_size) {
    const MicroBatch batch{first, std::min(plan_.micro_batch_size, num_sequences - first)};
    ActionBinding binding;
    binding.batch_copy = kEvalCopy;
    binding.first_token = first * plan_.options.sequence_tokens;
    binding.num_tokens = batch.num_sequences * plan_.options.sequence_tokens;
    binding.num_segments = write_segments(kEvalCopy, batch, 0);
    binding.fold = {batch.num_sequences, plan_.options.sequence_tokens, nullptr, false};
    executor_.run(Phase::kEval, binding);
  }
  StepResult result;
  result.num_valid = count_valid(kEvalCopy, num_sequences * plan_.options.sequence_tokens);
  result.loss_sum = sum_losses(kEvalCopy, num_sequences * plan_.options.sequence_tokens);
  return result;
}

std::span<std::byte> TrainingEngine::checkpoint_buffer() const {
  return {arena_.data() + plan_.memory.checkpoint_offset, static_cast<size_t>(plan_.memory.class_bytes[static_cast<size_t>(MemoryClass::kCheckpoint)])};
}

void TrainingEngine::reset_op_table() {
  executor_.reset_op_times();
  num_steps_timed_ = 0;
}

std::string TrainingEngine::op_table() const {
  struct Row {
    double seconds = 0, flops = 0, bytes = 0;
    int64_t calls = 0;
  };
  std::map<std::string, Row> rows;
  double total = 0;
  const double mean_context = static_cast<double>(plan_.options.sequence_tokens + 1) / 2;
  for (Phase phase : {Phase::kZero, Phase::kForward, Phase::kBackward, Phase::kMerge, Phase::kOptimizer}) {
    const auto& ops = plan_.stage.block(phase).ops;
    const auto& times = executor_.op_times(phase);
    for (size_t i = 0; i < ops.size(); ++i) {
      if (times[i].calls == 0) continue;
      Row& row = rows[fmt::format("{}{}", op_name(ops[i].kind), ops[i].recomputed ? " (again)" : "")];
      // A call sees one micro-batch of at most the bound; short ones are rare and counted as full.
      const OpCost cost = op_cost(plan_.stage, ops[i], plan_.micro_batch_size * plan_.options.sequence_tokens, mean_context);
      row.seconds += times[i].seconds;
      row.flops += cost.flops * static_cast<double>(times[i].calls);
      row.bytes += (cost.bytes_read + cost.bytes_written) * static_cast<double>(times[i].calls);
      row.calls += times[i].calls;
      total += times[i].seconds;
    }
  }
  std::vector<std::pair<std::string, Row>> sorted(rows.begin(), rows.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  const double steps = static_cast<double>(std::max<int64_t>(1, num_steps_timed_));
  std::string text = fmt::format("{:<32}{:>8}{:>11}{:>8}{:>10}{:>9}\n", "op", "calls", "ms a step", "share", "TFLOP/s", "GB/s");
  for (const auto& [name, row] : sorted)
    text += fmt::format("{:<32}{:>8.0f}{:>11.2f}{:>7.1f}%{:>10}{:>9.1f}\n", name, static_cast<double>(row.calls) / steps, 1e3 * row.seconds / steps, 100 * row.seconds / total,
                        row.flops > 0 ? fmt::format("{:.2f}", row.flops / row.seconds / 1e12) : "", row.bytes / row.seconds / 1e9);
  text += fmt::format("{:<32}{:>8}{:>11.2f}\n", "all ops", "", 1e3 * total / steps);
  return text;
}

}  // namespace orrery
