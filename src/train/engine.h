// A plan in motion on this machine: the arena, the executor and the step loop over the schedule's actions. It knows nothing of
// files, configuration or reporting; the trainer (trainer.h) does.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/kernel.h"
#include "planner/plan.h"
#include "runtime/arena.h"
#include "runtime/executor.h"

namespace orrery {

struct EngineOptions {
  int num_threads = 1;
  VectorIsa isa = VectorIsa::kAvx2;
  Arithmetic arithmetic = Arithmetic::kFma1;
  bool native_arithmetic = true;  // false: emulate the arithmetic id with f32 FMAs
  bool pin_threads = true;
};

/// The processor's own choice of instruction set and arithmetic, `num_threads` <= 0 meaning every core this process may use.
EngineOptions default_engine_options(int num_threads = 0);
DeviceSpec device_spec(const EngineOptions& options);
/// The kernel traits bound to a device: what make_training_plan asks for.
WorkspaceBytes workspace_traits(const EngineOptions& options, int64_t sequence_tokens);

/// One step's batch: token-shaped arrays of B * L in the arena (B global_batch_size, L sequence_tokens), and the documents in them.
struct BatchView {
  std::span<int32_t> ids, targets, positions;
  std::span<int32_t> segment_starts;  // [B * segments_per_sequence + 1]: first token of each document, in the whole batch, ascending
  std::span<int32_t> segment_counts;  // [B]: documents of each sequence, at least 1
};

struct StepResult {
  double loss_sum = 0;      // over valid tokens, added in f64 in token order
  int64_t num_valid = 0;
  double gradient_norm = 0;  // of the mean gradient, before clipping
  bool skipped = false;      // no valid token, or a non-finite gradient (NUMERICS rule 7)
};

class TrainingEngine {
 public:
  /// Allocates the arena and resolves every kernel; all later calls allocate nothing.
  TrainingEngine(const Plan& plan, const EngineOptions& options);

  const Plan& plan() const { return plan_; }
  const Arena& arena() const { return arena_; }
  Executor& executor() { return executor_; }

  void initialize_weights(uint64_t seed);

  /// Copies 0 and 1 alternate between steps, so that a loader may fill one while the other trains; copy 2 is for evaluation.
  BatchView batch(int copy);

  /// One optimizer step on a copy of the batch. `before_update` runs when the weights are about to change: a save that still reads
  /// them makes the step wait there.
  StepResult step(int copy, const OptimizerHyper& hyper, const std::function<void()>& before_update = {});
  /// Loss of the first `num_sequences` sequences of the evaluation copy; weights are only read.
  StepResult evaluate(int64_t num_sequences);

  /// Addresses of a parameter's weight and state: for checkpoints.
  std::byte* parameter_data(size_t parameter) const;
  std::byte* state_data(size_t parameter, StateField field) const;  // null when the plan has none

  /// The planned buffer that a save streams through.
  std::span<std::byte> checkpoint_buffer() const;

  /// The built-in per-op table of the steps since the last reset: time, share, TFLOP/s, GB/s.
  std::string op_table() const;
  void reset_op_table();

 private:
  ActionBinding bind(const Action& action, int copy);
  int64_t write_segments(int copy, const MicroBatch& batch, int32_t micro_batch);
  double sum_losses(int copy, int64_t num_tokens) const;
  int64_t count_valid(int copy, int64_t num_tokens);
  std::byte* step_data(StepField field) const { return arena_.data() + plan_.memory.step_offset[static_cast<size_t>(field)]; }
  std::byte* batch_data(BatchField field, int copy) const;

  const Plan& plan_;
  ThreadPool pool_;
  Arena arena_;
  Executor executor_;
  std::vector<int32_t> segment_starts_;  // [copy][B * segments_per_sequence + 1]
  std::vector<int32_t> segment_counts_;  // [copy][B]
  int64_t num_steps_timed_ = 0;
};

}  // namespace orrery
