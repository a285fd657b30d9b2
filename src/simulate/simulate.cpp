#include "simulate/simulate.h"

#include <algorithm>
#include <map>

#include "base/error.h"

namespace orrery {
namespace {

bool is_forward(ActionKind kind) { return kind == ActionKind::kForward; }
bool gives_gradient(ActionKind kind) { return kind == ActionKind::kBackward || kind == ActionKind::kBackwardInput; }

}  // namespace

Timeline simulate(const SimulatedPipeline& p) {
  const size_t num_ranks = p.steps.size(), num_stages = p.rank_of_stage.size();
  if (p.seconds_of_stage.size() != num_stages) throw Error(ErrorCode::kInvalidConfig, "seconds for {} stages, the pipeline has {}", p.seconds_of_stage.size(), num_stages);
  int32_t num_micro_batches = 0;
  for (const auto& rank : p.steps)
    for (const SimulatedStep& step : rank) {
      if (step.stage < 0 || static_cast<size_t>(step.stage) >= num_stages || step.micro_batch < 0)
        throw Error(ErrorCode::kInvalidConfig, "a step of stage {} and micro-batch {}: there are {} stages", step.stage, step.micro_batch, num_stages);
      num_micro_batches = std::max(num_micro_batches, step.micro_batch + 1);
    }
  constexpr double kNever = -1;
  const size_t cells = num_stages * static_cast<size_t>(num_micro_batches);
  std::vector<double> forward_done(cells, kNever), gradient_done(cells, kNever);
  auto cell = [&](int32_t stage, int32_t micro) { return static_cast<size_t>(stage) * static_cast<size_t>(num_micro_batches) + static_cast<size_t>(micro); };
  auto rank_of = [&](int32_t stage) { return p.rank_of_stage[static_cast<size_t>(stage)]; };
  const int32_t last = static_cast<int32_t>(num_stages) - 1;

  // When the inputs of a step are there, or kNever.
  auto ready = [&](const SimulatedStep& step) {
    auto after = [&](double done, int32_t other) { return done == kNever ? kNever : done + (rank_of(other) == rank_of(step.stage) ? 0 : p.handoff_seconds); };
    if (is_forward(step.kind)) return step.stage == 0 ? 0.0 : after(forward_done[cell(step.stage - 1, step.micro_batch)], step.stage - 1);
    if (step.kind == ActionKind::kBackwardWeight) return gradient_done[cell(step.stage, step.micro_batch)];
    const double own = forward_done[cell(step.stage, step.micro_batch)];
    if (own == kNever || step.stage == last) return own;
    const double next = after(gradient_done[cell(step.stage + 1, step.micro_batch)], step.stage + 1);
    return next == kNever ? kNever : std::max(own, next);
  };
  auto seconds = [&](const SimulatedStep& step) {
    const StageSeconds& stage = p.seconds_of_stage[static_cast<size_t>(step.stage)];
    if (is_forward(step.kind)) return stage.forward;
    if (step.kind == ActionKind::kBackwardInput) return stage.backward_input;
    if (step.kind == ActionKind::kBackwardWeight) return stage.backward_weight;
    return stage.backward_input + stage.backward_weight;
  };

  Timeline timeline;
  timeline.ranks.resize(num_ranks);
  std::vector<size_t> position(num_ranks, 0);
  std::vector<double> free_at(num_ranks, 0.0);
  size_t left = 0;
  for (const auto& rank : p.steps) left += rank.size();
  // A rank runs as far as its inputs are there; whoever gets on may free others, so ranks are visited until none does.
  std::vector<size_t> work(num_ranks);
  std::vector<char> queued(num_ranks, 1);
  for (size_t r = 0; r < num_ranks; ++r) work[r] = num_ranks - 1 - r;
  while (!work.empty()) {
    const size_t r = work.back();
    work.pop_back();
    queued[r] = 0;
    auto wake = [&](int32_t stage) {
      if (stage < 0 || stage > last) return;
      const size_t other = static_cast<size_t>(rank_of(stage));
      if (other != r && !queued[other]) queued[other] = 1, work.push_back(other);
    };
    while (position[r] < p.steps[r].size()) {
      const SimulatedStep& step = p.steps[r][position[r]];
      const double inputs = ready(step);
      if (inputs == kNever) break;
      const double begin = std::max(free_at[r], inputs), end = begin + seconds(step) * (p.slowdown.empty() ? 1 : p.slowdown[r]);
      timeline.ranks[r].push_back({step, begin, end});
      free_at[r] = end;
      ++position[r], --left;
      if (is_forward(step.kind)) forward_done[cell(step.stage, step.micro_batch)] = end, wake(step.stage + 1);
      else if (gives_gradient(step.kind)) gradient_done[cell(step.stage, step.micro_batch)] = end, wake(step.stage - 1);
    }
  }
  if (left > 0)
    for (size_t r = 0; r < num_ranks; ++r)
      if (position[r] < p.steps[r].size()) {
        const SimulatedStep& step = p.steps[r][position[r]];
        throw Error(ErrorCode::kInvalidConfig, "the schedule cannot go on: rank {} waits at its step {} (stage {}, micro-batch {}) for one that never comes", r, position[r], step.stage, step.micro_batch);
      }
  double busy = 0;
  for (size_t r = 0; r < num_ranks; ++r) {
    timeline.compute_seconds = std::max(timeline.compute_seconds, free_at[r]);
    for (const TimelineEvent& event : timeline.ranks[r]) busy += event.end - event.begin;
  }
  timeline.step_seconds = timeline.compute_seconds + p.tail_seconds;
  if (timeline.compute_seconds > 0) timeline.idle_share = 1 - busy / (timeline.compute_seconds * static_cast<double>(num_ranks));
  return timeline;
}

ClusterTimeline simulate_cluster(const SimulatedCluster& cluster) {
  ClusterTimeline result;
  result.classes.push_back(simulate(cluster.pipeline));
  result.class_of_replica.assign(static_cast<size_t>(cluster.replicas), 0);
  const int64_t num_ranks = static_cast<int64_t>(cluster.pipeline.steps.size());
  if (cluster.straggler_rank >= 0) {
    if (cluster.straggler_rank >= num_ranks * cluster.replicas)
      throw Error(ErrorCode::kInvalidArgument, "slow rank {}: there are ranks 0 to {}", cluster.straggler_rank, num_ranks * cluster.replicas - 1);
    SimulatedPipeline slow = cluster.pipeline;
    slow.slowdown.resize(slow.steps.size(), 1.0);
    slow.slowdown[static_cast<size_t>(cluster.straggler_rank % num_ranks)] *= cluster.straggler_slowdown;
    result.classes.push_back(simulate(slow));
    result.class_of_replica[static_cast<size_t>(cluster.straggler_rank / num_ranks)] = 1;
  }
  for (const Timeline& timeline : result.classes) result.step_seconds = std::max(result.step_seconds, timeline.step_seconds);
  return result;
}

}  // namespace orrery
