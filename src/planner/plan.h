// The Plan: everything that a run will do and where every byte of it will lie, known before it starts. The same value is printed,
// verified, executed and compared with what happened. Made from pure facts: no tensor, no device.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "ir/memory_map.h"
#include "ir/parallel_context.h"
#include "ir/schedule.h"
#include "ir/schedule_graph.h"
#include "model/model_config.h"
#include "parallel/data.h"
#include "parallel/lanes.h"
#include "parallel/pipeline.h"
#include "parallel/optimizer_blocks.h"
#include "parallel/recompute.h"

namespace orrery {

/// Which stages of the model each rank of a pipeline has, and in which order it runs them.
struct PipelineParallel {
  int64_t size = 1;  // ranks
  int64_t rank = 0;
  PipelineKind kind = PipelineKind::k1F1B;
  int64_t virtual_stages = 1;         // stages a rank, where the kind leaves the choice
  std::vector<int64_t> stage_layers;  // layers of each stage; empty: chosen by cost
  std::optional<PipelineOrder> order;  // of a schedule file: instead of kind and virtual_stages
  int64_t micro_batch_group_size = 0;  // as PipelineOptions
  bool operator==(const PipelineParallel&) const = default;
};

struct TrainingPlanOptions {
  ModelConfig model;
  DType compute_dtype = DType::kBF16;
  int64_t sequence_tokens = 0;
  int64_t global_batch_size = 0;  // sequences
  int64_t lanes = 4;
  std::optional<int64_t> micro_batch_size;  // sequences; absent: chosen here
  std::optional<Recompute> recompute;       // absent: the least that fits the budget
  int recompute_level = kRecomputeLevels;   // kBudget: how much; chosen for each rank of a pipeline where `recompute` is absent
  double flops_per_byte = 20;               // kBudget: what a byte's time is worth in products; about that of processors with AMX or AVX-512 and DDR5
  int64_t segments_per_sequence = 1;        // most documents that meet in one window
  bool evaluates = false;
  bool offload_activations = false;         // of each layer, between its forward and its backward
  OptimizerBlockOptions optimizer;
  int64_t memory_budget_bytes = 0;          // of one rank's arena; 0: no limit
  DataParallel data;                        // how many ranks hold different sequences, and which of them the plan is for
  PipelineParallel pipeline;
  ParallelContext parallel;  // the ranks that share each layer: alike in all but their parts of the matrices, or their tokens

  /// Ranks with the same part of each layer: a slice of the world, the slices one after the other. Schedules name ranks of their slice.
  int64_t slice_size() const { return data.size * pipeline.size; }
  int64_t slice_rank() const { return pipeline.rank * data.size + data.rank; }
  int64_t world_size() const { return parallel.num_parts() * slice_size(); }
  int64_t world_rank() const { return parallel.part() * slice_size() + slice_rank(); }
  /// Of each sequence, on a rank.
  int64_t local_tokens() const { return sequence_tokens / parallel.context_size; }
  /// Sums that make the step's loss: of each sequence one for each context rank, all sequences of a rank together.
  int64_t num_losses() const { return global_batch_size * parallel.context_size; }
};

struct Plan {
  TrainingPlanOptions options;
  int64_t micro_batch_size = 0;  // what was chosen
  Recompute recompute = Recompute::kNone;
  Stage stage;  // of this rank: its chunks
  Schedule schedule;
  MemoryMap memory;
  std::vector<ParameterUnit> units;  // what is reduced in one collective
  std::optional<SharedMatrix> shared;
  StateOffload offload;                // of the optimizer's state
  std::vector<ActivationGroup> activation_groups;  // what is offloaded of a micro-batch
  std::vector<int32_t> rank_of_stage;  // of the pipeline
  int64_t num_norm_blocks = 0;       // of the whole model: f64 sums in the step field kSquaredSums; behind them num_losses() losses and a count

