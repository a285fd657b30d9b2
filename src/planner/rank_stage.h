// The blocks of one rank: the stages of the model that it holds, each built and rewritten by the passes in order, put together with what
// the update needs. Which rank holds which layers is decided here; when they run is the schedule's part.
#pragma once

#include <vector>

#include "model/decoder.h"
#include "planner/plan.h"

namespace orrery {

/// By stage of the pipeline, in model order. Where options.pipeline.stage_layers is empty, so that the stage with most work has as little
/// as it can; embedding and head count, and may be a stage by themselves.
/// Errors: kInvalidConfig when there are more stages than layers, or stage_layers does not add up.
std::vector<ModelPart> stage_parts(const TrainingPlanOptions& options, int32_t num_stages);

/// One stage of the model: forward, backward, evaluation.
Stage build_chunk(const TrainingPlanOptions& options, int64_t micro_batch_size, Recompute recompute, const ModelPart& part);

struct RankStage {
  Stage stage;
  std::vector<ParameterUnit> units;
  RankUpdate update;
  StateOffload offload;
  std::optional<SharedMatrix> shared;
  int64_t num_norm_blocks = 0;
};
/// Everything that the rank of `options` runs. `rank_of_stage` as in PipelineOrder; `splits`: the schedule runs backwards in halves.
RankStage build_rank_stage(const TrainingPlanOptions& options, int64_t micro_batch_size, Recompute recompute, const std::vector<int32_t>& rank_of_stage, bool splits);

}  // namespace orrery
