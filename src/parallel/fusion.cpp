#include "parallel/fusion.h"

#include <algorithm>
#include <optional>
#include <unordered_map>

#include "base/error.h"

namespace orrery {
namespace {

// Who makes and who reads each value of a block, by op index.
class UseMap {
 public:
  explicit UseMap(const Block& block) {
    for (size_t i = 0; i < block.ops.size(); ++i) {
      for (ValueId id : block.ops[i].inputs) uses_[id].push_back(i);
      for (ValueId id : block.ops[i].outputs) producer_[id] = i;
    }
  }
  const std::vector<size_t>& uses(ValueId id) const {
    static const std::vector<size_t> kNone;
    const auto found = uses_.find(id);
    return found == uses_.end() ? kNone : found->second;
  }
  std::optional<size_t> producer(ValueId id) const {
    const auto found = producer_.find(id);
    return found == producer_.end() ? std::nullopt : std::optional<size_t>(found->second);
  }
  // The only reader of a value, when there is exactly one.
  std::optional<size_t> only_use(ValueId id) const {
    return uses(id).size() == 1 ? std::optional<size_t>(uses(id)[0]) : std::nullopt;
  }

 private:
  std::unordered_map<ValueId, std::vector<size_t>> uses_;
  std::unordered_map<ValueId, size_t> producer_;
};

// Rewrites collected while a block is scanned: the op at an index is replaced, others are dropped.
class Rewrite {
 public:
  explicit Rewrite(Block& block) : block_(block), dropped_(block.ops.size(), false), changed_(block.ops.size(), false) {}
  bool touched(size_t index) const { return dropped_[index] || changed_[index]; }
  void replace(size_t index, Op op) {
    op.layer = block_.ops[index].layer;
    block_.ops[index] = std::move(op);
    changed_[index] = true;
  }
  void drop(size_t index) { dropped_[index] = true; }
  void apply() {
    std::vector<Op> kept;
    for (size_t i = 0; i < block_.ops.size(); ++i)
      if (!dropped_[i]) kept.push_back(std::move(block_.ops[i]));
    block_.ops = std::move(kept);
  }