  int64_t num_parameters = 0;
  double flops_per_step = 0;        // of the model: matrix products and attention, recomputation not counted
  double recompute_flops_per_step = 0;
};

/// One plan for each rank, in world order: data-parallel ranks of one pipeline rank are neighbours, the ranks that share a layer a slice apart. Chooses micro-batch size and recompute
/// where they are left open, the same for all ranks (most sequences up to 4,096 tokens a micro-batch, and enough micro-batches to fill the
/// pipeline, with the least recompute that fits the budget on the neediest), builds blocks, schedules and memory maps, and verifies each
/// rank's memory and all schedules together.
/// Errors: kInvalidConfig when nothing fits: says the least bytes that would do; for sizes that do not go together, which and what would.
std::vector<Plan> make_training_plans(const TrainingPlanOptions& options, const WorkspaceBytes& workspace_bytes);

/// The plan of the rank of `options` alone, its micro-batch size and recompute given: memory and schedule, not compared with other ranks' and
/// without the counts of the whole model's work. For looking at one rank of very many.
/// Errors: as above.
Plan make_rank_plan(const TrainingPlanOptions& options, const WorkspaceBytes& workspace_bytes);

/// The plan of a single rank: all sizes are 1.
Plan make_training_plan(const TrainingPlanOptions& options, const WorkspaceBytes& workspace_bytes);

/// Who takes part in what and how long it is, for verify_schedules; refers to `plans`, which are one slice of the world, in its order.
ScheduleContext schedule_context(std::span<const Plan> plans);

/// Whether the schedule "2bw" runs its steps into each other. It drains where parameters or gradients take turns in a step (zero_stage 2 and 3,
/// weights that are offloaded), and on one rank.
bool steps_carry(const TrainingPlanOptions& options);
/// Copies of a step's batch that take turns: one is trained on, one is filled, and where steps carry the next one is trained on too.
int training_copies(const Plan& plan);

/// Whether the rank has the end of the model, and of its tensor ranks is the one that tells the losses of its tokens.
bool has_losses(const Plan& plan);

/// The elements of a parameter's weight that the rank keeps from one step to the next: all, or, with weights sharded, those of its shard.
OwnedElements weight_shard(const Plan& plan, size_t parameter);

/// Where elements [begin, end) of a parameter's state are: in the arena, or in what the rank offloads to; `offset` is of the first of them.
struct StatePlace {
  int64_t begin = 0, end = 0, offset = 0;
  bool offloaded = false;
};
/// All that the rank keeps of the field, in order.
std::vector<StatePlace> state_places(const Plan& plan, size_t parameter, StateField field);

/// Bytes of what the rank offloads to: its state, then each group of activations once a slot.
int64_t offload_bytes(const Plan& plan);
/// Bytes that an action of the copy stream moves; 0 for any other.
int64_t copied_bytes(const Plan& plan, const Action& action);

/// Bytes of what an action between ranks carries, as both ends see it; 0 for one without payload.
int64_t payload_bytes(const Plan& plan, const Action& action);
/// Bytes that this rank sends in the action, to all its peers together.
int64_t bytes_sent(const Plan& plan, const Action& action);

/// The sequences of the global batch that the plan's rank trains on, in the order of its micro-batches.
std::vector<int> batch_sequences(const Plan& plan);

/// As many sequences [first, first + count), by data-parallel rank one after the other: the rank's part of an evaluation.
struct SequenceShare {
  int64_t first = 0, count = 0;
};
SequenceShare sequence_share(const Plan& plan);

/// The whole plan as JSON: options, blocks op by op, schedule, every buffer's offset. Two equal plans print equally.
/// `prediction`: of the step's time, where there is one; `forecast`: of the whole run.
struct StepPrediction;
struct RunForecast;
std::string plan_to_json(const Plan& plan, const StepPrediction* prediction = nullptr, const RunForecast* forecast = nullptr);

/// What `orrery plan` prints: model, batch, layout, bytes per class with the activations' lower bound, schedule.
std::string plan_to_text(const Plan& plan);

std::string_view recompute_name(Recompute recompute);
/// With the level of a policy that has one.
std::string recompute_text(const Plan& plan);
std::optional<Recompute> parse_recompute(std::string_view name);

}  // namespace orrery
