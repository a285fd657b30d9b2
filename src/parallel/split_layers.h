// Uneven stages by cost: which consecutive layers each stage of a pipeline has, so that the slowest stage is as fast as it can be.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace orrery {

/// Where each stage's layers end: stage s has layers [ends[s - 1], ends[s]). Every stage has at least one layer; the largest sum of
/// costs is minimal, and among equals the earlier stages are the longer ones. `costs` may count the embedding as a first layer and the
/// head as a last one. Exact, O(stages * layers^2).
/// Error: kInvalidConfig when there are more stages than layers.
std::vector<int32_t> split_layers(std::span<const double> costs, int32_t num_stages);

}  // namespace orrery