 private:
  Block& block_;
  std::vector<bool> dropped_, changed_;
};

Op make_op(OpKind kind, std::vector<ValueId> inputs, std::vector<ValueId> outputs, Attributes attributes = NoAttributes{}) {
  Op op;
  op.kind = kind;
  op.inputs = std::move(inputs);
  op.outputs = std::move(outputs);
  op.attributes = std::move(attributes);
  return op;
}

// add + norm: the add must directly feed the norm; the sum stays an output, because the residual stream goes on.
void fuse_add_norm(Block& block, const UseMap& uses, Rewrite& rewrite, size_t norm_index) {
  const Op norm = block.ops[norm_index];
  const auto add_index = uses.producer(norm.inputs[0]);
  if (!add_index || rewrite.touched(*add_index) || block.ops[*add_index].kind != OpKind::kAdd) return;
  // The fused op stands where the add stood, so the norm may not be preceded by another reader that it would overtake: readers
  // of the sum come later than the add in any case, and the norm's other operands are parameters.
  const Op add = block.ops[*add_index];
  std::vector<ValueId> inputs = {add.inputs[0], add.inputs[1]}, outputs = {add.outputs[0]};
  inputs.insert(inputs.end(), norm.inputs.begin() + 1, norm.inputs.end());
  outputs.insert(outputs.end(), norm.outputs.begin(), norm.outputs.end());
  const OpKind kind = norm.kind == OpKind::kRmsNorm ? OpKind::kAddRmsNorm : OpKind::kAddLayerNorm;
  rewrite.replace(*add_index, make_op(kind, inputs, outputs, norm.attributes));
  rewrite.drop(norm_index);
}

void fuse_linear_gelu(Block& block, const UseMap& uses, Rewrite& rewrite, size_t gelu_index) {
  const auto linear_index = uses.producer(block.ops[gelu_index].inputs[0]);
  if (!linear_index || rewrite.touched(*linear_index)) return;
  const Op& linear = block.ops[*linear_index];
  if (linear.kind != OpKind::kLinear || linear.inputs.size() != 3) return;
  rewrite.replace(*linear_index, make_op(OpKind::kLinearGelu, linear.inputs, {linear.outputs[0], block.ops[gelu_index].outputs[0]}, linear.attributes));
  rewrite.drop(gelu_index);
}

// split -> gate, up; silu(gate); mul(silu, up).
void fuse_swiglu(Block& block, const UseMap& uses, Rewrite& rewrite, size_t split_index) {
  const Op split = block.ops[split_index];
  if (split.outputs.size() != 2) return;
  const auto silu_index = uses.only_use(split.outputs[0]);
  if (!silu_index || block.ops[*silu_index].kind != OpKind::kSilu) return;
  const auto mul_index = uses.only_use(block.ops[*silu_index].outputs[0]);
  if (!mul_index || block.ops[*mul_index].kind != OpKind::kMul || uses.only_use(split.outputs[1]) != mul_index) return;
  rewrite.replace(*mul_index, make_op(OpKind::kSwiGlu, split.inputs, block.ops[*mul_index].outputs));
  rewrite.drop(split_index);
  rewrite.drop(*silu_index);
}

// split -> q, k, v; rope(q); rope(k), with equal head widths.
void fuse_split_rope(Block& block, const UseMap& uses, Rewrite& rewrite, size_t split_index) {
  const Op split = block.ops[split_index];
  if (split.outputs.size() != 3) return;
  const auto q_index = uses.only_use(split.outputs[0]), k_index = uses.only_use(split.outputs[1]);
  if (!q_index || !k_index || block.ops[*q_index].kind != OpKind::kRope || block.ops[*k_index].kind != OpKind::kRope) return;
  const Op q = block.ops[*q_index], k = block.ops[*k_index];
  RopeAttributes attributes = std::get<RopeAttributes>(q.attributes);
  attributes.num_kv_heads = std::get<RopeAttributes>(k.attributes).num_heads;
  rewrite.replace(split_index, make_op(OpKind::kSplitRope, {split.inputs[0], q.inputs[1], q.inputs[2]},
                                       {q.outputs[0], k.outputs[0], split.outputs[2]}, attributes));
  rewrite.drop(*q_index);
  rewrite.drop(*k_index);
}

}  // namespace

void fuse_forward(Stage& stage, Phase phase) {
  Block& block = stage.block(phase);
  const UseMap uses(block);
  Rewrite rewrite(block);
  for (size_t i = 0; i < block.ops.size(); ++i) {
    if (rewrite.touched(i)) continue;
    switch (block.ops[i].kind) {
      case OpKind::kRmsNorm:
      case OpKind::kLayerNorm: fuse_add_norm(block, uses, rewrite, i); break;
      case OpKind::kGelu: fuse_linear_gelu(block, uses, rewrite, i); break;
      case OpKind::kSplit:
        fuse_swiglu(block, uses, rewrite, i);
        if (!rewrite.touched(i)) fuse_split_rope(block, uses, rewrite, i);
        break;
      default: break;
    }
  }
  rewrite.apply();
}

void fuse_backward(Stage& stage) {
  Block& block = stage.block(Phase::kBackward);
  const UseMap uses(block);
  Rewrite rewrite(block);
  for (size_t i = 0; i < block.ops.size(); ++i) {
    if (rewrite.touched(i)) continue;
    const Op op = block.ops[i];
    if (op.kind == OpKind::kAdd) {
      // residual gradient + norm gradient, in either order: addition commutes bit for bit.
      for (size_t side : {1, 0}) {
        const auto norm_index = uses.producer(op.inputs[side]);
        if (!norm_index || rewrite.touched(*norm_index) || uses.uses(op.inputs[side]).size() != 1) continue;
        Op norm = block.ops[*norm_index];
        if (norm.kind != OpKind::kRmsNormGrad && norm.kind != OpKind::kLayerNormGrad) continue;
        const auto residual = uses.producer(op.inputs[1 - side]);
        if (residual && *residual > *norm_index) continue;
        norm.kind = norm.kind == OpKind::kRmsNormGrad ? OpKind::kRmsNormGradAdd : OpKind::kLayerNormGradAdd;
        norm.inputs.push_back(op.inputs[1 - side]);
        norm.outputs[0] = op.outputs[0];
        rewrite.replace(*norm_index, norm);
        rewrite.drop(i);
        break;
      }
    } else if (op.kind == OpKind::kGeluGrad) {
      const auto linear_index = uses.producer(op.inputs[0]);
      if (!linear_index || rewrite.touched(*linear_index) || uses.uses(op.inputs[0]).size() != 1) continue;
      Op linear = block.ops[*linear_index];
      if (linear.kind != OpKind::kLinearGradInput) continue;
      linear.kind = OpKind::kLinearGradInputGelu;
      linear.inputs.push_back(op.inputs[1]);
      linear.outputs[0] = op.outputs[0];
      rewrite.replace(*linear_index, linear);
      rewrite.drop(i);
    }
  }
  rewrite.apply();
}

void fuse_loss(Stage& stage) {
  Block& forward = stage.block(Phase::kForward);
  Block& backward = stage.block(Phase::kBackward);
  if (forward.ops.back().kind != OpKind::kLinearCrossEntropy) return;
  Op& loss = forward.ops.back();
  // Where ranks share the vocabulary no part knows the gradient before all have met.
  if (loss.kind == OpKind::kVocabularyLoss) return;
  Op& gradient = backward.ops.front();
  ORRERY_CHECK(loss.kind == OpKind::kLinearCrossEntropy && gradient.kind == OpKind::kLinearCrossEntropyGrad, "the blocks meet at the loss");
  loss.kind = OpKind::kLinearCrossEntropyWithGrad;
  loss.outputs = {loss.outputs[0], gradient.outputs[0], gradient.outputs[1]};
  backward.ops.erase(backward.ops.begin());
}

namespace {

// Ops whose kernels take operands with strided rows, as attention does; elementwise ops walk contiguous memory.
bool takes_strided_rows(OpKind kind) {
  switch (kind) {
    case OpKind::kAttention:
    case OpKind::kAttentionGrad:
    case OpKind::kRingAttention:
    case OpKind::kRingAttentionGrad:
    case OpKind::kTokensToHeads:
    case OpKind::kHeadsToTokens:
    case OpKind::kPagedAttention:
    case OpKind::kKvWrite: return true;
    default: return false;
  }
}

// Whether every op of the stage that names `id`, except `self`, takes strided rows.
bool only_strided_users(const Stage& stage, ValueId id, const Op* self) {
  for (const Block& block : stage.blocks)
    for (const Op& op : block.ops) {
      if (&op == self || takes_strided_rows(op.kind)) continue;
      if (std::count(op.inputs.begin(), op.inputs.end(), id) || std::count(op.outputs.begin(), op.outputs.end(), id)) return false;
    }
  return true;
}

}  // namespace

void remove_copies(Stage& stage) {
  for (Block& block : stage.blocks) {
    std::vector<Op> kept;
    for (const Op& op : block.ops) {
      const bool split = op.kind == OpKind::kSplit;
      if (!split && op.kind != OpKind::kConcat) {
        kept.push_back(op);
        continue;
      }
      const ValueId whole = split ? op.inputs[0] : op.outputs[0];
      const std::vector<ValueId>& parts = split ? op.outputs : op.inputs;
      const bool removable = stage.value(whole).view_of == kNoValue && std::all_of(parts.begin(), parts.end(), [&](ValueId part) {
        return stage.value(part).view_of == kNoValue && only_strided_users(stage, part, &op);
      });
      if (!removable) {
        kept.push_back(op);
        continue;
      }
      int64_t column = 0;
      for (ValueId part : parts) {
        stage.values[part].view_of = whole;
        stage.values[part].element_offset = column;
        column += stage.value(part).shape.back().bound;
      }
    }
    block.ops = std::move(kept);
  }
}

}  // namespace orrery
