#include "parallel/recompute_choice.h"

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>

#include "ir/op_table.h"

namespace orrery {
namespace {

bool is_add_norm(OpKind kind) { return kind == OpKind::kAddRmsNorm || kind == OpKind::kAddLayerNorm; }

// Where values belong. What one layer hands to the next is kept; the normalized half of a sum that ends a layer belongs to the one that reads it.
struct Homes {
  std::set<ValueId> kept;
  std::map<ValueId, int32_t> layer;

  explicit Homes(const Stage& stage) {
    std::map<ValueId, bool> is_second_half;
    for (const Op& op : stage.block(Phase::kForward).ops) {
      for (ValueId id : op.inputs) {
        const auto home = layer.find(id);
        if (home == layer.end() || home->second == op.layer) continue;
        if (is_second_half[id])
          home->second = op.layer;
        else
          kept.insert(id);
      }
      for (size_t i = 0; i < op.outputs.size(); ++i) {
        layer[op.outputs[i]] = op.layer;
        is_second_half[op.outputs[i]] = i == 1 && is_add_norm(op.kind);
      }
    }
    for (ValueId id : {stage.boundaries.front().input, stage.boundaries.front().output}) kept.insert(id);
  }
};

// One layer's forward ops and what its backward reads of them.
class LayerChoice {
 public:
  LayerChoice(const Stage& stage, int32_t layer, const Homes& homes, const RecomputeCosts& costs) : stage_(stage), layer_(layer), homes_(homes), costs_(costs) {
    for (const Op& op : stage.block(Phase::kForward).ops) {
      if (std::none_of(op.outputs.begin(), op.outputs.end(), [&](ValueId id) { return homes.layer.at(id) == layer; })) continue;
      ops_.push_back(&op);
      for (ValueId id : op.outputs) producer_[id] = &op;
      if (op.kind == OpKind::kGatherTokens) always_.insert(op.outputs[0]);
    }
    for (const Op& op : stage.block(Phase::kBackward).ops)
      if (op.layer == layer) read_.insert(read_.end(), op.inputs.begin(), op.inputs.end());
  }

  std::vector<RecomputeStep> run() const {
    std::vector<RecomputeStep> steps;
    std::set<ValueId> dropped = always_;
    for (;;) {
      const State before = state_of(dropped);
      RecomputeStep best;
      for (const Op* op : ops_)
        for (bool partly : {true, false})
          for (bool with_inputs : {false, true}) {
            std::vector<ValueId> values;
            if (!add(*op, partly, dropped, values)) continue;
            if (with_inputs) add_unsaved_inputs(*op, partly, before, dropped, values);
            std::set<ValueId> next = dropped;
            next.insert(values.begin(), values.end());
            const State after = state_of(next);
            const double freed = before.bytes - after.bytes, spent = after.cost - before.cost;
            if (freed <= 0 || spent <= 0) continue;
            if (freed / spent > best.bytes_per_cost) best = {std::move(values), freed / spent};
          }
      if (best.values.empty()) return steps;
      dropped.insert(best.values.begin(), best.values.end());
      // A later step cannot be taken without the earlier ones, so it does not come before them.
      if (!steps.empty()) best.bytes_per_cost = std::min(best.bytes_per_cost, steps.back().bytes_per_cost);
      steps.push_back(std::move(best));
    }
  }

 private:
  struct State {
    double bytes = 0, cost = 0;
    std::set<ValueId> saved;
  };

  // Half of a fused op can be made again from its other half (Recomputer::clone).
  static bool has_halves(OpKind kind) { return is_add_norm(kind) || kind == OpKind::kLinearGelu; }
  static std::vector<ValueId> inputs_of(const Op& op, bool partly) {
    return partly && has_halves(op.kind) ? std::vector<ValueId>{op.outputs[0]} : op.inputs;
  }

  // The values to drop for `op` in addition to what is; false when there are none.
  bool add(const Op& op, bool partly, const std::set<ValueId>& dropped, std::vector<ValueId>& values) const {
    if (partly && !has_halves(op.kind)) return false;
    const size_t size = values.size();
    for (size_t i = partly ? 1 : 0; i < (partly ? 2 : op.outputs.size()); ++i) {
      const ValueId id = op.outputs[i];
      if (homes_.kept.count(id) || homes_.layer.at(id) != layer_) return false;
      if (!dropped.count(id) && std::find(values.begin(), values.end(), id) == values.end()) values.push_back(id);
    }
    return values.size() > size;
  }

  void add_unsaved_inputs(const Op& op, bool partly, const State& before, const std::set<ValueId>& dropped, std::vector<ValueId>& values) const {
    for (ValueId id : inputs_of(op, partly)) {
      const auto found = producer_.find(id);
      if (found == producer_.end() || before.saved.count(stage_.storage(id)) || dropped.count(id)) continue;
      std::vector<ValueId> more = values;
      if (!add(*found->second, false, dropped, more)) continue;
      values = std::move(more);
      add_unsaved_inputs(*found->second, false, before, dropped, values);
    }
  }

  // What the backward finds saved, and what it makes again.
  State state_of(const std::set<ValueId>& dropped) const {
    State state;
    std::set<const Op*> again;
    std::vector<ValueId> wanted = read_;
    while (!wanted.empty()) {
      const ValueId id = wanted.back();
      wanted.pop_back();
      const auto found = producer_.find(id);
      if (!dropped.count(id)) {
        const Value& value = stage_.value(stage_.storage(id));
        if (value.kind == ValueKind::kActivation && found != producer_.end() && !homes_.kept.count(id) && state.saved.insert(stage_.storage(id)).second) state.bytes += static_cast<double>(value.bytes());
        continue;
      }
      const Op& op = *found->second;
      if (!again.insert(&op).second) continue;
      const bool partly = !dropped.count(op.outputs[0]);
      if (partly) {
        state.cost += static_cast<double>(stage_.value(op.outputs[0]).bytes() + stage_.value(op.outputs[1]).bytes());
      } else {
        const OpCost cost = op_cost(stage_, op, costs_.num_tokens, costs_.mean_context);
        state.cost += cost.bytes_read + cost.bytes_written + cost.flops / costs_.flops_per_byte;
      }
      for (ValueId input : inputs_of(op, partly)) wanted.push_back(input);
    }
    return state;
  }

  const Stage& stage_;
  const int32_t layer_;
  const Homes& homes_;
  const RecomputeCosts& costs_;
  std::vector<const Op*> ops_;
  std::unordered_map<ValueId, const Op*> producer_;
  std::vector<ValueId> read_;
  std::set<ValueId> always_;  // made again under every policy
};

}  // namespace

std::vector<RecomputeStep> recompute_steps(const Stage& stage, const RecomputeCosts& costs) {
  const Homes homes(stage);
  std::set<int32_t> layers;
  for (const Op& op : stage.block(Phase::kForward).ops)
    if (op.layer >= 0) layers.insert(op.layer);
  std::vector<RecomputeStep> steps;
  for (int32_t layer : layers) {
    std::vector<RecomputeStep> own = LayerChoice(stage, layer, homes, costs).run();
    steps.insert(steps.end(), std::make_move_iterator(own.begin()), std::make_move_iterator(own.end()));
  }
  std::stable_sort(steps.begin(), steps.end(), [](const RecomputeStep& a, const RecomputeStep& b) { return a.bytes_per_cost > b.bytes_per_cost; });
  return steps;
}

}  // namespace orrery
