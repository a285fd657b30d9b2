#include "parallel/split_layers.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <queue>
#include <utility>

#include "base/error.h"

namespace orrery {

std::vector<int32_t> split_layers(std::span<const double> costs, int32_t num_stages) {
  const auto num_layers = static_cast<int32_t>(costs.size());
  ORRERY_CHECK(num_stages >= 1, "num_stages={}", num_stages);
  if (num_stages > num_layers)
    throw Error(ErrorCode::kInvalidConfig, "{} pipeline stages (pipeline_parallel_size x stages per rank) for {} layers; use at most {}", num_stages, num_layers, num_layers);
  // slowest[s][n]: the smallest largest stage of layers [n, num_layers) on s + 1 stages.
  std::vector<std::vector<double>> slowest(static_cast<size_t>(num_stages), std::vector<double>(costs.size() + 1, std::numeric_limits<double>::infinity()));
  for (int32_t first = num_layers - 1; first >= 0; --first)
    slowest[0][static_cast<size_t>(first)] = costs[static_cast<size_t>(first)] + (first + 1 < num_layers ? slowest[0][static_cast<size_t>(first) + 1] : 0);
  for (size_t stages = 1; stages < slowest.size(); ++stages)
    for (size_t first = 0; first < costs.size(); ++first) {
      double stage_cost = 0;
      for (size_t end = first + 1; end < costs.size(); ++end) {
        stage_cost += costs[end - 1];
        slowest[stages][first] = std::min(slowest[stages][first], std::max(stage_cost, slowest[stages - 1][end]));
      }
    }
  // Of the cuts in which no stage costs more than that, the most even one. even[s][n]: the least sum of squares, and where the first stage ends.
  struct Cut {
    double squares = std::numeric_limits<double>::infinity();
    size_t end = 0;
  };
  constexpr double kRounding = 1e-9;  // sums of the same costs in another order are equals
  const double optimum = slowest.back()[0];
  std::vector<std::vector<Cut>> even(slowest.size(), std::vector<Cut>(costs.size()));
  for (size_t first = 0; first < costs.size(); ++first)
    if (const double cost = slowest[0][first]; cost <= optimum * (1 + kRounding)) even[0][first] = {cost * cost, costs.size()};
  for (size_t stages = 1; stages < even.size(); ++stages)
    for (size_t first = 0; first < costs.size(); ++first) {
      Cut& best = even[stages][first];
      double stage_cost = 0;
      for (size_t end = first + 1; end < costs.size(); ++end) {
        stage_cost += costs[end - 1];
        if (stage_cost > optimum * (1 + kRounding)) break;
        if (const double squares = stage_cost * stage_cost + even[stages - 1][end].squares; squares < best.squares * (1 - kRounding)) best = {squares, end};
      }
    }
  std::vector<int32_t> ends;
  size_t first = 0;
  for (size_t stages = even.size(); stages-- > 0; first = even[stages][first].end) ends.push_back(static_cast<int32_t>(even[stages][first].end));
  return ends;
}

std::optional<std::vector<int32_t>> share_layers(std::span<const RankLoad> ranks, int32_t num_layers) {
  std::vector<int32_t> layers;
  // When each rank would have one layer more done; the earliest on top, of equals the first rank.
  using Done = std::pair<double, size_t>;
  std::priority_queue<Done, std::vector<Done>, std::greater<>> next;
  const auto offer = [&](size_t rank) {
    if (layers[rank] < ranks[rank].most) next.emplace(ranks[rank].base + ranks[rank].per_layer * (layers[rank] + 1), rank);
  };
  int32_t left = num_layers;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    layers.push_back(ranks[rank].least);
    left -= ranks[rank].least;
    offer(rank);
  }
  for (; left > 0 && !next.empty(); --left) {
    const size_t rank = next.top().second;
    next.pop();
    ++layers[rank];
    offer(rank);
  }
  if (left != 0) return std::nullopt;
  return layers;
}

}  // namespace orrery
