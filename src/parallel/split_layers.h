// Uneven stages by cost: which consecutive layers each stage of a pipeline has, so that the slowest stage is as fast as it can be, on equal
// ranks or on ranks that differ in speed and memory.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

namespace orrery {

/// Where each stage's layers end: stage s has layers [ends[s - 1], ends[s]). Every stage has at least one layer; the largest sum of
/// costs is minimal, among equals the sum of their squares (a cut that keeps to a slowest stage may else be as uneven as it likes, and ranks with several
/// stages have the sums), and among those the earlier stages, which keep more micro-batches, are the shorter ones. `costs` may count the embedding as a first layer and the
/// head as a last one. Exact, O(stages * layers^2).
/// Error: kInvalidConfig when there are more stages than layers.
std::vector<int32_t> split_layers(std::span<const double> costs, int32_t num_stages);

/// A rank of a pipeline whose ranks differ: what it takes without layers and for each, and how few and how many it can have.
struct RankLoad {
  double base = 0, per_layer = 0;
  int32_t least = 0, most = std::numeric_limits<int32_t>::max();
};

/// How many of `num_layers` equal layers each rank gets, so that the largest of base + layers * per_layer is as small as it can be; among
/// equals the earlier ranks have more. Exact: each layer goes to the rank that has it done first. O(num_layers * log ranks).
/// None when the ranks' least are too many or their most too few.
std::optional<std::vector<int32_t>> share_layers(std::span<const RankLoad> ranks, int32_t num_layers);

}  // namespace orrery
