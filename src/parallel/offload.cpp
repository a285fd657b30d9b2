#include "parallel/offload.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "base/error.h"
#include "ir/memory_map.h"
#include "parallel/lower_pipeline.h"

namespace orrery {

void offload_state(Schedule& schedule, const StateOffload& offload) {
  const auto found = std::find_if(schedule.actions.begin(), schedule.actions.end(), [](const Action& action) { return action.kind == ActionKind::kOptimizer; });
  ORRERY_CHECK(found != schedule.actions.end(), "a schedule without OPT");
  const auto position = static_cast<int32_t>(found - schedule.actions.begin());
  const auto num_pieces = static_cast<int32_t>(offload.pieces.size());
  const int32_t optimizer = position + 2 * num_pieces;
  std::vector<Action> copies;
  std::vector<Wait> arrivals;
  const auto fetch = [&](int32_t piece) {
    if (piece >= num_pieces) return;
    arrivals.push_back({.action = position + static_cast<int32_t>(copies.size()), .before_op = offload.pieces[static_cast<size_t>(piece)].first_op});
    Action action;
    action.kind = ActionKind::kFetch;
    action.unit = piece;
    copies.push_back(std::move(action));
  };
  for (int32_t piece = 0; piece < offload.slots.count; ++piece) fetch(piece);
  for (int32_t piece = 0; piece < num_pieces; ++piece) {
    Action action;
    action.kind = ActionKind::kOffload;
    action.unit = piece;
    action.waits = {{.action = optimizer, .after_op = offload.pieces[static_cast<size_t>(piece)].last_op}};
    copies.push_back(std::move(action));
    fetch(piece + offload.slots.count);
  }
  insert_actions(schedule, position, copies);
  std::vector<Wait>& waits = schedule.actions[static_cast<size_t>(optimizer)].waits;
  waits.insert(waits.end(), arrivals.begin(), arrivals.end());
}

namespace {

// Where the ops of a block touch a value; last -1: nowhere.
struct Touched {
  int32_t first = std::numeric_limits<int32_t>::max(), last = -1;
};

std::vector<Touched> touched_values(const Stage& stage, Phase phase, int32_t chunk) {
  std::vector<Touched> touched(stage.values.size());
  const std::vector<Op>& ops = stage.block(phase, chunk).ops;
  for (size_t i = 0; i < ops.size(); ++i)
    for (const std::vector<ValueId>* ids : {&ops[i].inputs, &ops[i].outputs})
      for (ValueId id : *ids) {
        Touched& value = touched[static_cast<size_t>(stage.storage(id))];
        value.first = std::min(value.first, static_cast<int32_t>(i));
        value.last = static_cast<int32_t>(i);
      }
  return touched;
}

// The layers of a chunk that both passes touch, in model order, with when they do; windows are not set yet.
std::vector<ActivationGroup> layers_of_chunk(const Stage& stage, int32_t chunk) {
  const bool halves = !stage.block(Phase::kBackwardInput, chunk).ops.empty();
  const std::vector<Touched> forward = touched_values(stage, Phase::kForward, chunk), backward = touched_values(stage, halves ? Phase::kBackwardInput : Phase::kBackward, chunk);
  const std::vector<Touched> weights = touched_values(stage, Phase::kBackwardWeight, chunk);
  std::set<ValueId> ends;
  for (const StageBoundary& boundary : stage.boundaries) ends.insert({boundary.input, boundary.output, boundary.input_gradient, boundary.output_gradient});
  std::map<int32_t, ActivationGroup> layers;
  for (size_t i = 0; i < stage.values.size(); ++i) {
    const Value& value = stage.values[i];
    const auto id = static_cast<ValueId>(i);
    if (value.kind != ValueKind::kActivation || value.chunk != chunk || value.layer < 0 || stage.storage(id) != id || ends.count(id) > 0) continue;
    if (forward[i].last < 0 || (backward[i].last < 0 && weights[i].last < 0)) continue;
    const auto [layer, fresh] = layers.try_emplace(value.layer);
    ActivationGroup& group = layer->second;
    if (fresh) group.chunk = chunk, group.needed_before = std::numeric_limits<int32_t>::max();
    group.values.push_back(id);
    group.offsets.push_back(group.bytes);
    group.bytes += align_up(value.bytes(), kArenaAlignment);
    group.leaves_after = std::max(group.leaves_after, forward[i].last);
    group.needed_before = std::min(group.needed_before, backward[i].first);
  }
  std::vector<ActivationGroup> groups;
  for (auto& [layer, group] : layers) groups.push_back(std::move(group));
  return groups;
}

// Copies run in list order, so those that begin in the middle of one action stand in the order in which they can: of two that the action waits for,
// the one that it waits for first must not be behind one that waits for a later op of it.
void order_copies(Schedule& schedule) {
  const auto num_actions = static_cast<int32_t>(schedule.actions.size());
  std::vector<int32_t> place(schedule.actions.size());
  std::iota(place.begin(), place.end(), 0);
  std::vector<int32_t> copies;
  int32_t compute = -1;
  const auto begins = [&](int32_t copy) {
    int32_t op = 0;
    for (const Wait& wait : schedule.actions[static_cast<size_t>(copy)].waits)
      if (wait.action == compute) op = std::max(op, wait.after_op == Wait::kWhole ? std::numeric_limits<int32_t>::max() : wait.after_op + 1);
    return op;
  };
  for (int32_t index = 0; index <= num_actions; ++index) {
    const Action* action = index < num_actions ? &schedule.actions[static_cast<size_t>(index)] : nullptr;
    if (action == nullptr || stream_of(action->kind) == Stream::kCompute) {
      std::vector<int32_t> order = copies;
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return begins(a) < begins(b); });
      for (size_t i = 0; i < order.size(); ++i) place[static_cast<size_t>(order[i])] = copies[i];
      copies.clear();
      compute = index;
    } else if (stream_of(action->kind) == Stream::kCopy && (action->micro_batch >= 0 || action->kind == ActionKind::kFetchParameters)) {
      copies.push_back(index);
    }
  }
  std::vector<Action> actions(schedule.actions.size());
  for (size_t i = 0; i < place.size(); ++i) actions[static_cast<size_t>(place[i])] = std::move(schedule.actions[i]);
  for (Action& action : actions)
    for (Wait& wait : action.waits) wait.action = place[static_cast<size_t>(wait.action)];
  schedule.actions = std::move(actions);
}

}  // namespace

