// `orrery plan RUN.toml --cluster CLUSTER.toml`: the layout that a cluster which need not be here should run, and why.
#pragma once

#include <string>
#include <vector>

#include "planner/plan.h"
#include "planner/search.h"

namespace orrery {

struct ClusterPlanOptions {
  std::string run_path, cluster_path, objective = "time", deadline, budget, html_path, lost_nodes;
  std::vector<std::string> overrides;
  bool explain = false, json = false;
};

/// Whole hosts that are gone.
struct LostHosts {
  size_t group = 0;  // of the cluster's devices
  int64_t count = 0;
};

/// What the run and cluster files ask for: the search, and the plan of a run of this program, its layout still open.
struct ClusterRequest {
  SearchRequest search;
  TrainingPlanOptions run;
  LostHosts lost;
};
/// Errors: kInvalidConfig, kInvalidArgument, as the parts say.
ClusterRequest cluster_request(const ClusterPlanOptions& options);

/// The search, for what is left where hosts are lost, and its finalists made exact; a line of progress on a terminal.
/// Errors: kInvalidConfig, as the parts say.
void search_and_refine(const ClusterRequest& request, SearchResult& result);

/// Prints the plan to stdout. Errors: kInvalidConfig, kInvalidArgument, as the parts say.
void plan_for_cluster(const ClusterPlanOptions& options);

}  // namespace orrery
