// `orrery plan RUN.toml --cluster CLUSTER.toml`: the layout that a cluster which need not be here should run, and why.
#pragma once

#include <string>
#include <vector>

#include "parallel/pipeline.h"
#include "planner/search.h"
#include "simulate/simulate.h"

namespace orrery {

struct ClusterPlanOptions {
  std::string run_path, cluster_path, objective = "time", deadline, budget, html_path;
  std::vector<std::string> overrides;
  bool explain = false, json = false;
  int64_t lost_nodes = 0;
};

/// The search that the run and cluster files ask for. Errors: kInvalidConfig, kInvalidArgument, as the parts say.
SearchRequest cluster_request(const ClusterPlanOptions& options);

/// Prints the plan to stdout. Errors: kInvalidConfig, kInvalidArgument, as the parts say.
void plan_for_cluster(const ClusterPlanOptions& options);

PipelineKind pipeline_kind_of(PipelineSchedule schedule);
/// The pipeline of a layout, its stages' seconds from the closed form: a third of the work is forward, without recomputation, and the
/// two halves of the backward are equal.
SimulatedPipeline simulated_pipeline(const Candidate& candidate, PipelineKind kind);

}  // namespace orrery
