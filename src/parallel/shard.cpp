#include "parallel/shard.h"

#include <algorithm>
#include <array>
#include <map>
#include <tuple>

#include "base/error.h"
#include "ir/memory_map.h"

namespace orrery {
namespace {

// Layers of a unit's parameters: those whose ops read them; -1 before and behind the layers.
std::vector<int32_t> unit_layers(const Stage& stage, const std::vector<ParameterUnit>& units) {
  std::vector<int32_t> layers(units.size(), -1);
  for (const Value& value : stage.values)
    if (value.kind == ValueKind::kParameter && value.sub == 0 && value.buffer_role == 0 && value.layer >= 0)
      for (size_t i = 0; i < units.size(); ++i)
        if (value.index >= units[i].first && value.index < units[i].first + units[i].count) layers[i] = value.layer;
  return layers;
}

bool is_embedded(const Stage& stage, const ParameterUnit& unit) {
  for (int32_t chunk = 0; chunk < stage.num_chunks(); ++chunk)
    for (const Op& op : stage.block(Phase::kForward, chunk).ops)
      if (op.kind == OpKind::kEmbedding)
        for (ValueId id : op.inputs)
          if (const Value& value = stage.value(id); value.kind == ValueKind::kParameter && value.index >= unit.first && value.index < unit.first + unit.count) return true;
  return false;
}

// Numbers slots in the order in which they are asked for.
class SlotNumbers {
 public:
  /// (0, the unit's number in its layer, whose turn) of layers, (1, number, 0) of what is outside.
  int32_t operator()(int64_t outside, int64_t number, int64_t turn) {
    return slots_.try_emplace({outside, number, turn}, static_cast<int32_t>(slots_.size())).first->second;
  }

 private:
  std::map<std::tuple<int64_t, int64_t, int64_t>, int32_t> slots_;
};

constexpr int64_t kGradientTurns = 2;

// The points in compute at which a collective may begin: `done` ops of an action in the list.
struct Trigger {
  int32_t action = -1, done = 0;
  auto operator<=>(const Trigger&) const = default;
};

struct Collective {
  Action action;  // its waits name actions of the schedule as it was
  Trigger trigger;
  int32_t place = -1;  // in the new list
};

class Sharding {
 public:
  Sharding(Schedule& schedule, const UnitUses& uses, int prefetch, ActionKind gather) : schedule_(schedule), uses_(uses), gather_(gather), ahead_(static_cast<size_t>(std::max(1, prefetch))), waits_(schedule.actions.size()) {}

  void run() {
    for (int32_t i = 0; i < static_cast<int32_t>(schedule_.actions.size()); ++i) {
      const Action& action = schedule_.actions[static_cast<size_t>(i)];
      const auto phase = phase_of_action(action.kind);
      if (!phase || action.micro_batch < 0) continue;
      const bool ends = ends_round(action.micro_batch);
      const int32_t round = schedule_.micro_batches[static_cast<size_t>(action.micro_batch)].round;
      for (const UnitUse& use : uses_.blocks[Stage::block_index(*phase, action.chunk)]) {
        use.writes ? write(i, use) : read(i, use);
        if (use.writes && ends) reduce(i, use, round);
      }
    }
    put_into_list();
  }

 private:
  struct Weights {
    int32_t unit = -1;
    Trigger read{};  // the last op that did, or is about to
  };
  struct Gradients {
    int32_t unit = -1;
    int32_t reduction = -1;  // of what is in the slot, once it has been asked for
  };
  // Of an action of the schedule: that op waits for this collective.
  struct CollectiveWait {
    int32_t collective = 0, before_op = 0;
  };

  bool ends_round(int32_t micro_batch) const {
    const auto next = static_cast<size_t>(micro_batch) + 1;
    return next == schedule_.micro_batches.size() || schedule_.micro_batches[next].round != schedule_.micro_batches[next - 1].round;
  }

  void read(int32_t action, const UnitUse& use) {
    Weights& slot = weights_[uses_.weight_slot[static_cast<size_t>(use.unit)]];
    if (slot.unit != use.unit) {
      Collective gather;
      gather.action.kind = gather_;
      gather.action.chunk = schedule_.actions[static_cast<size_t>(action)].chunk;
      gather.action.unit = use.unit;
      if (slot.unit >= 0) {
        gather.action.waits = {{.action = slot.read.action, .after_op = slot.read.done - 1}};
        gather.trigger = slot.read;
      }
      // Not before compute has come to what was gathered before: in this order they are needed.
      if (needed_.size() >= ahead_) gather.trigger = std::max(gather.trigger, needed_[needed_.size() - ahead_]);
      needed_.push_back({action, use.first_op});
      slot.unit = use.unit;
      waits_[static_cast<size_t>(action)].push_back({add(std::move(gather)), use.first_op});
    }
    slot.read = {action, use.last_op + 1};
  }

