// Where a step's time went: by op, by phase, by action.
#include <algorithm>
#include <map>

#include "ir/op_table.h"
#include "train/engine.h"

namespace orrery {

void TrainingEngine::reset_op_table() {
  executor_.reset_op_times();
  num_steps_timed_ = 0;
  step_seconds_ = 0;
  std::fill(action_seconds_.begin(), action_seconds_.end(), 0.0);
}

PhaseSeconds TrainingEngine::phase_seconds() const {
  const auto sum = [this](Phase phase) {
    double seconds = 0;
    for (const OpTime& time : executor_.op_times(phase)) seconds += time.seconds;
    return seconds / static_cast<double>(std::max<int64_t>(1, num_steps_timed_));
  };
  PhaseSeconds phases;
  phases.forward = sum(Phase::kForward), phases.backward = sum(Phase::kBackward);
  phases.update = sum(Phase::kMerge) + sum(Phase::kNorm) + sum(Phase::kOptimizer);
  const std::vector<double> actions = action_seconds();
  for (size_t i = 0; i < actions.size(); ++i)
    if (const Stream stream = stream_of(plan_.schedule.actions[i].kind); stream == Stream::kPoint || stream == Stream::kCollective) phases.communication += actions[i];
  return phases;
}

std::vector<double> TrainingEngine::action_seconds() const {
  std::vector<double> seconds = action_seconds_;
  for (double& value : seconds) value /= static_cast<double>(std::max<int64_t>(1, num_steps_timed_));
  return seconds;
}

std::string TrainingEngine::op_table() const {
  struct Row {
    double seconds = 0, flops = 0, bytes = 0;
    int64_t calls = 0;
  };
  std::map<std::string, Row> rows;
  double total = 0;
  const double mean_context = static_cast<double>(plan_.options.sequence_tokens + 1) / 2;
  for (size_t block = 0; block < plan_.stage.blocks.size(); ++block) {
    if (Stage::phase_of(block) == Phase::kEval) continue;
    const auto& ops = plan_.stage.blocks[block].ops;
    const auto& times = executor_.op_times(Stage::phase_of(block), static_cast<int32_t>(block / kNumPhases));
    for (size_t i = 0; i < ops.size(); ++i) {
      if (times[i].calls == 0) continue;
      Row& row = rows[fmt::format("{}{}", op_name(ops[i].kind), ops[i].recomputed ? " (again)" : "")];
      // A call sees one micro-batch of at most the bound; short ones are rare and counted as full.
      const OpCost cost = op_cost(plan_.stage, ops[i], plan_.micro_batch_size * plan_.options.local_tokens(), mean_context);
      row.seconds += times[i].seconds;
      row.flops += cost.flops * static_cast<double>(times[i].calls);
      row.bytes += (cost.bytes_read + cost.bytes_written) * static_cast<double>(times[i].calls);
      row.calls += times[i].calls;
      total += times[i].seconds;
    }
  }
  std::vector<std::pair<std::string, Row>> sorted(rows.begin(), rows.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  const double steps = static_cast<double>(std::max<int64_t>(1, num_steps_timed_));
  std::string text = fmt::format("{:<32}{:>8}{:>11}{:>8}{:>10}{:>9}\n", "op", "calls", "ms a step", "share", "TFLOP/s", "GB/s");
  for (const auto& [name, row] : sorted)
    text += fmt::format("{:<32}{:>8.0f}{:>11.2f}{:>7.1f}%{:>10}{:>9.1f}\n", name, static_cast<double>(row.calls) / steps, 1e3 * row.seconds / steps, 100 * row.seconds / total,
                        row.flops > 0 ? fmt::format("{:.2f}", row.flops / row.seconds / 1e12) : "", row.bytes / row.seconds / 1e9);
  text += fmt::format("{:<32}{:>8}{:>11.2f}\n", "all ops", "", 1e3 * total / steps);
  return text;
}

}  // namespace orrery
