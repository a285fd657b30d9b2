// What the search's closed form only estimates, made exact for the few layouts that it kept: the step by events over the schedule that
// would run, with the stages that would be cut, and memory by the same map that a run's arena has. Budgets are counts, so equal inputs
// give equal results.
#pragma once

#include <functional>

#include "parallel/pipeline.h"
#include "planner/plan.h"
#include "planner/search.h"
#include "simulate/simulate.h"

namespace orrery {

PipelineKind pipeline_kind_of(PipelineSchedule schedule);

/// The pipeline of a layout: layers cut into stages by cost, embedding and head counted, or, over several kinds of devices, as they were dealt
/// to the ranks, each with its device's seconds from the closed form. What
/// messages keep a rank waiting for is part of its stages' time.
SimulatedPipeline simulated_pipeline(const Candidate& candidate, PipelineKind kind, const PipelineTerms& terms = {});

/// Called after each of `total` layouts, from any of the threads that look at them, one at a time.
using FinalistProgress = std::function<void(int64_t done, int64_t total)>;

/// Steps through every finalist of `result` that has a pipeline, and lays out the memory of those that this program can run, as `run`
/// says (model, dtype, optimizer; its layout is replaced): the first, second and last rank of the pipeline on each kind of device, with the tensors of
/// every class and without the workspace of an accelerator's kernels. Where a pipeline over several kinds does not fit after all, its layers are dealt
/// once more by what the map found. Then prices them again, drops those that no longer fit or are too late
/// or too dear, sorts, and explains the families anew. About 1 ms for each thousand actions of a schedule, and mostly below 100 ms for a map; on all cores.
/// Errors: kInvalidConfig when none is left, with what would do.
void refine_finalists(const SearchRequest& request, const TrainingPlanOptions& run, SearchResult& result, const FinalistProgress& progress = {});

}  // namespace orrery
