// One rank's plan in motion: the arena, the executor, and the walk over the schedule's actions, compute on the caller's thread,
// collectives, messages and copies on one of their own each. It knows nothing of files, configuration or reporting; the trainer (trainer.h) does.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/kernel.h"
#include "comm/communicator.h"
#include "planner/plan.h"
#include "planner/step_time.h"
#include "runtime/arena.h"
#include "runtime/executor.h"
#include "runtime/offload_store.h"
#include "train/action_progress.h"
#include "train/message_stream.h"
#include "train/step_thread.h"

namespace orrery {

struct EngineOptions {
  int num_threads = 1;
  VectorIsa isa = VectorIsa::kAvx2;
  Arithmetic arithmetic = Arithmetic::kFma1;
  bool native_arithmetic = true;  // false: emulate the arithmetic id with f32 FMAs
  bool pin_threads = true;
  bool computes = true;  // false: no op runs, so that a step is what its schedule communicates; to time that alone
  std::string offload_place;  // of what the plan offloads: a folder, or "numa:N"
};

/// The processor's own choice of instruction set and arithmetic, `num_threads` <= 0 meaning every core this process may use.
EngineOptions default_engine_options(int num_threads = 0);
/// Threads of each of `num_ranks` ranks that share `num_threads`: at least one.
int rank_threads(int num_threads, int num_ranks);
DeviceSpec device_spec(const EngineOptions& options);
/// The kernel traits bound to a device: what make_training_plan asks for.
WorkspaceBytes workspace_traits(const EngineOptions& options, int64_t sequence_tokens);

/// The rank's part of a step's batch: token-shaped arrays of B * L in the arena (B its sequences, L local_tokens), and the documents
/// in whole sequences of sequence_tokens.
struct BatchView {
  std::span<int32_t> ids, targets, positions;
  std::span<int32_t> segment_starts;  // [B * segments_per_sequence + 1]: first token of each document, counted from the rank's first sequence's, ascending
  std::span<int32_t> segment_counts;  // [B]: documents of each sequence, at least 1
};

struct StepResult {
  double loss_sum = 0;      // of all ranks' valid tokens: in f64, each sequence's in token order, then the sequences in order
  int64_t num_valid = 0;    // of all ranks
  double gradient_norm = 0;  // of the mean gradient, before clipping
  bool skipped = false;      // no valid token, or a non-finite gradient (NUMERICS rule 7)
};

class TrainingEngine {
 public:
  /// Allocates the arena and resolves every kernel. `world`: all ranks, rank and size as plan.options say; null for one rank. Both outlive
  /// the engine.
  TrainingEngine(const Plan& plan, const EngineOptions& options, Communicator* world = nullptr);
  ~TrainingEngine();
  TrainingEngine(const TrainingEngine&) = delete;
  TrainingEngine& operator=(const TrainingEngine&) = delete;

  const Plan& plan() const { return plan_; }
  const Arena& arena() const { return arena_; }
  Executor& executor() { return executor_; }

  /// Makes the groups of the plan's mesh. Every rank of the world calls it, once, before the first of the calls that they make together;
  /// those allocate nothing.
  void connect();

  void initialize_weights(uint64_t seed);
  /// With a gradient delay: the weights that are there, initial or loaded ones, are the newest too, so that the first step is undelayed.
  void start_from_weights();
  /// With a gradient delay: the weights that forwards and evaluations read and the newest ones change places. Between steps, twice: evaluate()
  /// in between sees the newest. Every rank.
  void exchange_weight_versions();
  /// Copies the weight of a matrix that two stages share to the rank that does not update it: after weights were loaded. Every rank.
  void share_weights();

  /// Copies [0, training_copies) take turns between steps, so that a loader may fill one while another trains; the one behind them is for evaluation.
  BatchView batch(int copy);
  int eval_copy() const { return training_copies(plan_); }

  /// One optimizer step on a copy of the batch; every rank of the group takes it. Where steps carry it works on the next copy too, which is filled, and
  /// which the next step has to be given; what it has of that one is dropped, and done again, if an evaluation or other weights come between. `before_update` runs when the weights are about to
  /// change: a save that still reads them makes the step wait there. Errors: the communicator's (kPeerLost, kTimeout).
  StepResult step(int copy, const OptimizerHyper& hyper, const std::function<void()>& before_update = {});
  /// Losses of the first `num_sequences` sequences of the evaluation copy, one sum a sequence over the rank's tokens, into `loss_sums`; returns the number of
  /// valid tokens. Weights are only read. The ranks of a pipeline take part together, with the same sequences; the one with the model's end
  /// has the losses, the others leave `loss_sums` alone and return 0. Data-parallel ranks that gather weights take part together too, in as
  /// many micro-batches as the one with most sequences, `most_sequences`, has.
  int64_t evaluate(int64_t num_sequences, int64_t most_sequences, std::span<double> loss_sums);

  /// By kind of group: what this rank sent and received. Valid after connect().
  std::vector<const Communicator*> communicators() const;

  /// Addresses of a parameter's weight and state: for checkpoints.
  std::byte* parameter_data(size_t parameter) const;  // of the first element that this rank keeps, where weights are sharded
  std::byte* state_data(size_t parameter, StateField field) const;  // null when the plan has none, or offloads it
  std::byte* state_data(const StatePlace& place) const;             // of state_places()

