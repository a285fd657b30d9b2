// A pipeline over devices of several kinds: which of its ranks are on which devices, how many layers each has, and what a step takes then.
// Stages are unequal: a rank gets layers by its device's speed, as far as they fit into its memory. Also the plain case, a layout on devices
// of one kind or whose replicas are on different kinds, in the same terms, so that the search treats all alike.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "planner/cost_model.h"

namespace orrery {

/// The devices of one kind that a layout uses.
struct DevicePart {
  int32_t group = 0;         // of the cluster's devices
  double num_devices = 0;
  JobCluster cluster;        // the device and its links
  double capacity_bytes = 0;  // of a device, for tensors
  // Of a pipeline over several kinds, else 0 and empty: the ranks first_rank, first_rank + 1, ... are here, with so many layers.
  int32_t first_rank = 0, num_ranks = 0;
  std::vector<int32_t> layers;
  StepCost step;      // what the step is made of on these devices
  MemoryCost memory;  // of the fullest rank
};

struct PlacedStep {
  bool fits = false;
  double missing_bytes = 0;  // on the fullest rank, where it does not fit
  StepCost step;
  MemoryCost memory;         // of the rank with the least room left
};

/// Deals the layers of `job` to the pipeline ranks of `parts` (their clusters, capacities and ranks are given, in the pipeline's order, and
/// sum up to pp), so that the slowest rank is as fast as memory allows, and prices the step: the slowest stage sets the pace, the slowest
/// part the end. `host_bytes` of host memory for a device. `states_only`: whether weights, gradients and optimizer alone fit; nothing is priced.
PlacedStep place_mixed_pipeline(const TrainingJob& job, std::span<DevicePart> parts, double host_bytes, bool states_only = false);

/// Layers of each stage, in the model's order, from those of each rank: a rank with several stages has them as even as they go, the one
/// with the embedding and the one with the head the fewer.
std::vector<int32_t> layers_by_stage(std::span<const DevicePart> parts, std::span<const int32_t> rank_of_stage);

}  // namespace orrery