  void write(int32_t action, const UnitUse& use) {
    Gradients& slot = gradients_[uses_.gradient_slot[static_cast<size_t>(use.unit)]];
    if (slot.reduction >= 0) waits_[static_cast<size_t>(action)].push_back({slot.reduction, use.first_op});
    ORRERY_CHECK(slot.unit < 0 || slot.reduction >= 0 || slot.unit == use.unit, "units {} and {} share a slot that is not reduced between them", slot.unit, use.unit);
    slot = {use.unit, -1};
  }

  void reduce(int32_t action, const UnitUse& use, int32_t round) {
    Collective reduction;
    reduction.action.kind = ActionKind::kReduceScatterGradients;
    reduction.action.chunk = schedule_.actions[static_cast<size_t>(action)].chunk;
    reduction.action.unit = use.unit;
    reduction.action.round = round;
    reduction.action.waits = {{.action = action, .after_op = use.last_op}};
    reduction.trigger = {action, use.last_op + 1};
    gradients_[uses_.gradient_slot[static_cast<size_t>(use.unit)]].reduction = add(std::move(reduction));
  }

  int32_t add(Collective collective) {
    collectives_.push_back(std::move(collective));
    return static_cast<int32_t>(collectives_.size()) - 1;
  }

  // Each collective behind the action in which it can begin, gathers before reductions, because compute waits for them sooner.
  void put_into_list() {
    std::vector<int32_t> order(collectives_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    const auto key = [&](int32_t i) {
      const Collective& collective = collectives_[static_cast<size_t>(i)];
      return std::pair(collective.trigger, collective.action.kind == ActionKind::kReduceScatterGradients);
    };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
    std::vector<Action> actions;
    std::vector<int32_t> place(schedule_.actions.size());
    size_t next = 0;
    for (int32_t i = -1; i < static_cast<int32_t>(schedule_.actions.size()); ++i) {
      if (i >= 0) {
        place[static_cast<size_t>(i)] = static_cast<int32_t>(actions.size());
        actions.push_back(std::move(schedule_.actions[static_cast<size_t>(i)]));
      }
      for (; next < order.size() && collectives_[static_cast<size_t>(order[next])].trigger.action == i; ++next) {
        Collective& collective = collectives_[static_cast<size_t>(order[next])];
        collective.place = static_cast<int32_t>(actions.size());
        actions.push_back(std::move(collective.action));
      }
    }
    for (Action& action : actions)
      for (Wait& wait : action.waits) wait.action = place[static_cast<size_t>(wait.action)];
    for (size_t i = 0; i < waits_.size(); ++i)
      for (const CollectiveWait& wait : waits_[i])
        actions[static_cast<size_t>(place[i])].waits.push_back({.action = collectives_[static_cast<size_t>(wait.collective)].place, .before_op = wait.before_op});
    schedule_.actions = std::move(actions);
  }

  Schedule& schedule_;
  const UnitUses& uses_;
  const ActionKind gather_;
  const size_t ahead_;
  std::map<int32_t, Weights> weights_;      // by slot
  std::map<int32_t, Gradients> gradients_;  // by slot
  std::vector<Trigger> needed_;             // by gather
  std::vector<Collective> collectives_;
  std::vector<std::vector<CollectiveWait>> waits_;  // by action of the schedule as it was
};

}  // namespace

void assign_slots(const Stage& stage, std::vector<ParameterUnit>& units, const DataParallel& data, bool partial_lanes, bool offload_weights) {
  const std::vector<int32_t> layers = unit_layers(stage, units);
  SlotNumbers weight_slots, gradient_slots;
  int64_t front[2] = {0, 0}, back[2] = {0, 0};  // units outside the layers: of weights, of gradients
  int64_t layer_turn = -1, in_layer = 0;
  std::vector<bool> has_weights(stage.parameters.size(), false);
  for (size_t i = 0; i < units.size(); ++i) {
    ParameterUnit& unit = units[i];
    const bool same_layer = i > 0 && layers[i] == layers[i - 1] && units[i - 1].chunk == unit.chunk;
    if (layers[i] >= 0) layer_turn += !same_layer, in_layer = same_layer ? in_layer + 1 : 0;
    const bool embedded = is_embedded(stage, unit), tied = stage.parameters[static_cast<size_t>(unit.first)].num_accumulators > 1;
    if (data.shards_gradients()) {
      int64_t& number = (embedded && unit.accumulator == 0 ? front : back)[1];
      unit.gradient_slot = partial_lanes ? static_cast<int32_t>(i) : layers[i] >= 0 ? gradient_slots(0, in_layer, layer_turn % kGradientTurns) : gradient_slots(1, number++, 0);
    }
    if ((!data.shards_weights() && !offload_weights) || has_weights[static_cast<size_t>(unit.first)]) continue;
    for (int32_t parameter = unit.first; parameter < unit.first + unit.count; ++parameter) has_weights[static_cast<size_t>(parameter)] = true;
    if (!data.reshard_after_forward && !offload_weights) {
      unit.weight_slot = static_cast<int32_t>(i);
    } else if (layers[i] >= 0) {
      unit.weight_slot = weight_slots(0, in_layer, layer_turn % (1 + data.prefetch));
    } else if (tied) {
      front[0] = back[0] = std::max(front[0], back[0]) + 1;
      unit.weight_slot = weight_slots(1, front[0] - 1, 0);
    } else {
      unit.weight_slot = weight_slots(1, (embedded ? front : back)[0]++, 0);
    }
  }
}

UnitUses unit_uses(const Stage& stage, const std::vector<ParameterUnit>& units) {
  constexpr int32_t kNone = -1;
  UnitUses uses;
  std::vector<int32_t> weight_unit(stage.parameters.size(), kNone);
  std::vector<std::array<int32_t, 2>> gradient_unit(stage.parameters.size(), {kNone, kNone});
  for (size_t i = 0; i < units.size(); ++i) {
    const ParameterUnit& unit = units[i];
    uses.gradient_slot.push_back(unit.gradient_slot);
    uses.weight_slot.push_back(unit.weight_slot);
    for (int32_t parameter = unit.first; parameter < unit.first + unit.count; ++parameter) {
      gradient_unit[static_cast<size_t>(parameter)][static_cast<size_t>(unit.accumulator)] = static_cast<int32_t>(i);
      if (unit.weight_slot >= 0) weight_unit[static_cast<size_t>(parameter)] = static_cast<int32_t>(i);
    }
  }
  uses.blocks.resize(stage.blocks.size());
  for (size_t block = 0; block < stage.blocks.size(); ++block) {
    if (const Phase phase = Stage::phase_of(block); phase == Phase::kNorm || phase == Phase::kOptimizer) continue;
    std::vector<UnitUse>& found = uses.blocks[block];
    std::map<std::pair<bool, int32_t>, size_t> open;  // (writes, slot) -> the run that has it
    const auto note = [&](int32_t unit, bool writes, int32_t op) {
      if (unit == kNone) return;
      const int32_t slot = (writes ? uses.gradient_slot : uses.weight_slot)[static_cast<size_t>(unit)];
      if (slot < 0) return;
      const auto run = open.find({writes, slot});
      if (run != open.end() && found[run->second].unit == unit) {
        found[run->second].last_op = op;
        return;
      }
      open[{writes, slot}] = found.size();
      found.push_back({unit, op, op, writes});
    };
    const std::vector<Op>& ops = stage.blocks[block].ops;
    for (int32_t i = 0; i < static_cast<int32_t>(ops.size()); ++i) {
      for (ValueId id : ops[static_cast<size_t>(i)].inputs)
        if (const Value& value = stage.value(id); value.kind == ValueKind::kParameter && value.sub == 0) note(weight_unit[static_cast<size_t>(value.index)], false, i);
      for (ValueId id : ops[static_cast<size_t>(i)].outputs)
        if (const Value& value = stage.value(id); value.kind == ValueKind::kGradient) note(gradient_unit[static_cast<size_t>(value.index)][static_cast<size_t>(value.sub)], true, i);
    }
  }
  return uses;
}

void shard_schedule(Schedule& schedule, const UnitUses& uses, int prefetch, ActionKind gather) { Sharding(schedule, uses, prefetch, gather).run(); }

}  // namespace orrery
