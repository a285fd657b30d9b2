#include "parallel/schedule_grid.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "ir/unroll_schedule.h"

namespace orrery {
namespace {

bool is_work(ActionKind kind) {
  return kind == ActionKind::kForward || kind == ActionKind::kBackward || kind == ActionKind::kBackwardInput || kind == ActionKind::kBackwardWeight;
}

double duration(const Action& action, const Schedule& schedule, const ScheduleCosts& costs) {
  if (stream_of(action.kind) == Stream::kPoint) return costs.message;
  if (!is_work(action.kind)) return 0;
  const StageCosts& stage = costs.stages[static_cast<size_t>(schedule.stage_of_chunk[static_cast<size_t>(action.chunk)])];
  if (action.kind == ActionKind::kForward) return stage.forward;
  if (action.kind == ActionKind::kBackwardInput) return stage.backward_input;
  if (action.kind == ActionKind::kBackwardWeight) return stage.backward_weight;
  return stage.backward_input + stage.backward_weight;
}

}  // namespace

double ScheduleTimes::bubble() const { return *std::max_element(span.begin(), span.end()) - *std::max_element(busy.begin(), busy.end()); }
double ScheduleTimes::bubble_fraction() const { return bubble() / *std::max_element(busy.begin(), busy.end()); }

ScheduleTimes time_schedules(const std::vector<Schedule>& ranks, const ScheduleContext& context, const ScheduleCosts& costs) {
  const ScheduleGraph graph(ranks, context);
  if (const std::string cycle = graph.cycle(); !cycle.empty()) throw Error(ErrorCode::kInvalidConfig, "the schedules wait for each other: {}", cycle);
  std::vector<double> at(static_cast<size_t>(graph.num_points()), 0);
  for (int32_t point : graph.order()) {
    const ActionRef ref = graph.owner(point);
    const bool is_end = point == graph.end(ref);
    const Schedule& schedule = ranks[static_cast<size_t>(ref.rank)];
    // Both sides of a message take its time, counted from the later start.
    const double takes = is_end ? duration(schedule.actions[static_cast<size_t>(ref.action)], schedule, costs) : 0;
    for (int32_t earlier : graph.previous(point)) at[static_cast<size_t>(point)] = std::max(at[static_cast<size_t>(point)], at[static_cast<size_t>(earlier)] + takes);
  }
  ScheduleTimes times;
  for (int32_t rank = 0; rank < static_cast<int32_t>(ranks.size()); ++rank) {
    const Schedule& schedule = ranks[static_cast<size_t>(rank)];
    double busy = 0, first = std::numeric_limits<double>::infinity(), last = 0;
    std::vector<ScheduleTimes::Interval>& intervals = times.actions.emplace_back();
    for (int32_t index = 0; index < static_cast<int32_t>(schedule.actions.size()); ++index) {
      const ScheduleTimes::Interval interval{at[static_cast<size_t>(graph.start({rank, index}))], at[static_cast<size_t>(graph.end({rank, index}))]};
      intervals.push_back(interval);
      times.total = std::max(times.total, interval.end);
      if (!is_work(schedule.actions[static_cast<size_t>(index)].kind)) continue;
      busy += interval.end - interval.start;
      first = std::min(first, interval.start);
      last = std::max(last, interval.end);
    }
    times.busy.push_back(busy);
    times.span.push_back(busy > 0 ? last - first : 0);
  }
  // A step in the middle of the flow begins and ends on all ranks together.
  if (carry(ranks)) times.span.assign(ranks.size(), times.total);
  return times;
}

std::string to_grid(const std::vector<Schedule>& ranks, const ScheduleTimes& times, double unit) {
  ORRERY_CHECK(unit > 0 && times.actions.size() == ranks.size(), "unit={} ranks={}", unit, ranks.size());
  const auto num_columns = static_cast<size_t>(std::ceil(times.total / unit - 1e-9));
  std::vector<std::vector<std::string>> cells(ranks.size(), std::vector<std::string>(num_columns, "."));
  size_t width = 1;
  for (size_t rank = 0; rank < ranks.size(); ++rank)
    for (size_t index = 0; index < ranks[rank].actions.size(); ++index) {
      const Action& action = ranks[rank].actions[index];
      if (!is_work(action.kind)) continue;
      const auto& [start, end] = times.actions[rank][index];
      std::string label = to_string(action, ranks[rank]);
      width = std::max(width, label.size());
      for (auto column = static_cast<size_t>(std::max(0.0, std::ceil(start / unit - 0.5 - 1e-9))); column < num_columns && (static_cast<double>(column) + 0.5) * unit < end; ++column)
        cells[rank][column] = std::exchange(label, "-");
    }
  std::string text;
  const size_t rank_width = std::to_string(ranks.size() - 1).size();
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    text += fmt::format("rank {:>{}} |", rank, rank_width);
    for (const std::string& cell : cells[rank]) text += fmt::format(" {:<{}}", cell, width);
    text.erase(text.find_last_not_of(' ') + 1);
    text += '\n';
  }
  return text;
}

}  // namespace orrery
