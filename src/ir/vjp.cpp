#include "ir/vjp.h"

#include <algorithm>
#include <unordered_map>

#include "base/error.h"

namespace orrery {

ValueId gradient_value(Stage& stage, int32_t parameter, int32_t accumulator, int32_t buffer_role) {
  for (size_t i = 0; i < stage.values.size(); ++i) {
    const Value& value = stage.values[i];
    if (value.kind == ValueKind::kGradient && value.index == parameter && value.sub == accumulator && value.buffer_role == buffer_role &&
        value.element_offset == 0 && num_elements(value.shape) == stage.parameters[parameter].num_elements())
      return static_cast<ValueId>(i);
  }
  const ParameterSpec& spec = stage.parameters[parameter];
  Value value;
  value.name = (buffer_role ? "src.d" : "d") + spec.name + (accumulator ? "." + std::to_string(accumulator) : "");
  value.dtype = DType::kF32;
  for (int64_t extent : spec.shape) value.shape.push_back({extent});
  value.kind = ValueKind::kGradient;
  value.index = parameter;
  value.sub = accumulator;
  value.buffer_role = buffer_role;
  stage.values.push_back(std::move(value));
  return static_cast<ValueId>(stage.values.size()) - 1;
}

namespace {

class Differentiator {
 public:
  explicit Differentiator(Stage& stage) : stage_(stage), builder_(stage, Phase::kBackward) {}

  void run() {
    const std::vector<Op> forward = stage_.block(Phase::kForward).ops;  // a copy: rules append values while they read it
    StageBoundary& boundary = stage_.boundaries.front();
    ORRERY_CHECK(boundary.output != kNoValue || (!forward.empty() && (forward.back().kind == OpKind::kLinearCrossEntropy || forward.back().kind == OpKind::kVocabularyLoss)), "the forward ends in the loss");
    if (boundary.output != kNoValue) {
      Value gradient = stage_.value(boundary.output);
      gradient.name = "dx.out";
      boundary.output_gradient = builder_.add_value(std::move(gradient));
      gradients_[boundary.output] = boundary.output_gradient;
    }
    for (auto op = forward.rbegin(); op != forward.rend(); ++op) {
      builder_.set_layer(op->layer);
      apply_rule(*op);
    }
    if (boundary.input != kNoValue) boundary.input_gradient = gradient_of(boundary.input);
  }

 private:
  // The gradient of an activation, complete because every use has been visited; kNoValue when nothing depends on it.
  ValueId gradient_of(ValueId value) const {
    const auto found = gradients_.find(value);
    return found == gradients_.end() ? kNoValue : found->second;
  }

  void contribute(ValueId value, ValueId gradient) {
    if (stage_.value(value).kind != ValueKind::kActivation) return;
    ValueId& slot = gradients_.try_emplace(value, kNoValue).first->second;
    slot = slot == kNoValue ? gradient : builder_.emit_one(OpKind::kAdd, {slot, gradient}, NoAttributes{}, "d" + stage_.value(value).name);
  }

  ValueId parameter_gradient(ValueId parameter, int32_t accumulator = 0) {
    ORRERY_CHECK(stage_.value(parameter).kind == ValueKind::kParameter, "{} is not a parameter", stage_.value(parameter).name);
    return gradient_value(stage_, stage_.value(parameter).index, accumulator);
  }

  // What each tensor rank has a part of.
  ValueId summed_over_ranks(ValueId dx, const std::string& name) {
    return builder_.emit_one(OpKind::kAllReduce, {dx}, GroupAttributes{stage_.parallel.tensor_size, stage_.parallel.context_size}, name);
  }

  std::string d(ValueId value) const { return "d" + stage_.value(value).name; }

  void linear_rule(const Op& op, ValueId dy) {
    const ValueId x = op.inputs[0], weight = op.inputs[1];
    if (op.inputs.size() > 2) builder_.emit(OpKind::kBiasGrad, {dy}, NoAttributes{}, {parameter_gradient(op.inputs[2])});
    builder_.emit(OpKind::kLinearGradWeight, {dy, x}, NoAttributes{}, {parameter_gradient(weight)});
    ValueId dx = builder_.emit_one(OpKind::kLinearGradInput, {dy, weight}, NoAttributes{}, d(x));
    const auto* attributes = std::get_if<LinearAttributes>(&op.attributes);
    if (attributes != nullptr && attributes->input_is_shared) dx = summed_over_ranks(dx, d(x));
    contribute(x, dx);
  }

  // dy is the gradient of the normalized output, dsum that of the sum itself (kNoValue when only the norm uses it).
  void norm_rule(const Op& op, bool added, ValueId dy) {
    const bool layer_norm = op.kind == OpKind::kLayerNorm || op.kind == OpKind::kAddLayerNorm;
    const size_t first_parameter = added ? 2 : 1;
    const ValueId x = added ? op.outputs[0] : op.inputs[0];
    const size_t statistics = added ? 2 : 1;
    std::vector<ValueId> inputs = {dy, x, op.inputs[first_parameter]};
    for (size_t i = statistics; i < op.outputs.size(); ++i) inputs.push_back(op.outputs[i]);
    std::vector<ValueId> outputs = {kNoValue, parameter_gradient(op.inputs[first_parameter])};
    if (layer_norm) outputs.push_back(parameter_gradient(op.inputs[first_parameter + 1]));
    const ValueId dx =
        builder_.emit(layer_norm ? OpKind::kLayerNormGrad : OpKind::kRmsNormGrad, inputs, op.attributes, outputs, d(x))[0];
    contribute(x, dx);
  }

  void apply_rule(const Op& op);

