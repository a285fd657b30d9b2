#include "parallel/data.h"

#include <algorithm>

#include "base/error.h"
#include "ir/memory_map.h"

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

std::vector<int64_t> cut_unit(const Stage& stage, const GradientLayout& layout, const ParameterUnit& unit, int64_t num_ranks) {
  const std::vector<int64_t> starts = block_starts(stage, layout, unit);
  const auto accumulator = static_cast<size_t>(unit.accumulator);
  const int64_t begin = layout.offset[static_cast<size_t>(unit.first)][accumulator];
  const auto last = static_cast<size_t>(unit.first + unit.count - 1);
  const int64_t end = layout.offset[last][accumulator] + stage.parameters[last].num_elements();
  std::vector<int64_t> cuts = {begin};
  for (int64_t rank = 1; rank < num_ranks; ++rank) {
    const int64_t ideal = begin + (end - begin) * rank / num_ranks;
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
  const std::vector<Op>& ops = stage.block(phase).ops;
  for (auto i = static_cast<int32_t>(ops.size()) - 1; i >= 0; --i)
    for (ValueId id : ops[static_cast<size_t>(i)].outputs) {
      const Value& value = stage.value(id);
      if (value.kind == ValueKind::kGradient && value.sub == unit.accumulator && value.index >= unit.first && value.index < unit.first + unit.count) return i;
    }
  return -1;
}

int32_t find_last(const Schedule& schedule, ActionKind kind) {
  for (auto i = static_cast<int32_t>(schedule.actions.size()) - 1; i >= 0; --i)
    if (schedule.actions[static_cast<size_t>(i)].kind == kind) return i;
  return -1;
}

}  // namespace

std::vector<ParameterUnit> parameter_units(const Stage& stage, int64_t num_ranks) {
  const GradientLayout layout = gradient_layout(stage);
  const std::vector<int32_t> layers = layers_of_parameters(stage);
  std::vector<ParameterUnit> units;
  for (int32_t parameter = 0; parameter < static_cast<int32_t>(layers.size()); ++parameter) {
    const bool joins = !units.empty() && layers[static_cast<size_t>(parameter)] == layers[static_cast<size_t>(parameter - 1)];
    if (!joins) units.push_back({parameter, 0, 0, {}});
    ++units.back().count;
  }
  std::reverse(units.begin(), units.end());
  for (int32_t parameter = 0; parameter < static_cast<int32_t>(layers.size()); ++parameter)
    for (int32_t accumulator = 1; accumulator < stage.parameters[static_cast<size_t>(parameter)].num_accumulators; ++accumulator)
      units.push_back({parameter, 1, accumulator, {}});
  for (ParameterUnit& unit : units) unit.cuts = cut_unit(stage, layout, unit, num_ranks);
  // The second use of a tied matrix meets the first where that is owned, so both are cut alike.
  for (ParameterUnit& second : units) {
    if (second.accumulator == 0) continue;
    const auto parameter = static_cast<size_t>(second.first);
    const int64_t from = layout.offset[parameter][0], to = layout.offset[parameter][static_cast<size_t>(second.accumulator)];
    const int64_t count = stage.parameters[parameter].num_elements();
    for (const ParameterUnit& first : units) {
      if (first.accumulator != 0 || second.first < first.first || second.first >= first.first + first.count) continue;
      for (size_t i = 0; i < second.cuts.size(); ++i) second.cuts[i] = to + std::clamp<int64_t>(first.cuts[i] - from, 0, count);
    }
  }
  return units;
}

std::vector<OwnedElements> owned_elements(const Stage& stage, const std::vector<ParameterUnit>& units, int64_t rank) {
  const GradientLayout layout = gradient_layout(stage);
  std::vector<OwnedElements> owned(stage.parameters.size());
  for (const ParameterUnit& unit : units) {
    if (unit.accumulator != 0) continue;
    const int64_t begin = unit.cuts[static_cast<size_t>(rank)], end = unit.cuts[static_cast<size_t>(rank) + 1];
    for (int32_t parameter = unit.first; parameter < unit.first + unit.count; ++parameter) {
      const int64_t offset = layout.offset[static_cast<size_t>(parameter)][0], count = stage.parameters[static_cast<size_t>(parameter)].num_elements();
      OwnedElements& range = owned[static_cast<size_t>(parameter)];
      range = {std::clamp<int64_t>(begin - offset, 0, count), std::clamp<int64_t>(end - offset, 0, count)};
    }
  }
  return owned;
}

void append_update(Schedule& schedule, const Stage& stage, const std::vector<ParameterUnit>& units, const DataParallel& data) {
  const auto append = [&](ActionKind kind, int32_t unit, std::vector<Wait> waits) {
    Action action;
    action.kind = kind;
    action.unit = unit;
    action.gradient_buffer = schedule.piece_buffers.front();
    action.waits = std::move(waits);
    schedule.actions.push_back(std::move(action));
    return static_cast<int32_t>(schedule.actions.size()) - 1;
  };
  if (data.size == 1) {
    append(ActionKind::kNorm, -1, {});
    append(ActionKind::kOptimizer, -1, {});
    return;
  }
  const auto num_units = static_cast<int32_t>(units.size());
  const int32_t last_compute = static_cast<int32_t>(schedule.actions.size()) - 1;
  const int32_t last_forward = find_last(schedule, ActionKind::kForward), last_backward = find_last(schedule, ActionKind::kBackward);
  std::vector<Wait> reduced, gathered;
  for (int32_t unit = 0; unit < num_units; ++unit) {
    // A merge of buffers after the last backward completes all sums at one time; without one a unit is complete with its last op.
    Wait ready{last_compute};
    if (last_compute == last_backward) {
      const int32_t op = last_writer(stage, Phase::kBackward, units[static_cast<size_t>(unit)]);
      ready = op >= 0 ? Wait{last_backward, op} : Wait{last_forward, last_writer(stage, Phase::kForward, units[static_cast<size_t>(unit)])};
    }
    reduced.push_back({append(ActionKind::kReduceScatterGradients, unit, {ready})});
  }
  const int32_t norm = append(ActionKind::kNorm, -1, reduced);
  gathered.push_back({append(ActionKind::kExchangeSums, -1, {{norm}})});
  if (data.zero_stage == 0)
    for (int32_t unit = 0; unit < num_units; ++unit)
      if (units[static_cast<size_t>(unit)].accumulator == 0) gathered.push_back({append(ActionKind::kAllGatherGradients, unit, {{norm}})});
  const int32_t update = append(ActionKind::kOptimizer, -1, gathered);
  if (data.zero_stage >= 1)
    for (int32_t unit = 0; unit < num_units; ++unit)
      if (units[static_cast<size_t>(unit)].accumulator == 0) append(ActionKind::kAllGatherParameters, unit, {{update}});
}

}  // namespace orrery
