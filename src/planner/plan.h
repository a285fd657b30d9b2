// The Plan: everything that a run will do and where every byte of it will lie, known before it starts. The same value is printed,
// verified, executed and compared with what happened. Made from pure facts: no tensor, no device.
#pragma once

#include <optional>
#include <string>

#include "ir/memory_map.h"
#include "ir/schedule.h"
#include "model/model_config.h"
#include "parallel/data.h"
#include "parallel/lanes.h"
#include "parallel/optimizer_blocks.h"
#include "parallel/recompute.h"

namespace orrery {

struct TrainingPlanOptions {
  ModelConfig model;
  DType compute_dtype = DType::kBF16;
  int64_t sequence_tokens = 0;
  int64_t global_batch_size = 0;  // sequences
  int64_t lanes = 4;
  std::optional<int64_t> micro_batch_size;  // sequences; absent: chosen here
  std::optional<Recompute> recompute;       // absent: the least that fits the budget
  int64_t segments_per_sequence = 1;        // most documents that meet in one window
  bool evaluates = false;
  OptimizerBlockOptions optimizer;
  int64_t memory_budget_bytes = 0;          // of one rank's arena; 0: no limit
  DataParallel data;                        // how many ranks hold different sequences, and which of them the plan is for
};

struct Plan {
  TrainingPlanOptions options;
  int64_t micro_batch_size = 0;  // what was chosen
  Recompute recompute = Recompute::kNone;
  Stage stage;
  Schedule schedule;
  MemoryMap memory;
  std::vector<ParameterUnit> units;  // what is reduced in one collective
  int64_t num_norm_blocks = 0;       // f64 sums in the step field kSquaredSums; behind them the losses of all sequences and a count

  int64_t num_parameters = 0;
  double flops_per_step = 0;        // of the model: matrix products and attention, recomputation not counted
  double recompute_flops_per_step = 0;
};

/// Chooses micro-batch size and recompute where they are left open (most sequences up to 4,096 tokens a micro-batch with the least
/// recompute that fits the budget), builds the blocks, the schedule and the memory map, and verifies the result.
/// Errors: kInvalidConfig when nothing fits: says the least bytes that would do.
Plan make_training_plan(const TrainingPlanOptions& options, const WorkspaceBytes& workspace_bytes);

/// One plan for each data-parallel rank, in rank order, all with the micro-batch size and recompute that the neediest rank can hold.
/// Errors: as make_training_plan; kInvalidConfig for a zero_stage that is not 0 or 1.
std::vector<Plan> make_training_plans(const TrainingPlanOptions& options, const WorkspaceBytes& workspace_bytes);

/// Sequences [first, first + count) of the global batch that the plan's rank trains on.
struct SequenceShare {
  int64_t first = 0, count = 0;
};
SequenceShare sequence_share(const Plan& plan);

/// The whole plan as JSON: options, blocks op by op, schedule, every buffer's offset. Two equal plans print equally.
/// `prediction`: of the step's time, where there is one.
struct StepPrediction;
std::string plan_to_json(const Plan& plan, const StepPrediction* prediction = nullptr);

/// What `orrery plan` prints: model, batch, layout, bytes per class with the activations' lower bound, schedule.
std::string plan_to_text(const Plan& plan);

std::string_view recompute_name(Recompute recompute);
std::optional<Recompute> parse_recompute(std::string_view name);

}  // namespace orrery
