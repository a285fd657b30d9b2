#include "planner/mixed_pipeline.h"

#include <algorithm>
#include <numeric>

#include "parallel/split_layers.h"
#include "planner/cost_constants.h"

namespace orrery {
namespace {

// Stages that a rank has.
int32_t stages_per_rank(const JobLayout& l) { return l.schedule == PipelineSchedule::kZeroBubbleV ? 2 : static_cast<int32_t>(l.virtual_stages); }

struct Ends {
  bool has_embedding = false, has_head = false;
};
// A V's last stage is on its first rank.
Ends ends_of(const JobLayout& l, int32_t rank) {
  const auto last = static_cast<int32_t>(l.pp) - 1;
  return {.has_embedding = rank == 0, .has_head = rank == (l.schedule == PipelineSchedule::kZeroBubbleV ? 0 : last)};
}

StageContent content_of(const TrainingJob& job, int32_t rank, double layers) {
  const ModelShape& m = job.model;
  const Ends ends = ends_of(job.layout, rank);
  StageContent content;
  content.layers = layers;
  content.moe_layers = m.num_experts > 0 ? std::max(0.0, layers - (rank == 0 ? m.dense_layers : 0)) : 0;
  content.embeddings = (ends.has_embedding ? 1 : 0) + (ends.has_head && !(ends.has_embedding && m.tied_head) ? 1 : 0);
  content.in_flight = micro_batches_in_flight(job.layout, rank);
  content.has_head = ends.has_head;
  return content;
}

struct Fit {
  double bytes = 0, over = 0;  // `over`: of the device or of the host, whichever is worse; at most 0 where it fits
};
Fit fit_of(const TrainingJob& job, int32_t rank, double layers, double capacity, double host_bytes, bool states_only) {
  const MemoryCost memory = predict_stage_memory(job, content_of(job, rank, layers));
  const double bytes = states_only ? memory.weights + memory.gradients + memory.optimizer : memory.total();
  return {bytes, std::max(bytes - capacity, memory.host - host_bytes)};
}

// The most layers with which the rank fits, at most `limit`; -1: it does not fit without any.
int32_t most_layers(const TrainingJob& job, int32_t rank, int32_t limit, double capacity, double host_bytes, bool states_only) {
  int32_t fits = -1, not_tried = limit;
  while (fits < not_tried) {
    const int32_t middle = fits + (not_tried - fits + 1) / 2;
    if (fit_of(job, rank, middle, capacity, host_bytes, states_only).over <= 0) fits = middle;
    else not_tried = middle - 1;
  }
  return fits;
}

}  // namespace

PlacedStep place_mixed_pipeline(const TrainingJob& job, std::span<DevicePart> parts, double host_bytes, bool states_only) {
  const JobLayout& l = job.layout;
  const auto num_layers = static_cast<int32_t>(job.model.num_layers), num_ranks = static_cast<int32_t>(l.pp);
  PlacedStep placed;

  // --- what a layer and the ends take on each kind ---
  TrainingJob local = job;
  if (!states_only)
    for (DevicePart& part : parts) {
      local.cluster = part.cluster, local.layout.stage_layers = 1;
      part.step = predict_step(local, default_constants());
    }

  // --- how many layers each rank gets ---
  std::vector<RankLoad> loads;
  for (const DevicePart& part : parts)
    for (int32_t i = 0; i < part.num_ranks; ++i) {
      const auto rank = static_cast<int32_t>(loads.size());
      const Ends ends = ends_of(l, rank);
      // Each stage has a layer, but for those that have an end of the model.
      const int32_t least = stages_per_rank(l) - ends.has_embedding - ends.has_head;
      RankLoad load{.base = (ends.has_embedding ? part.step.embed_seconds : 0) + (ends.has_head ? part.step.head_seconds : 0), .per_layer = part.step.layer_seconds, .least = least};
      load.most = most_layers(job, rank, num_layers, part.capacity_bytes, host_bytes, states_only);
      if (load.most < least) {
        placed.missing_bytes = fit_of(job, rank, least, part.capacity_bytes, host_bytes, states_only).over;
        return placed;
      }
      loads.push_back(load);
    }
  const int32_t most = std::accumulate(loads.begin(), loads.end(), int32_t{0}, [&](int32_t sum, const RankLoad& load) { return std::min(num_layers, sum + load.most); });
  if (most < num_layers) {
    // What is left over, shared by all.
    const double layer_bytes = fit_of(job, 0, 2, 0, host_bytes, states_only).bytes - fit_of(job, 0, 1, 0, host_bytes, states_only).bytes;
    placed.missing_bytes = layer_bytes * (num_layers - most) / num_ranks;
    return placed;
  }
  if (states_only) return placed.fits = true, placed;
  const auto layers = share_layers(loads, num_layers);
  if (!layers) return placed;  // more stages than layers

  // --- the step ---
  placed.fits = true;
  double slowest = 0, sum = 0, handoff = 0, tail = 0, least_room = 0;
  for (int32_t rank = 0; rank < num_ranks; ++rank) {
    const RankLoad& load = loads[static_cast<size_t>(rank)];
    const double seconds = load.base + load.per_layer * (*layers)[static_cast<size_t>(rank)];
    slowest = std::max(slowest, seconds), sum += seconds;
  }
  int32_t rank = 0;
  double devices = 0;
  for (DevicePart& part : parts) {
    part.first_rank = rank;
    part.layers.assign(layers->begin() + rank, layers->begin() + rank + part.num_ranks);
    double part_room = 0;
    for (const int32_t count : part.layers) {
      const MemoryCost memory = predict_stage_memory(job, content_of(job, rank, count));
      const double room = part.capacity_bytes - memory.total();
      if (rank == part.first_rank || room < part_room) part_room = room, part.memory = memory;
      if (rank == 0 || room < least_room) least_room = room, placed.memory = memory;
      ++rank;
    }
    local.cluster = part.cluster;
    local.layout.stage_layers = std::accumulate(part.layers.begin(), part.layers.end(), 0.0) / part.num_ranks;
    part.step = predict_step(local, default_constants());
    // Messages between kinds go over the slower network, and all ranks keep the same pace.
    handoff = std::max(handoff, part.step.handoff_seconds), tail = std::max(tail, part.step.tail_seconds);
    devices += part.num_devices;
  }
  StepCost& step = placed.step = parts.front().step;
  step.compute_seconds = step.host_seconds = step.communication_seconds = step.optimizer_seconds = step.model_flops_per_device = 0;
  for (const DevicePart& part : parts) {
    const double share = part.num_devices / devices;
    step.compute_seconds += share * part.step.compute_seconds, step.host_seconds += share * part.step.host_seconds;
    step.communication_seconds += share * part.step.communication_seconds, step.optimizer_seconds += share * part.step.optimizer_seconds;
    step.model_flops_per_device += share * part.step.model_flops_per_device;
  }
  step.handoff_seconds = handoff, step.tail_seconds = tail;
  step.bubble_seconds = (l.pp - 1) * idle_share(l) * (sum / l.pp + handoff);
  step.seconds = l.num_micro_batches * (slowest + handoff) + step.bubble_seconds + tail;
  for (DevicePart& part : parts) part.step.seconds = step.seconds, part.step.handoff_seconds = handoff;
  return placed;
}

std::vector<int32_t> layers_by_stage(std::span<const DevicePart> parts, std::span<const int32_t> rank_of_stage) {
  std::vector<int32_t> of_rank, result(rank_of_stage.size(), 0);
  for (const DevicePart& part : parts) of_rank.insert(of_rank.end(), part.layers.begin(), part.layers.end());
  for (size_t rank = 0; rank < of_rank.size(); ++rank) {
    std::vector<size_t> stages;
    for (size_t stage = 0; stage < rank_of_stage.size(); ++stage)
      if (static_cast<size_t>(rank_of_stage[stage]) == rank) stages.push_back(stage);
    // What is left of an even share goes to the stages in the middle of the model first.
    std::stable_partition(stages.begin(), stages.end(), [&](size_t stage) { return stage != 0 && stage + 1 != rank_of_stage.size(); });
    const auto count = static_cast<int32_t>(stages.size());
    for (int32_t i = 0; i < count; ++i) result[stages[static_cast<size_t>(i)]] = of_rank[rank] / count + (i < of_rank[rank] % count ? 1 : 0);
  }
  return result;
}

}  // namespace orrery
