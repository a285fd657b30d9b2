#include "parallel/data.h"

#include <algorithm>

#include "base/error.h"
#include "ir/memory_map.h"
#include "parallel/lower_pipeline.h"

namespace orrery {
namespace {

constexpr int64_t kNormBlock = 4096;  // NUMERICS rule 8

// The layer whose ops first read each parameter; -1 before and after the layers.
std::vector<int32_t> layers_of_parameters(const Stage& stage) {
  std::vector<int32_t> layers(stage.parameters.size(), -1);
  for (const Value& value : stage.values)
    if (value.kind == ValueKind::kParameter && value.sub == 0 && value.name == stage.parameters[static_cast<size_t>(value.index)].name)
      layers[static_cast<size_t>(value.index)] = value.layer;
  return layers;
}

// The block in which a parameter's gradient is written: the unit of what it is in one action. Without halves the backward stands for both.
Phase written_in(const Stage& stage, int32_t parameter, int32_t accumulator, int32_t chunk) {
  for (Phase phase : {Phase::kForward, Phase::kBackwardInput, Phase::kBackwardWeight})
    for (const Op& op : stage.block(phase, chunk).ops)
      for (ValueId id : op.outputs)
        if (const Value& value = stage.value(id); value.kind == ValueKind::kGradient && value.index == parameter && value.sub == accumulator) return phase;
  return Phase::kBackward;
}

// Where a unit may be cut: the first elements of its norm blocks.
std::vector<int64_t> block_starts(const Stage& stage, const GradientLayout& layout, const ParameterUnit& unit) {
  std::vector<int64_t> starts;
  for (int32_t parameter = unit.first; parameter < unit.first + unit.count; ++parameter) {
    const ParameterSpec& spec = stage.parameters[static_cast<size_t>(parameter)];
    for (const ParameterSegment& segment : spec.segments) {
      const int64_t first = layout.offset[static_cast<size_t>(parameter)][static_cast<size_t>(unit.accumulator)] + segment.row_begin * spec.columns();
      for (int64_t at = 0; at < segment.num_rows * spec.columns(); at += kNormBlock) starts.push_back(first + at);
    }
  }
  return starts;
}

std::vector<int64_t> cut_unit(const Stage& stage, const GradientLayout& layout, const ParameterUnit& unit, int64_t num_shards) {
  const std::vector<int64_t> starts = block_starts(stage, layout, unit);
  const auto accumulator = static_cast<size_t>(unit.accumulator);
  const int64_t begin = layout.offset[static_cast<size_t>(unit.first)][accumulator];
  const auto last = static_cast<size_t>(unit.first + unit.count - 1);
  const int64_t end = layout.offset[last][accumulator] + stage.parameters[last].num_elements();
  std::vector<int64_t> cuts = {begin};
  for (int64_t shard = 1; shard < num_shards; ++shard) {
    const int64_t ideal = begin + (end - begin) * shard / num_shards;
    const auto above = std::lower_bound(starts.begin(), starts.end(), ideal);
    int64_t cut = above == starts.end() ? end : *above;
    if (above != starts.begin() && ideal - *std::prev(above) < cut - ideal) cut = *std::prev(above);
    cuts.push_back(std::max(cut, cuts.back()));
  }
  cuts.push_back(end);
  return cuts;
}

// The last op of a block that writes a gradient of the unit; -1 for none.
int32_t last_writer(const Stage& stage, Phase phase, const ParameterUnit& unit) {
  const std::vector<Op>& ops = stage.block(phase, unit.chunk).ops;
  for (auto i = static_cast<int32_t>(ops.size()) - 1; i >= 0; --i)
    for (ValueId id : ops[static_cast<size_t>(i)].outputs) {
      const Value& value = stage.value(id);
      if (value.kind == ValueKind::kGradient && value.sub == unit.accumulator && value.index >= unit.first && value.index < unit.first + unit.count) return i;
    }
  return -1;
}

// What completes the sums of a unit: the reduction of the last round, or the last op that adds to them, in the last action that has one. A merge
// of buffers completes all.
Wait completion(const Schedule& schedule, const Stage& stage, const ParameterUnit& unit, int32_t unit_index) {
  if (!schedule.rounds.empty())
    for (auto i = static_cast<int32_t>(schedule.actions.size()) - 1; i >= 0; --i)
      if (const Action& action = schedule.actions[static_cast<size_t>(i)]; action.kind == ActionKind::kReduceScatterGradients && action.unit == unit_index) return {i};
  for (auto i = static_cast<int32_t>(schedule.actions.size()) - 1; i >= 0; --i) {
    const Action& action = schedule.actions[static_cast<size_t>(i)];
    const auto phase = phase_of_action(action.kind);
    if (!phase || action.chunk != unit.chunk || action.next_step) continue;
    if (action.kind == ActionKind::kMerge) return {i};
    if (const int32_t op = last_writer(stage, *phase, unit); op >= 0) return {i, op};
  }
  ORRERY_CHECK(false, "no action writes the gradients of {}", stage.parameters[static_cast<size_t>(unit.first)].name);
}

}  // namespace

std::vector<ParameterUnit> parameter_units(const Stage& stage, int64_t num_shards, bool by_phase) {
  const GradientLayout layout = gradient_layout(stage);
  const std::vector<int32_t> layers = layers_of_parameters(stage);
  const auto num_parameters = static_cast<int32_t>(layers.size());
  const auto is_tied = [&](int32_t parameter) { return stage.parameters[static_cast<size_t>(parameter)].num_accumulators > 1; };
  std::vector<ParameterUnit> units;
  for (int32_t parameter = 0; parameter < num_parameters; ++parameter) {
    const auto index = static_cast<size_t>(parameter);
    if (layout.offset[index][0] < 0) continue;
    // What tensor ranks have whole must be cut alike on all of them, so it stands apart from parts that may be ragged.
    const bool ragged = layers[index] < 0 && (is_part(stage.parameters[index]) || (parameter > 0 && is_part(stage.parameters[index - 1])));
    const bool joins = !ragged && !units.empty() && units.back().first + units.back().count == parameter && units.back().chunk == layout.chunk[index][0] && !is_tied(parameter) &&
                       !is_tied(parameter - 1) && layers[index] == layers[index - 1] &&
                       (!by_phase || written_in(stage, parameter, 0, layout.chunk[index][0]) == written_in(stage, parameter - 1, 0, layout.chunk[index][0]));
    if (!joins) units.push_back({parameter, 0, 0, layout.chunk[index][0], {}, {}});
    ++units.back().count;
    units.back().starts.push_back(layout.offset[index][0]);
  }
  std::reverse(units.begin(), units.end());
  for (int32_t parameter = 0; parameter < num_parameters; ++parameter) {
    const auto index = static_cast<size_t>(parameter);
    const bool summed_here = layout.offset[index][1] >= 0 && layout.offset[index][1] < layout.chunks[static_cast<size_t>(layout.chunk[index][1])].num_summed;
    if (summed_here) units.push_back({parameter, 1, 1, layout.chunk[index][1], {layout.offset[index][1]}, {}});
  }
  for (ParameterUnit& unit : units) unit.cuts = cut_unit(stage, layout, unit, num_shards);
  return units;
}

std::vector<OwnedElements> owned_elements(const Stage& stage, const std::vector<ParameterUnit>& units, int64_t shard) {
  std::vector<OwnedElements> owned(stage.parameters.size());
  for (const ParameterUnit& unit : units) {
    if (unit.accumulator != 0) continue;
    const int64_t begin = unit.cuts[static_cast<size_t>(shard)], end = unit.cuts[static_cast<size_t>(shard) + 1];
    for (size_t i = 0; i < unit.starts.size(); ++i) {
      const auto parameter = static_cast<size_t>(unit.first) + i;
      const int64_t offset = unit.starts[i], count = stage.parameters[parameter].num_elements();
      OwnedElements& range = owned[parameter];
      range = {std::clamp<int64_t>(begin - offset, 0, count), std::clamp<int64_t>(end - offset, 0, count)};
    }
  }
  return owned;
}

void append_update(Schedule& schedule, const Stage& stage, const std::vector<ParameterUnit>& units, const UpdateOptions& options) {
  const auto append = [&](ActionKind kind, int32_t unit, std::vector<Wait> waits) {
    Action action;
    action.kind = kind;
    action.unit = unit;
    if (unit >= 0) action.chunk = units[static_cast<size_t>(unit)].chunk;
    if (stream_of(kind) == Stream::kPoint) action.peer = options.shared->peer;
    action.waits = std::move(waits);
    schedule.actions.push_back(std::move(action));
    return static_cast<int32_t>(schedule.actions.size()) - 1;
  };
  const DataParallel& data = options.data;
  const bool reduces = data.size > 1;
  int32_t last_compute = static_cast<int32_t>(schedule.actions.size()) - 1;
  const auto is_work = [](const Action& action) { return stream_of(action.kind) == Stream::kCompute && action.micro_batch >= 0; };
  while (schedule.carries && !is_work(schedule.actions[static_cast<size_t>(last_compute)])) --last_compute;
  const auto num_units = static_cast<int32_t>(units.size());
  int32_t shared_unit = -1;  // of the matrix that another rank has too
  if (options.shared)
    for (int32_t unit = 0; unit < num_units; ++unit)
      if (units[static_cast<size_t>(unit)].first == options.shared->parameter && units[static_cast<size_t>(unit)].accumulator == (options.shared->updated_here ? 0 : 1)) shared_unit = unit;
  ORRERY_CHECK(!options.shared || shared_unit >= 0, "the shared matrix has no unit");

  std::vector<Wait> ready;  // by unit
  for (int32_t unit = 0; unit < num_units; ++unit) ready.push_back(completion(schedule, stage, units[static_cast<size_t>(unit)], unit));
  std::vector<Wait> summed;
  if (reduces)
    for (int32_t unit = 0; unit < num_units; ++unit) {
      Wait& sum = ready[static_cast<size_t>(unit)];
      if (!data.shards_gradients()) sum = {append(ActionKind::kReduceScatterGradients, unit, {sum})};
      if (data.num_replicas() > 1) sum = {append(ActionKind::kAllReduceGradients, unit, {sum})};
      summed.push_back(sum);
    }
  if (options.shared && options.shared->updated_here) summed.push_back({append(ActionKind::kRecvSum, shared_unit, {})});
  if (options.shared && !options.shared->updated_here) append(ActionKind::kSendSum, shared_unit, {ready[static_cast<size_t>(shared_unit)]});
  const int32_t norm = append(ActionKind::kNorm, -1, summed);
  std::vector<Wait> gathered;
  if (options.exchanges) gathered.push_back({append(ActionKind::kExchangeSums, -1, {{norm}})});
  if (reduces && data.zero_stage == 0)
    for (int32_t unit = 0; unit < num_units; ++unit)
      if (units[static_cast<size_t>(unit)].accumulator == 0) gathered.push_back({append(ActionKind::kAllGatherGradients, unit, {{norm}})});
  const int32_t update = append(ActionKind::kOptimizer, -1, gathered);
  Wait shared_weight{update};
  if (reduces && data.zero_stage >= 1 && !data.shards_weights())
    for (int32_t unit = 0; unit < num_units; ++unit) {
      if (units[static_cast<size_t>(unit)].accumulator != 0) continue;
      const int32_t gather = append(ActionKind::kAllGatherParameters, unit, {{update}});
      if (unit == shared_unit) shared_weight = {gather};
    }
  if (options.shared) append(options.shared->updated_here ? ActionKind::kSendWeight : ActionKind::kRecvWeight, shared_unit, {shared_weight});
  if (schedule.carries) move_action(schedule, norm, last_compute);
}

}  // namespace orrery
