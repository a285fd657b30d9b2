#include "parallel/optimizer_blocks.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "ir/vjp.h"

namespace orrery {
namespace {

constexpr int64_t kNormBlock = 4096;

ValueId step_value(BlockBuilder& builder, StepField field, const std::string& name, DType dtype, int64_t count, int64_t first = 0) {
  Value value;
  value.name = name;
  value.dtype = dtype;
  value.shape = {{count}};
  value.kind = ValueKind::kStep;
  value.index = static_cast<int32_t>(field);
  value.element_offset = first;
  return builder.add_value(std::move(value));
}

ValueId state_value(BlockBuilder& builder, int32_t parameter, StateField field, DType dtype) {
  const ParameterSpec& spec = builder.stage().parameters[parameter];
  Value value;
  value.name = spec.name + (field == StateField::kLow ? ".low" : field == StateField::kMoment1 ? ".m" : ".v");
  value.dtype = dtype;
  value.shape = {{spec.num_elements()}};
  value.kind = ValueKind::kState;
  value.index = parameter;
  value.sub = static_cast<int32_t>(field);
  return builder.add_value(std::move(value));
}

// A flat view of rows of a parameter's gradient (role 0, accumulator 0).
ValueId gradient_rows(BlockBuilder& builder, int32_t parameter, int64_t row_begin, int64_t num_rows, const std::string& name) {
  const ParameterSpec& spec = builder.stage().parameters[parameter];
  Value value;
  value.name = "d" + name;
  value.dtype = DType::kF32;
  value.shape = {{num_rows * spec.columns()}};
  value.kind = ValueKind::kGradient;
  value.index = parameter;
  value.element_offset = row_begin * spec.columns();
  return builder.add_value(std::move(value));
}

// The compute weight as a flat vector, for elementwise kernels.
ValueId flat_weight(BlockBuilder& builder, int32_t parameter) {
  const ParameterSpec& spec = builder.stage().parameters[parameter];
  Value value;
  value.name = spec.name + ".flat";
  value.dtype = builder.stage().compute_dtype;
  value.shape = {{spec.num_elements()}};
  value.kind = ValueKind::kParameter;
  value.index = parameter;
  return builder.add_value(std::move(value));
}

}  // namespace

int num_moments(OptimizerKind kind) { return kind == OptimizerKind::kAdamW ? 2 : 1; }

bool needs_zeroed_gradients(const Stage& stage) {
  const auto& ops = stage.block(Phase::kBackward).ops;
  return std::any_of(ops.begin(), ops.end(), [](const Op& op) { return op.kind == OpKind::kEmbeddingGrad; });
}

void build_optimizer_blocks(Stage& stage, const OptimizerBlockOptions& options) {
  BlockBuilder zero(stage, Phase::kZero), merge(stage, Phase::kMerge), optimizer(stage, Phase::kOptimizer);
  const std::vector<Op> backward = stage.block(Phase::kBackward).ops;
  for (const Op& op : backward)
    if (op.kind == OpKind::kEmbeddingGrad) zero.emit(OpKind::kZero, {}, NoAttributes{}, {op.outputs[0]});

  for (int32_t parameter = 0; parameter < static_cast<int32_t>(stage.parameters.size()); ++parameter)
    for (int32_t accumulator = 0; accumulator < stage.parameters[parameter].num_accumulators; ++accumulator)
      merge.emit(OpKind::kAccumulate, {gradient_value(stage, parameter, accumulator, 1)}, NoAttributes{},
                 {gradient_value(stage, parameter, accumulator, 0)});

  // The two uses of a tied matrix meet after the lane tree (NUMERICS rule 6).
  for (int32_t parameter = 0; parameter < static_cast<int32_t>(stage.parameters.size()); ++parameter)
    for (int32_t accumulator = 1; accumulator < stage.parameters[parameter].num_accumulators; ++accumulator)
      optimizer.emit(OpKind::kAccumulate, {gradient_value(stage, parameter, accumulator)}, NoAttributes{}, {gradient_value(stage, parameter, 0)});

  // Norm, in model order of the logical tensors.
  struct Piece {
    int32_t parameter;
    int64_t row_begin, num_rows;
    std::string tensor;
  };
  std::map<int32_t, Piece> pieces;
  for (int32_t parameter = 0; parameter < static_cast<int32_t>(stage.parameters.size()); ++parameter)
    for (const ParameterSegment& segment : stage.parameters[parameter].segments) {
      const bool fresh = pieces.emplace(segment.tensor_index, Piece{parameter, segment.row_begin, segment.num_rows, segment.tensor}).second;
      ORRERY_CHECK(fresh, "tensor {} fills two places", segment.tensor);
    }
  int64_t num_blocks = 0;
  for (const auto& [index, piece] : pieces) {
    const ValueId gradient = gradient_rows(optimizer, piece.parameter, piece.row_begin, piece.num_rows, piece.tensor);
    const int64_t count = (num_elements(stage.value(gradient).shape) + kNormBlock - 1) / kNormBlock;
    const ValueId sums = step_value(optimizer, StepField::kSquaredSums, "sums." + piece.tensor, DType::kF64, count, num_blocks);
    optimizer.emit(OpKind::kSquaredSums, {gradient}, NoAttributes{}, {sums});
    num_blocks += count;
  }
  const ValueId sums = step_value(optimizer, StepField::kSquaredSums, "sums", DType::kF64, num_blocks);
  const ValueId num_valid = step_value(optimizer, StepField::kNumValid, "num_valid", DType::kI32, 1);
  const ValueId hyper = step_value(optimizer, StepField::kHyper, "hyper", DType::kU8, sizeof(OptimizerHyper));
  const ValueId scale = step_value(optimizer, StepField::kScale, "scale", DType::kF32, 2);
  const ValueId stats = step_value(optimizer, StepField::kStats, "stats", DType::kF64, 4);
  optimizer.emit(OpKind::kOptimizerScale, {sums, num_valid, hyper}, NoAttributes{}, {scale, stats});

  const OpKind update = options.kind == OptimizerKind::kAdamW ? OpKind::kAdamW : options.kind == OptimizerKind::kSgd ? OpKind::kSgd : OpKind::kLion;
  for (int32_t parameter = 0; parameter < static_cast<int32_t>(stage.parameters.size()); ++parameter) {
    const ParameterSpec& spec = stage.parameters[parameter];
    std::vector<ValueId> outputs = {flat_weight(optimizer, parameter)};
    if (stage.compute_dtype == DType::kBF16) outputs.push_back(state_value(optimizer, parameter, StateField::kLow, DType::kI16));
    outputs.push_back(state_value(optimizer, parameter, StateField::kMoment1, options.moment_dtype));
    if (num_moments(options.kind) > 1) outputs.push_back(state_value(optimizer, parameter, StateField::kMoment2, options.moment_dtype));
    const ValueId gradient = gradient_rows(optimizer, parameter, 0, spec.rows(), spec.name);
    optimizer.emit(update, {gradient, scale, hyper}, OptimizerAttributes{spec.decay}, outputs);
  }
}

}  // namespace orrery
