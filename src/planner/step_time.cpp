#include "planner/step_time.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "ir/op_table.h"
#include "ir/schedule_graph.h"

namespace orrery {
namespace {

// Half width of the 90 % interval around a step whose ops were all timed here, and what each share of scaled ops adds to it
// (bench/results/2026-11-29-this-machine.md).
constexpr double kMeasuredWidth = 0.08, kScaledWidth = 0.15;

// What one rank's actions take when nothing else runs.
class RankCosts {
 public:
  RankCosts(const Plan& plan, const OpTimes& times, const TimingContext& context, const StepMachine& machine, StepPrediction& out)
      : plan_(plan), times_(times), machine_(machine), out_(out) {
    const int64_t tokens = plan.micro_batch_size * plan.options.local_tokens();
    const double mean_context = static_cast<double>(plan.options.sequence_tokens + 1) / 2;
    seconds_.resize(plan.stage.blocks.size());
    std::vector<bool> runs(seconds_.size());
    for (const Action& action : plan.schedule.actions)
      if (stream_of(action.kind) == Stream::kCompute) runs[Stage::block_index(*phase_of_action(action.kind), action.chunk)] = true;
    for (size_t block = 0; block < seconds_.size(); ++block) {
      if (!runs[block]) continue;
      for (const Op& op : plan.stage.blocks[block].ops) {
        const OpCost cost = op_cost(plan.stage, op, tokens, mean_context);
        bool exact = false;
        const std::string key = op_key(plan.stage, op, context);
        const auto seconds = times.seconds(key, cost.flops, cost.bytes_read + cost.bytes_written, exact);
        // A second rank's ops are the first one's, or all but: one rank is counted.
        if (out.ranks.empty()) {
          if (!seconds) out.missing.push_back(key);
          else ++(exact ? out.ops_measured : out.ops_scaled);
        }
        seconds_[block].push_back(seconds.value_or(0));
      }
    }
  }

  /// Ops [first, last) of a compute action; a micro-batch with fewer sequences takes its share.
  double compute(const Action& action, int32_t first, int32_t last) const {
    const std::vector<double>& ops = seconds_[Stage::block_index(*phase_of_action(action.kind), action.chunk)];
    double sum = 0;
    for (auto i = static_cast<size_t>(first); i < std::min(static_cast<size_t>(last), ops.size()); ++i) sum += ops[i];
    if (action.micro_batch < 0) return sum;
    const MicroBatch& batch = plan_.schedule.micro_batches[static_cast<size_t>(action.micro_batch)];
    return sum * static_cast<double>(batch.num_sequences) / static_cast<double>(plan_.micro_batch_size);
  }

  double communication(const Action& action) const {
    double seconds = 0;
    for (const CommCall& call : comm_calls(plan_, action)) {
      const std::string key = call_key(call, machine_);
      const auto found = times_.comm_seconds(key, call.bytes);
      if (!found && std::find(out_.missing.begin(), out_.missing.end(), key) == out_.missing.end()) out_.missing.push_back(key);
      seconds += found.value_or(0);
    }
    return seconds;
  }

