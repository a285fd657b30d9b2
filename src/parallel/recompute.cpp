#include "parallel/recompute.h"

#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"

namespace orrery {
namespace {

struct Producer {
  const Op* op;
  size_t output;
};

class Recomputer {
 public:
  Recomputer(Stage& stage, Recompute policy, std::unordered_set<ValueId> chosen = {}) : stage_(stage), policy_(policy), chosen_(std::move(chosen)), forward_(stage.block(Phase::kForward).ops) {
    for (const Op& op : forward_)
      for (size_t i = 0; i < op.outputs.size(); ++i) producers_[op.outputs[i]] = {&op, i};
    find_layer_inputs();
  }

  void run() {
    std::vector<Op> backward = std::move(stage_.block(Phase::kBackward).ops);
    stage_.block(Phase::kBackward).ops.clear();
    for (Op& op : backward) {
      for (ValueId& input : op.inputs) input = available(input, op.layer);
      stage_.block(Phase::kBackward).ops.push_back(std::move(op));
    }
  }

 private:
  // A layer's residual input: the values made by an earlier layer (or before the layers) that ops of a layer read. The
  // normalized half of a fused add + norm that ends the earlier layer is not one: it is made again from the sum.
  void find_layer_inputs() {
    for (const Op& op : forward_)
      for (ValueId id : op.inputs) {
        const auto producer = producers_.find(id);
        if (producer == producers_.end()) continue;
        if (producer->second.op->layer != op.layer && producer->second.output == 0) layer_inputs_.insert(id);
      }
  }

  // Dropped values are made by forward ops and worth making again under the policy.
  bool dropped(ValueId id) const {
    const auto found = producers_.find(id);
    if (found == producers_.end()) return false;  // a parameter, a batch input, or made by the backward itself
    const Producer& producer = found->second;
    const OpKind kind = producer.op->kind;
    // The loss op runs once; what it leaves for the backward is kept under every policy.
    if (kind == OpKind::kLinearCrossEntropy || kind == OpKind::kLinearCrossEntropyWithGrad || kind == OpKind::kVocabularyLoss) return false;
    // Tokens that other ranks have are asked for again rather than kept: that is what sharing them is for.
    if (kind == OpKind::kGatherTokens) return true;
    if (policy_ == Recompute::kNone) return false;
    if (policy_ == Recompute::kBudget) return chosen_.count(id) > 0;
    if (policy_ == Recompute::kFull) return !layer_inputs_.count(id);
    switch (kind) {
      case OpKind::kRmsNorm:
      case OpKind::kLayerNorm: return producer.output == 0;
      case OpKind::kAddRmsNorm:
      case OpKind::kAddLayerNorm:
      case OpKind::kLinearGelu: return producer.output == 1;
      case OpKind::kSwiGlu:
      case OpKind::kSilu:
      case OpKind::kGelu:
      case OpKind::kMul: return true;
      default: return false;
    }
  }

  // The value to read in the backward for forward value `id`: itself when it is kept, else a copy made now.
  ValueId available(ValueId id, int32_t layer) {
    if (!dropped(id)) return id;
    const auto made = copies_.find(id);
    if (made != copies_.end()) return made->second;
    clone(producers_.at(id), layer);
    return copies_.at(id);
  }

  void clone(const Producer& producer, int32_t layer) {
    Op op = *producer.op;
    op.recomputed = true;
    // A fused op whose other result was kept is taken apart: only the missing half is made again.
    const bool first_kept = !dropped(op.outputs[0]);
    if (first_kept && (op.kind == OpKind::kAddRmsNorm || op.kind == OpKind::kAddLayerNorm)) {
      op.kind = op.kind == OpKind::kAddRmsNorm ? OpKind::kRmsNorm : OpKind::kLayerNorm;
      op.inputs.erase(op.inputs.begin(), op.inputs.begin() + 2);
      op.inputs.insert(op.inputs.begin(), op.outputs[0]);
      op.outputs.erase(op.outputs.begin());
    } else if (first_kept && op.kind == OpKind::kLinearGelu) {
      op.kind = OpKind::kGelu;
      op.inputs = {op.outputs[0]};
      op.outputs = {op.outputs[1]};
    }
    for (ValueId& input : op.inputs) input = available(input, layer);
    for (ValueId& output : op.outputs) {
      Value copy = stage_.value(output);
      copy.name += "'";
      stage_.values.push_back(copy);
      const auto id = static_cast<ValueId>(stage_.values.size()) - 1;
      copies_[output] = id;
      output = id;
    }
    stage_.block(Phase::kBackward).ops.push_back(std::move(op));
  }

  Stage& stage_;
  Recompute policy_;
  std::unordered_set<ValueId> chosen_;  // kBudget
  const std::vector<Op>& forward_;
  std::unordered_map<ValueId, Producer> producers_;
  std::unordered_set<ValueId> layer_inputs_;
  std::unordered_map<ValueId, ValueId> copies_;
};

}  // namespace

void apply_recompute_by_bytes(Stage& stage, int level, const RecomputeCosts& costs) {
  const std::vector<RecomputeStep> steps = recompute_steps(stage, costs);
  const size_t count = (steps.size() * static_cast<size_t>(level) + kRecomputeLevels - 1) / kRecomputeLevels;
  std::unordered_set<ValueId> chosen;
  for (size_t i = 0; i < count; ++i) chosen.insert(steps[i].values.begin(), steps[i].values.end());
  Recomputer(stage, Recompute::kBudget, std::move(chosen)).run();
}

void apply_recompute(Stage& stage, Recompute policy) {
  ORRERY_CHECK(policy != Recompute::kBudget, "a budget's policy needs a level and costs");
  Recomputer(stage, policy).run();
}

}  // namespace orrery
