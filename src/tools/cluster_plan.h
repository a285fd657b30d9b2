// `orrery plan RUN.toml --cluster CLUSTER.toml`: the layout that a cluster which need not be here should run, and why.
#pragma once

#include <string>
#include <vector>

#include "planner/plan.h"
#include "planner/search.h"

namespace orrery {

struct ClusterPlanOptions {
  std::string run_path, cluster_path, objective = "time", deadline, budget, html_path;
  std::vector<std::string> overrides;
  bool explain = false, json = false;
  int64_t lost_nodes = 0;
};

/// What the run and cluster files ask for: the search, and the plan of a run of this program, its layout still open.
struct ClusterRequest {
  SearchRequest search;
  TrainingPlanOptions run;
};
/// Errors: kInvalidConfig, kInvalidArgument, as the parts say.
ClusterRequest cluster_request(const ClusterPlanOptions& options);

/// The search, for `lost_nodes` fewer hosts where there are any, and its finalists made exact; a line of progress on a terminal.
/// Errors: kInvalidConfig, as the parts say.
void search_and_refine(const ClusterRequest& request, int64_t lost_nodes, SearchResult& result);

/// Prints the plan to stdout. Errors: kInvalidConfig, kInvalidArgument, as the parts say.
void plan_for_cluster(const ClusterPlanOptions& options);

}  // namespace orrery