 private:
  const Plan& plan_;
  const OpTimes& times_;
  const StepMachine& machine_;
  StepPrediction& out_;
  std::vector<std::vector<double>> seconds_;  // by block and op
};

/// Work on the way into a point of the graph: from the point before it, once everything else that leads to it is reached.
struct Segment {
  double seconds = 0;  // on `cores` cores of its own
  int cores = 0;
};

/// All segments whose turn it is advance at one time; where they want more cores than there are, all are slowed alike.
double run_segments(const ScheduleGraph& graph, const std::vector<Segment>& segments, double num_cores) {
  const auto num_points = static_cast<size_t>(graph.num_points());
  std::vector<int32_t> missing(num_points);
  std::vector<std::pair<int32_t, double>> active;  // point, seconds left
  std::vector<int32_t> reached;
  for (size_t point = 0; point < num_points; ++point) {
    missing[point] = static_cast<int32_t>(graph.previous(static_cast<int32_t>(point)).size());
    if (missing[point] == 0) reached.push_back(static_cast<int32_t>(point));
  }
  double now = 0;
  size_t done = 0;
  while (true) {
    while (!reached.empty()) {
      const int32_t point = reached.back();
      reached.pop_back();
      ++done;
      for (const int32_t later : graph.next(point)) {
        if (--missing[static_cast<size_t>(later)] > 0) continue;
        const Segment& segment = segments[static_cast<size_t>(later)];
        if (segment.seconds > 0) active.emplace_back(later, segment.seconds);
        else reached.push_back(later);
      }
    }
    if (active.empty()) break;
    int wanted = 0;
    double least = std::numeric_limits<double>::infinity();
    for (const auto& [point, left] : active) wanted += segments[static_cast<size_t>(point)].cores, least = std::min(least, left);
    const double slowdown = std::max(1.0, wanted / num_cores);
    now += least * slowdown;
    size_t kept = 0;
    for (auto& [point, left] : active) {
      if (left <= least * (1 + 1e-12)) reached.push_back(point);
      else active[kept++] = {point, left - least};
    }
    active.resize(kept);
  }
  ORRERY_CHECK(done == num_points, "{} of {} points reached", done, num_points);
  return now;
}

}  // namespace

std::vector<CommCall> comm_calls(const Plan& plan, const Action& action) {
  const DataParallel& data = plan.options.data;
  const auto world = static_cast<int>(plan.options.world_size()), shards = static_cast<int>(data.num_shards());
  const auto payload = static_cast<double>(payload_bytes(plan, action));
  const auto copied = static_cast<double>(copied_bytes(plan, action));
  switch (action.kind) {
    case ActionKind::kExchangeSums: return {{"xs", world, payload}};
    case ActionKind::kReduceScatterGradients: {
      const auto chunk = static_cast<size_t>(plan.units[static_cast<size_t>(action.unit)].chunk);
      return {{"rs", shards, payload * (action.round >= 0 ? 1 : static_cast<double>(plan.schedule.piece_buffers[chunk].size()))}};
    }
    case ActionKind::kAllReduceGradients: {
      const auto replicas = static_cast<int>(data.num_replicas());
      return {{"rs", replicas, payload * static_cast<double>(plan.schedule.rounds.back().after.size())}, {"ag", replicas, payload}};
    }
    case ActionKind::kAllGatherGradients: return {{"ag", shards, payload}};
    case ActionKind::kAllGatherParameters: {
      // What is kept elsewhere is read into its place first.
      if (plan.options.optimizer.offload_weights)
        return {{"read", 1, static_cast<double>(plan.units[static_cast<size_t>(action.unit)].shard_size(data.shard()) * dtype_bytes(plan.stage.compute_dtype))}, {"ag", shards, payload}};
      if (data.shards_weights()) return {{"ag", shards, payload}};
      const ParameterUnit& unit = plan.units[static_cast<size_t>(action.unit)];
      std::vector<CommCall> calls;  // one a parameter
      for (int32_t i = 0; i < unit.count; ++i)
        calls.push_back({"ag", shards, static_cast<double>(plan.stage.parameters[static_cast<size_t>(unit.first + i)].num_elements() * dtype_bytes(plan.stage.compute_dtype))});
      return calls;
    }
    case ActionKind::kOffload: return {{"write", 1, copied}};
    case ActionKind::kFetch:
    case ActionKind::kFetchParameters: return {{"read", 1, copied}};
    default: return is_send(action.kind) ? std::vector<CommCall>{{"message", 2, payload}} : std::vector<CommCall>();
  }
}

std::string call_key(const CommCall& call, const StepMachine& machine) {
  const bool copies = call.operation == "read" || call.operation == "write";
  return comm_key(call.operation, call.group_size, copies ? machine.offload_place : machine.transport);
}

std::vector<CommCall> unmeasured_calls(const std::vector<Plan>& plans, const OpTimes& times, const StepMachine& machine) {
  std::vector<CommCall> calls;
  for (const Plan& plan : plans)
    for (const Action& action : plan.schedule.actions) {
      if (stream_of(action.kind) == Stream::kCompute) continue;
      for (const CommCall& call : comm_calls(plan, action)) {
        const bool listed = std::any_of(calls.begin(), calls.end(), [&](const CommCall& other) { return other.operation == call.operation && other.group_size == call.group_size; });
        if (!listed && !times.has_comm(call_key(call, machine))) calls.push_back({call.operation, call.group_size, 0});
      }
    }
  return calls;
}

TimingContext timing_context(const Plan& plan, const StepMachine& machine, int num_ranks) {
  TimingContext context;
  context.device = machine.device;
  context.num_threads = machine.threads_per_rank;
  context.busy_ranks = std::clamp(machine.num_cores / machine.threads_per_rank, 1, num_ranks);
  context.sequence_tokens = plan.options.sequence_tokens;
  const int64_t lanes = (plan.options.lanes + plan.options.data.size - 1) / plan.options.data.size;
  const auto micro_batches = static_cast<int64_t>(plan.schedule.micro_batches.size());
  context.fold = fmt::format("{} lanes in {}", lanes, std::min<int64_t>(micro_batches, 4));
  return context;
}

std::vector<std::string> unmeasured_ops(const Plan& plan, const OpTimes& times, const TimingContext& context) {
  std::vector<std::string> keys;
  for (int32_t chunk = 0; chunk < plan.stage.num_chunks(); ++chunk)
    for (const Phase phase : {Phase::kForward, Phase::kBackward, Phase::kBackwardInput, Phase::kBackwardWeight})
      for (const Op& op : plan.stage.block(phase, chunk).ops)
        if (std::string key = op_key(plan.stage, op, context); !times.has(key)) keys.push_back(std::move(key));
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  return keys;
}

StepPrediction predict_step_time(const std::vector<Plan>& plans, const OpTimes& times, const StepMachine& machine) {
  StepPrediction out;
  const auto num_ranks = static_cast<int>(plans.size());
  // The parts of a layer do the same at the same time, on as many more cores.
  const std::span<const Plan> slice(plans.data(), static_cast<size_t>(plans.front().options.slice_size()));
  const double slice_cores = static_cast<double>(machine.num_cores) / static_cast<double>(plans.front().options.parallel.num_parts());
  std::vector<Schedule> schedules;
  for (const Plan& plan : slice) schedules.push_back(plan.schedule);
  const ScheduleContext context = schedule_context(slice);
  const ScheduleGraph graph(schedules, context);
  ORRERY_CHECK(graph.problems().empty(), "{}", graph.problems().front());
  std::vector<Segment> segments(static_cast<size_t>(graph.num_points()));
  for (int32_t rank = 0; rank < static_cast<int32_t>(slice.size()); ++rank) {
    const Plan& plan = slice[static_cast<size_t>(rank)];
    const RankCosts costs(plan, times, timing_context(plan, machine, num_ranks), machine, out);
    PhaseSeconds phases;
    std::vector<double>& actions = out.actions.emplace_back();
    for (int32_t index = 0; index < static_cast<int32_t>(plan.schedule.actions.size()); ++index) {
      const Action& action = plan.schedule.actions[static_cast<size_t>(index)];
      const ActionRef ref{rank, index};
      if (stream_of(action.kind) != Stream::kCompute) {
        const double seconds = costs.communication(action);
        segments[static_cast<size_t>(graph.end(ref))] = {seconds, 1};
        if (stream_of(action.kind) != Stream::kCopy) phases.communication += seconds;
        actions.push_back(seconds);
        continue;
      }
      // Points: start, then for each cut "the ops before are done" and "the ops behind may start", then the end.
      int32_t first = 0, point = graph.start(ref) + 1;
      for (const int32_t cut : graph.cuts(ref)) {
        segments[static_cast<size_t>(point)] = {costs.compute(action, first, cut), machine.threads_per_rank};
        first = cut, point += 2;
      }
      segments[static_cast<size_t>(graph.end(ref))] = {costs.compute(action, first, std::numeric_limits<int32_t>::max()), machine.threads_per_rank};
      const double seconds = costs.compute(action, 0, std::numeric_limits<int32_t>::max());
      actions.push_back(seconds);
      const bool backward = action.kind == ActionKind::kBackward || action.kind == ActionKind::kBackwardInput || action.kind == ActionKind::kBackwardWeight;
      (action.kind == ActionKind::kForward ? phases.forward : backward ? phases.backward : phases.update) += seconds;
    }
    out.ranks.push_back(phases);
  }
  out.seconds = run_segments(graph, segments, slice_cores);
  const double scaled = static_cast<double>(out.ops_scaled) / static_cast<double>(std::max<int64_t>(1, out.ops_measured + out.ops_scaled));
  const double width = kMeasuredWidth + kScaledWidth * scaled;
  out.low = out.seconds * (1 - width), out.high = out.seconds * (1 + width);
  return out;
}

std::string prediction_to_text(const StepPrediction& p) {
  if (!p.missing.empty()) return fmt::format("time      not known: {} ops of this plan were never timed here\n", p.missing.size());
  const PhaseSeconds& phases = p.ranks.front();
  std::string text = fmt::format("time      {:.4g} s a step ({:.3g} to {:.3g}, 90 %): forward {:.3g}, backward {:.3g}, update {:.3g}", p.seconds, p.low, p.high, phases.forward,
                                 phases.backward, phases.update);
  if (phases.communication > 0) text += fmt::format(", communication {:.3g}", phases.communication);
  if (p.ops_scaled > 0) text += fmt::format("; {} of {} ops scaled from other sizes", p.ops_scaled, p.ops_scaled + p.ops_measured);
  return text + "\n";
}

}  // namespace orrery
