#include "planner/schedule_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <span>
#include <map>
#include <numeric>

#include "base/units.h"
#include "ir/op_table.h"
#include "parallel/schedule_grid.h"
#include "planner/shared_layers.h"

namespace orrery {
namespace {

double block_flops(const Plan& plan, Phase phase, int32_t chunk) {
  const double mean_context = static_cast<double>(plan.options.sequence_tokens + 1) / 2;
  double sum = 0;
  for (const Op& op : plan.stage.block(phase, chunk).ops) sum += op_cost(plan.stage, op, plan.micro_batch_size * plan.options.local_tokens(), mean_context).flops;
  return sum;
}

// A whole backward is priced as its two halves together.
ScheduleCosts costs_of(std::span<const Plan> plans) {
  ScheduleCosts costs;
  costs.stages.resize(plans.front().rank_of_stage.size());
  for (const Plan& plan : plans)
    for (int32_t chunk = 0; chunk < plan.stage.num_chunks(); ++chunk) {
      StageCosts& stage = costs.stages[static_cast<size_t>(plan.schedule.stage_of_chunk[static_cast<size_t>(chunk)])];
      stage.forward = block_flops(plan, Phase::kForward, chunk);
      const double weight = block_flops(plan, Phase::kBackwardWeight, chunk);
      stage.backward_weight = weight;
      stage.backward_input = block_flops(plan, Phase::kBackward, chunk) - weight;
    }
  return costs;
}

std::string grid_text(std::span<const Plan> plans, const std::vector<Schedule>& schedules) {
  const ScheduleContext context = schedule_context(plans);
  const ScheduleCosts costs = costs_of(plans);
  const ScheduleTimes times = time_schedules(schedules, context, costs);
  double unit = std::numeric_limits<double>::infinity();
  for (const StageCosts& stage : costs.stages)
    for (double cost : {stage.forward, stage.backward_input, stage.backward_weight})
      if (cost > 0) unit = std::min(unit, cost);
  // More columns than a wide terminal has say less, not more.
  constexpr double kMostColumns = 120;
  unit = std::max(unit, times.total / kMostColumns);
  std::string text = fmt::format("{}\n{:>4} {:>12} {:>7}  {}\n", to_grid(schedules, times, unit), "rank", "work", "idle", "stages");
  for (size_t rank = 0; rank < plans.size(); ++rank)
    text += fmt::format("{:>4} {:>8.4g} GF {:>6.1f}%  {}\n", rank, times.busy[rank] / 1e9, 100 * (1 - times.busy[rank] / times.total), fmt::join(schedules[rank].stage_of_chunk, " "));
  return text + fmt::format("bubble    {:.1f} % of the busiest rank's work\n", 100 * times.bubble_fraction());
}

// What a rank sends to each other one, by what it is.
std::string link_text(const std::vector<Plan>& plans) {
  struct Traffic {
    int64_t num_messages = 0, bytes = 0;
  };
  std::string text = fmt::format("\n{:<10} {:>9} {:>14}\n", "link", "messages", "bytes a step");
  for (const Plan& plan : plans) {
    std::map<int32_t, Traffic> links;
    int64_t collective_bytes = 0;
    for (const Action& action : plan.schedule.actions) {
      const int64_t bytes = bytes_sent(plan, action);
      if (stream_of(action.kind) == Stream::kCollective) collective_bytes += bytes;
      if (!is_send(action.kind)) continue;
      Traffic& link = links[static_cast<int32_t>(plan.options.parallel.part() * plan.options.slice_size()) + action.peer];
      ++link.num_messages;
      link.bytes += bytes;
    }
    for (const auto& [peer, link] : links) text += fmt::format("{:<10} {:>9} {:>14}\n", fmt::format("{} > {}", plan.options.world_rank(), peer), link.num_messages, link.bytes);
    if (collective_bytes > 0) text += fmt::format("{:<10} {:>9} {:>14}   collectives, to all peers together\n", fmt::format("{} > *", plan.options.world_rank()), "", collective_bytes);
    for (const auto& [kind, bytes] : op_bytes_sent(plan))
      text += fmt::format("{:<10} {:>9} {:>14}   in {}, to the ranks that share a layer\n", fmt::format("{} > *", plan.options.world_rank()), "", bytes, op_name(kind));
  }
  return text;
}

std::string memory_text(const std::vector<Plan>& plans) {
  std::string text = fmt::format("\n{:<20}", "memory, MiB");
  for (const Plan& plan : plans) text += fmt::format("{:>10}", fmt::format("rank {}", plan.options.world_rank()));
  text += '\n';
  constexpr double kMiB = 1 << 20;
  for (size_t i = 0; i < static_cast<size_t>(MemoryClass::kCount); ++i) {
    if (std::all_of(plans.begin(), plans.end(), [&](const Plan& plan) { return plan.memory.class_bytes[i] == 0; })) continue;
    text += fmt::format("{:<20}", memory_class_name(static_cast<MemoryClass>(i)));
    for (const Plan& plan : plans) text += fmt::format("{:>10.2f}", static_cast<double>(plan.memory.class_bytes[i]) / kMiB);
    text += '\n';
  }
  text += fmt::format("{:<20}", "total");
  for (const Plan& plan : plans) text += fmt::format("{:>10.2f}", static_cast<double>(plan.memory.total_bytes) / kMiB);
  return text + '\n';
}

}  // namespace

std::string schedules_to_text(const std::vector<Plan>& plans) {
  // Slices of tensor ranks run alike.
  const std::span slice = std::span(plans).first(static_cast<size_t>(plans.front().options.slice_size()));
  std::vector<Schedule> schedules;
  for (const Plan& plan : slice) schedules.push_back(plan.schedule);
  std::string text = grid_text(slice, schedules);
  if (plans.size() > 1) text += link_text(plans);
  return text + memory_text(plans);
}

}  // namespace orrery