  Stage& stage_;
  BlockBuilder builder_;
  std::unordered_map<ValueId, ValueId> gradients_;
  ValueId whole_lse_ = kNoValue;  // of a loss whose vocabulary the tensor ranks share
};

void Differentiator::apply_rule(const Op& op) {
  const auto& in = op.inputs;
  const auto& out = op.outputs;
  if (op.kind == OpKind::kLocalIds || op.kind == OpKind::kTakeTokens) return;
  if (op.kind == OpKind::kVocabularyLoss) {
    whole_lse_ = out[1];
    return;
  }
  if (op.kind == OpKind::kLinearCrossEntropy) {
    const int32_t last_accumulator = stage_.parameters[stage_.value(in[1]).index].num_accumulators - 1;
    const bool has_part = whole_lse_ != kNoValue;  // of the vocabulary
    const ValueId dx = builder_.emit(OpKind::kLinearCrossEntropyGrad, {in[0], in[1], in[2], has_part ? whole_lse_ : out[1]}, NoAttributes{},
                                     {kNoValue, parameter_gradient(in[1], last_accumulator)}, d(in[0]))[0];
    // Where ranks share tokens, the gather in front of the head does this.
    contribute(in[0], has_part && !stage_.parallel.shares_tokens() ? summed_over_ranks(dx, d(in[0])) : dx);
    return;
  }
  const ValueId dy = gradient_of(out[0]);
  switch (op.kind) {
    case OpKind::kEmbedding:
      if (dy != kNoValue) builder_.emit(OpKind::kEmbeddingGrad, {dy, in[0]}, NoAttributes{}, {parameter_gradient(in[1])});
      return;
    case OpKind::kAdd:
      contribute(in[0], dy);
      contribute(in[1], dy);
      return;
    case OpKind::kAllReduce: contribute(in[0], dy); return;  // every rank's part has the gradient of the sum
    case OpKind::kGatherTokens: contribute(in[0], builder_.emit_one(OpKind::kReduceScatterTokens, {dy}, op.attributes, d(in[0]))); return;
    case OpKind::kReduceScatterTokens: contribute(in[0], builder_.emit_one(OpKind::kGatherTokens, {dy}, op.attributes, d(in[0]))); return;
    case OpKind::kTokensToHeads: contribute(in[0], builder_.emit_one(OpKind::kHeadsToTokens, {dy}, op.attributes, d(in[0]))); return;
    case OpKind::kHeadsToTokens: contribute(in[0], builder_.emit_one(OpKind::kTokensToHeads, {dy}, op.attributes, d(in[0]))); return;
    case OpKind::kMul:
      contribute(in[0], builder_.emit_one(OpKind::kMul, {dy, in[1]}, NoAttributes{}, d(in[0])));
      contribute(in[1], builder_.emit_one(OpKind::kMul, {dy, in[0]}, NoAttributes{}, d(in[1])));
      return;
    case OpKind::kScale: contribute(in[0], builder_.emit_one(OpKind::kScale, {dy}, op.attributes, d(in[0]))); return;
    case OpKind::kSilu: contribute(in[0], builder_.emit_one(OpKind::kSiluGrad, {dy, in[0]}, NoAttributes{}, d(in[0]))); return;
    case OpKind::kGelu: contribute(in[0], builder_.emit_one(OpKind::kGeluGrad, {dy, in[0]}, NoAttributes{}, d(in[0]))); return;
    case OpKind::kSplit: {
      std::vector<ValueId> parts;
      for (ValueId part : out) {
        ORRERY_CHECK(gradient_of(part) != kNoValue, "a part of split {} is unused", stage_.value(in[0]).name);
        parts.push_back(gradient_of(part));
      }
      contribute(in[0], builder_.emit_one(OpKind::kConcat, parts, NoAttributes{}, d(in[0])));
      return;
    }
    case OpKind::kRmsNorm:
    case OpKind::kLayerNorm: norm_rule(op, false, dy); return;
    case OpKind::kAddRmsNorm:
    case OpKind::kAddLayerNorm: {
      norm_rule(op, true, gradient_of(out[1]));
      const ValueId dsum = gradient_of(out[0]);
      contribute(in[0], dsum);
      contribute(in[1], dsum);
      return;
    }
    case OpKind::kLinear: linear_rule(op, dy); return;
    case OpKind::kLinearGelu: {
      const ValueId u = out[0];
      linear_rule(op, builder_.emit_one(OpKind::kGeluGrad, {gradient_of(out[1]), u}, NoAttributes{}, d(u)));
      return;
    }
    case OpKind::kSwiGlu: contribute(in[0], builder_.emit_one(OpKind::kSwiGluGrad, {dy, in[0]}, NoAttributes{}, d(in[0]))); return;
    case OpKind::kRope:
      contribute(in[0], builder_.emit_one(OpKind::kRopeGrad, {dy, in[1], in[2]}, op.attributes, d(in[0])));
      return;
    case OpKind::kSplitRope:
      contribute(in[0], builder_.emit_one(OpKind::kSplitRopeGrad, {dy, gradient_of(out[1]), gradient_of(out[2]), in[1], in[2]},
                                          op.attributes, d(in[0])));
      return;
    case OpKind::kAttention:
    case OpKind::kRingAttention: {
      const auto grads =
          builder_.emit(op.kind == OpKind::kAttention ? OpKind::kAttentionGrad : OpKind::kRingAttentionGrad, {dy, in[0], in[1], in[2], out[0], out[1], in[3]}, op.attributes, {}, d(in[0]));
      for (size_t i = 0; i < 3; ++i) contribute(in[i], grads[i]);
      return;
    }
    default: throw Error(ErrorCode::kUnsupported, "op {} has no derivative rule (ir/vjp.cpp); it cannot be trained through", op_name(op.kind));
  }
}

}  // namespace

void build_backward(Stage& stage) { Differentiator(stage).run(); }

}  // namespace orrery
