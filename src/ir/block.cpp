#include "ir/block.h"

#include <array>

#include "base/error.h"
#include "ir/op_table.h"

namespace orrery {

int64_t num_elements(const Shape& shape) {
  int64_t count = 1;
  for (const Dim& dim : shape) count *= dim.bound;
  return count;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i) text += ", ";
    switch (shape[i].dynamic) {
      case DynamicDim::kStatic: break;
      case DynamicDim::kTokens: text += "T<="; break;
      case DynamicDim::kTokenShare: text += "T/t<="; break;
      case DynamicDim::kAllTokens: text += "T*c<="; break;
      case DynamicDim::kSegments: text += "S<="; break;
      case DynamicDim::kSegmentsPlusOne: text += "S+1<="; break;
      case DynamicDim::kRows: text += "M<="; break;
    }
    text += std::to_string(shape[i].bound);
  }
  return text + "]";
}

std::string_view value_kind_name(ValueKind kind) {
  constexpr std::array<std::string_view, 8> kNames = {"batch", "parameter", "constant", "activation", "gradient", "state", "step", "kv_cache"};
  return kNames[static_cast<size_t>(kind)];
}

std::string_view phase_name(Phase phase) {
  constexpr std::array<std::string_view, kNumPhases> kNames = {"forward", "backward", "backward input", "backward weight", "merge", "norm", "optimizer", "eval"};
  return kNames[static_cast<size_t>(phase)];
}

ValueId BlockBuilder::add_value(Value value) {
  if (value.layer < 0) value.layer = layer_;
  stage_.values.push_back(std::move(value));
  return static_cast<ValueId>(stage_.values.size()) - 1;
}

ValueId BlockBuilder::batch(BatchField field, DType dtype, Shape shape) {
  constexpr std::array<std::string_view, 10> kNames = {"ids", "targets", "positions", "cu_seqlens", "token_loss", "rows", "slots", "block_table", "context_lens", "logits"};
  for (size_t i = 0; i < stage_.values.size(); ++i)
    if (stage_.values[i].kind == ValueKind::kBatch && stage_.values[i].index == static_cast<int32_t>(field)) return static_cast<ValueId>(i);
  Value value;
  value.name = kNames[static_cast<size_t>(field)];
  value.dtype = dtype;
  value.shape = std::move(shape);
  value.kind = ValueKind::kBatch;
  value.index = static_cast<int32_t>(field);
  return add_value(std::move(value));
}

ValueId BlockBuilder::parameter(ParameterSpec spec) {
  check_parameter_spec(spec);
  for (size_t i = 0; i < stage_.values.size(); ++i) {
    const Value& known = stage_.values[i];
    if (known.kind != ValueKind::kParameter || known.name != spec.name) continue;
    ORRERY_CHECK(stage_.parameters[known.index] == spec, "two parameters are called {}", spec.name);
    return static_cast<ValueId>(i);
  }
  Value value;
  value.name = spec.name;
  value.dtype = stage_.compute_dtype;
  for (int64_t extent : spec.shape) value.shape.push_back({extent});
  value.kind = ValueKind::kParameter;
  value.index = static_cast<int32_t>(stage_.parameters.size());
  stage_.parameters.push_back(std::move(spec));
  return add_value(std::move(value));
}

ValueId BlockBuilder::constant(const RopeTable& table) {
  for (size_t i = 0; i < stage_.values.size(); ++i)
    if (stage_.values[i].kind == ValueKind::kConstant && stage_.constants[stage_.values[i].index] == table) return static_cast<ValueId>(i);
  Value value;
  value.name = "rope_table";
  value.dtype = DType::kF32;
  value.shape = {{table.max_positions}, {table.rotary_dim / 2}, {2}};
  value.kind = ValueKind::kConstant;
  value.index = static_cast<int32_t>(stage_.constants.size());
  stage_.constants.push_back(table);
  return add_value(std::move(value));
}

std::vector<ValueId> BlockBuilder::emit(OpKind kind, std::vector<ValueId> inputs, Attributes attributes, std::vector<ValueId> outputs,
                                        const std::string& name) {
  std::vector<ValueType> input_types;
  for (ValueId id : inputs) input_types.push_back({stage_.value(id).dtype, stage_.value(id).shape});
  const std::vector<ValueType> types = infer_types(kind, attributes, input_types, stage_.compute_dtype);
  if (outputs.size() < types.size()) outputs.resize(types.size(), kNoValue);
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i] != kNoValue) {
      ORRERY_CHECK(i >= types.size() || num_elements(stage_.value(outputs[i]).shape) == num_elements(types[i].shape),
                   "{}: output {} is {}, wanted {}", op_name(kind), i, to_string(stage_.value(outputs[i]).shape), to_string(types[i].shape));
      continue;
    }
    Value value;
    value.name = name.empty() ? std::string(op_name(kind)) : name;
    if (i > 0) value.name += fmt::format(".{}", i);
    value.dtype = types[i].dtype;
    value.shape = types[i].shape;
    outputs[i] = add_value(std::move(value));
  }
  Op op;
  op.kind = kind;
  op.inputs = std::move(inputs);
  op.outputs = outputs;
  op.attributes = std::move(attributes);
  op.layer = layer_;
  stage_.block(phase_).ops.push_back(std::move(op));
  return outputs;
}

std::string to_string(const Stage& stage, Phase phase) {
  std::string text;
  for (const Op& op : stage.block(phase).ops) {
    for (size_t i = 0; i < op.outputs.size(); ++i) {
      const Value& value = stage.value(op.outputs[i]);
      text += fmt::format("{}%{}:{} {} {}", i ? ", " : "", op.outputs[i], value.name, dtype_name(value.dtype), to_string(value.shape));
    }
    text += fmt::format(" = {}(", op_name(op.kind));
    for (size_t i = 0; i < op.inputs.size(); ++i) text += fmt::format("{}%{}", i ? ", " : "", op.inputs[i]);
    text += op.recomputed ? ")  recomputed\n" : ")\n";
  }
  return text;
}

}  // namespace orrery