std::vector<ActivationGroup> activation_groups(const Stage& stage, const Schedule& schedule, int64_t file_begin) {
  std::vector<ActivationGroup> groups;
  for (int32_t chunk = 0; chunk < stage.num_chunks(); ++chunk) {
    const auto num_ops = static_cast<int32_t>(stage.block(Phase::kForward, chunk).ops.size());
    std::vector<ActivationGroup> layers = layers_of_chunk(stage, chunk);
    for (size_t i = 0; i + 1 < layers.size(); ++i) {
      ActivationGroup& group = layers[i];
      const ActivationGroup& behind = layers[i + 1];
      group.gone_before = std::max(group.leaves_after, behind.leaves_after) + 1;
      group.comes_after = behind.needed_before - 1;
      const bool is_read = group.needed_before < std::numeric_limits<int32_t>::max();  // not by weight gradients alone
      if (!is_read || group.gone_before >= num_ops || group.comes_after < 0 || group.comes_after + 1 >= group.needed_before) continue;
      group.file_offset = file_begin;
      file_begin += group.bytes * schedule.num_slots[static_cast<size_t>(chunk)];
      groups.push_back(std::move(group));
    }
  }
  return groups;
}

void offload_activations(Schedule& schedule, const std::vector<ActivationGroup>& groups) {
  for (int32_t index = 0; index < static_cast<int32_t>(schedule.actions.size()); ++index) {
    const Action compute = schedule.actions[static_cast<size_t>(index)];
    const bool leaves = compute.kind == ActionKind::kForward;
    if (!leaves && compute.kind != ActionKind::kBackward && compute.kind != ActionKind::kBackwardInput) continue;
    std::vector<Action> copies;
    std::vector<Wait> ends;
    for (size_t i = 0; i < groups.size(); ++i) {
      // Backwards come to the last layer first.
      const size_t place = leaves ? i : groups.size() - 1 - i;
      const ActivationGroup& group = groups[place];
      if (group.chunk != compute.chunk) continue;
      Action copy;
      copy.kind = leaves ? ActionKind::kOffload : ActionKind::kFetch;
      copy.chunk = compute.chunk;
      copy.micro_batch = compute.micro_batch;
      copy.slot = compute.slot;
      copy.next_step = compute.next_step;
      copy.unit = static_cast<int32_t>(place);
      copy.waits = {{.action = index, .after_op = leaves ? group.leaves_after : group.comes_after}};
      copies.push_back(std::move(copy));
      ends.push_back({.action = index + static_cast<int32_t>(copies.size()), .before_op = leaves ? group.gone_before : group.needed_before});
    }
    insert_actions(schedule, index + 1, copies);
    std::vector<Wait>& waits = schedule.actions[static_cast<size_t>(index)].waits;
    waits.insert(waits.end(), ends.begin(), ends.end());
    index += static_cast<int32_t>(copies.size());
  }
  order_copies(schedule);
}

}  // namespace orrery