  /// The planned buffer that a save streams through.
  std::span<std::byte> checkpoint_buffer() const;

  /// The built-in per-op table of the steps since the last reset: time, share, TFLOP/s, GB/s.
  std::string op_table() const;
  void reset_op_table();
  int64_t num_steps_timed() const { return num_steps_timed_; }
  double step_seconds() const { return num_steps_timed_ > 0 ? step_seconds_ / static_cast<double>(num_steps_timed_) : 0; }
  /// Mean busy seconds of a step since that reset, by phase: what predict_step_time predicts.
  PhaseSeconds phase_seconds() const;
  /// The same by action of the plan's schedule, without the wait for what it needs.
  std::vector<double> action_seconds() const;

 private:
  ActionBinding bind(const Action& action, int copy);
  int64_t write_segments(int copy, const MicroBatch& batch, int32_t micro_batch);
  double sequence_loss(int copy, int64_t sequence) const;
  int64_t count_valid(int copy, int64_t num_sequences);

  // The streams of a step. Each runs its own actions and waits for the others' through progress_.
  void run_streams(int copy, const std::function<void()>& before_update);
  bool runs(const Action& action) const { return !begins_flow_ || action.next_step; }
  void bind_messages();
  std::byte* newest_data(size_t parameter) const;  // whole
  void compute(int copy, const std::function<void()>& before_update);
  void begin_update(const std::function<void()>& before_update);
  void for_each_newest(const std::function<void(std::byte* weight, std::byte* newest, size_t bytes)>& visit);
  void run_copies();
  void copy(ActionKind kind, int64_t file_offset, std::byte* data, int64_t bytes);
  void copy_state(const Action& action);
  void copy_activations(const Action& action);
  void fetch_weights(const ParameterUnit& unit);
  void run_collectives();
  void run_collective(const Action& action);
  std::span<std::byte> message_buffer(const Action& action);
  std::vector<std::span<std::byte>> message_buffers();
  void evaluate_stage(int32_t chunk, const ActionBinding& binding);
  void evaluate_ops(const ActionBinding& binding);
  void plan_reductions();
  bool is_empty(const Action& action) const { return !computes_ || (action.micro_batch >= 0 && plan_.schedule.micro_batches[static_cast<size_t>(action.micro_batch)].num_sequences == 0); }
  std::span<double> exchanged() const;  // block sums of all ranks, losses of all sequences, count of valid tokens
  void reduce_scatter(const Action& action, const ParameterUnit& unit, std::string_view label);
  void all_reduce_shards(const Action& action, const ParameterUnit& unit, std::string_view label);
  void gather_weights(int32_t unit, std::string_view label);
  void gather_parameters(const ParameterUnit& unit, std::string_view label);
  std::byte* gradient_data(const ParameterUnit& unit, int32_t buffer) const;  // of the unit's first element
  std::byte* shard_sum(int32_t unit, int32_t sum) const;
  std::span<const ElementRange> owners(const ParameterUnit& unit, int64_t origin, int64_t end, int64_t scale);
  std::byte* step_data(StepField field) const { return arena_.data() + plan_.memory.step_offset[static_cast<size_t>(field)]; }
  std::byte* batch_data(BatchField field, int copy) const;

  const Plan& plan_;
  const bool computes_;
  ThreadPool pool_;
  Arena arena_;
  std::optional<OffloadStore> offloaded_;
  Executor executor_;
  std::vector<int32_t> segment_starts_;  // [copy][B * segments_per_sequence + 1]
  std::vector<int32_t> segment_counts_;  // [copy][B]
  int64_t num_steps_timed_ = 0;
  double step_seconds_ = 0;
  std::vector<double> action_seconds_;  // by action, since the reset; each is written by the one thread that runs it

  Communicator* world_;
  std::unique_ptr<Communicator> slice_group_;  // null where no ranks share a layer
  std::vector<std::unique_ptr<Communicator>> op_groups_;  // of those that do, in which ops meet
  std::unique_ptr<Communicator> data_group_, pipeline_group_;  // where they are not the world, or not for this rank's threads alone
  std::unique_ptr<Communicator> shard_group_, replica_group_;  // parts of the data-parallel ranks: null when a shard group is all of them
  Communicator* data_ = nullptr;        // ranks that have all shards together
  std::vector<ReductionPlan> reductions_;  // by round; one where there are no rounds
  ReductionPlan replica_reduction_;
  std::vector<int> sequences_;             // of the global batch, in the order of the micro-batches
  UnitUses unit_uses_;                     // where weights have slots
  struct WeightPart {
    int64_t file_offset = 0, arena_offset = 0, count = 0;
  };
  std::vector<std::vector<WeightPart>> weight_parts_;  // by unit: of offloaded weights
  std::vector<std::string> labels_;   // by action: its text
  std::vector<ElementRange> ranges_;  // of the collective in progress
  std::vector<int32_t> slots_;        // [micro-batch][chunk]
  // Where steps carry:
  bool in_flow_ = false;      // work of the next step has been done
  bool begins_flow_ = false;  // only that is being done
  int64_t step_index_ = 0;    // which of two gradient buffers is whose (buffer_in_step)
  ActionProgress progress_;
  std::optional<MessageStream> messages_;
  std::optional<StepThread> collective_thread_, message_thread_, copy_thread_;  // last: they use everything above
};

}  // namespace orrery
