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

// The state that this rank keeps of a parameter: `count` elements, whose first one the memory map places.
ValueId state_value(BlockBuilder& builder, int32_t parameter, StateField field, DType dtype, int64_t count) {
  Value value;
  value.name = builder.stage().parameters[parameter].name + (field == StateField::kLow ? ".low" : field == StateField::kMoment1 ? ".m" : ".v");
  value.dtype = dtype;
  value.shape = {{count}};
  value.kind = ValueKind::kState;
  value.index = parameter;
  value.sub = static_cast<int32_t>(field);
  return builder.add_value(std::move(value));
}

// Elements of a parameter's gradient as a vector.
ValueId gradient_elements(BlockBuilder& builder, int32_t parameter, int32_t accumulator, OwnedElements range, const std::string& name) {
  Value value;
  value.name = "d" + name;
  value.dtype = DType::kF32;
  value.shape = {{range.size()}};
  value.kind = ValueKind::kGradient;
  value.index = parameter;
  value.sub = accumulator;
  value.element_offset = range.begin;
  return builder.add_value(std::move(value));
}

// Elements of the compute weight as a vector, for elementwise kernels.
ValueId weight_elements(BlockBuilder& builder, int32_t parameter, OwnedElements range) {
  Value value;
  value.name = builder.stage().parameters[parameter].name + ".flat";
  value.dtype = builder.stage().compute_dtype;
  value.shape = {{range.size()}};
  value.kind = ValueKind::kParameter;
  value.index = parameter;
  value.element_offset = range.begin;
  return builder.add_value(std::move(value));
}

}  // namespace

int num_moments(OptimizerKind kind) { return kind == OptimizerKind::kAdamW ? 2 : 1; }

bool needs_zeroed_gradients(const Stage& stage) {
  const auto& ops = stage.block(Phase::kBackward).ops;
  return std::any_of(ops.begin(), ops.end(), [](const Op& op) { return op.kind == OpKind::kEmbeddingGrad; });
}

int64_t build_optimizer_blocks(Stage& stage, const OptimizerBlockOptions& options, const std::vector<OwnedElements>& owned, int zero_stage, int64_t num_exchanged) {
  BlockBuilder zero(stage, Phase::kZero), merge(stage, Phase::kMerge), norm(stage, Phase::kNorm), optimizer(stage, Phase::kOptimizer);
  const std::vector<Op> backward = stage.block(Phase::kBackward).ops;
  for (const Op& op : backward)
    if (op.kind == OpKind::kEmbeddingGrad) zero.emit(OpKind::kZero, {}, NoAttributes{}, {op.outputs[0]});

  const auto num_parameters = static_cast<int32_t>(stage.parameters.size());
  for (int32_t parameter = 0; parameter < num_parameters; ++parameter)
    for (int32_t accumulator = 0; accumulator < stage.parameters[parameter].num_accumulators; ++accumulator)
      merge.emit(OpKind::kAccumulate, {gradient_value(stage, parameter, accumulator, 1)}, NoAttributes{},
                 {gradient_value(stage, parameter, accumulator, 0)});

  // The two uses of a tied matrix meet after the lane tree (NUMERICS rule 6).
  for (int32_t parameter = 0; parameter < num_parameters; ++parameter)
    for (int32_t accumulator = 1; accumulator < stage.parameters[parameter].num_accumulators; ++accumulator) {
      const OwnedElements range = owned[static_cast<size_t>(parameter)];
      const std::string& name = stage.parameters[parameter].name;
      if (range.size() == 0) continue;
      const ValueId first = gradient_elements(norm, parameter, 0, range, name), second = gradient_elements(norm, parameter, accumulator, range, name);
      norm.emit(OpKind::kAccumulate, {second}, NoAttributes{}, {first});
    }

  // Norm, in model order of the logical tensors.
  struct Piece {
    int32_t parameter;
    OwnedElements elements;  // of the whole tensor in the parameter
    std::string tensor;
  };
  std::map<int32_t, Piece> pieces;
  for (int32_t parameter = 0; parameter < num_parameters; ++parameter) {
    const int64_t columns = stage.parameters[parameter].columns();
    for (const ParameterSegment& segment : stage.parameters[parameter].segments) {
      const OwnedElements elements{segment.row_begin * columns, (segment.row_begin + segment.num_rows) * columns};
      const bool fresh = pieces.emplace(segment.tensor_index, Piece{parameter, elements, segment.tensor}).second;
      ORRERY_CHECK(fresh, "tensor {} fills two places", segment.tensor);
    }
  }
  const auto num_blocks_of = [](int64_t count) { return (count + kNormBlock - 1) / kNormBlock; };
  int64_t num_blocks = 0;
  for (const auto& [index, piece] : pieces) {
    const OwnedElements mine{std::max(piece.elements.begin, owned[static_cast<size_t>(piece.parameter)].begin), std::min(piece.elements.end, owned[static_cast<size_t>(piece.parameter)].end)};
    if (mine.begin < mine.end) {
      const int64_t before = mine.begin - piece.elements.begin;
      ORRERY_CHECK(before % kNormBlock == 0 && (mine.end == piece.elements.end || (mine.end - piece.elements.begin) % kNormBlock == 0), "{} is cut inside a norm block", piece.tensor);
      const ValueId gradient = gradient_elements(norm, piece.parameter, 0, mine, piece.tensor);
      const ValueId sums = step_value(norm, StepField::kSquaredSums, "sums." + piece.tensor, DType::kF64, num_blocks_of(mine.size()), num_blocks + before / kNormBlock);
      norm.emit(OpKind::kSquaredSums, {gradient}, NoAttributes{}, {sums});
    }
    num_blocks += num_blocks_of(piece.elements.size());
  }
  const ValueId sums = step_value(optimizer, StepField::kSquaredSums, "sums", DType::kF64, num_blocks);
  if (num_exchanged > 0) step_value(optimizer, StepField::kSquaredSums, "exchanged", DType::kF64, num_exchanged, num_blocks);
  const ValueId num_valid = step_value(optimizer, StepField::kNumValid, "num_valid", DType::kI32, 1);
  const ValueId hyper = step_value(optimizer, StepField::kHyper, "hyper", DType::kU8, sizeof(OptimizerHyper));
  const ValueId scale = step_value(optimizer, StepField::kScale, "scale", DType::kF32, 2);
  const ValueId stats = step_value(optimizer, StepField::kStats, "stats", DType::kF64, 4);
  optimizer.emit(OpKind::kOptimizerScale, {sums, num_valid, hyper}, NoAttributes{}, {scale, stats});

  const OpKind update = options.kind == OptimizerKind::kAdamW ? OpKind::kAdamW : options.kind == OptimizerKind::kSgd ? OpKind::kSgd : OpKind::kLion;
  for (int32_t parameter = 0; parameter < num_parameters; ++parameter) {
    const OwnedElements range = zero_stage >= 1 ? owned[static_cast<size_t>(parameter)] : OwnedElements{0, stage.parameters[parameter].num_elements()};
    if (range.size() == 0) continue;
    std::vector<ValueId> outputs = {weight_elements(optimizer, parameter, range)};
    if (stage.compute_dtype == DType::kBF16) outputs.push_back(state_value(optimizer, parameter, StateField::kLow, DType::kI16, range.size()));
    outputs.push_back(state_value(optimizer, parameter, StateField::kMoment1, options.moment_dtype, range.size()));
    if (num_moments(options.kind) > 1) outputs.push_back(state_value(optimizer, parameter, StateField::kMoment2, options.moment_dtype, range.size()));
    const ValueId gradient = gradient_elements(optimizer, parameter, 0, range, stage.parameters[parameter].name);
    optimizer.emit(update, {gradient, scale, hyper}, OptimizerAttributes{stage.parameters[parameter].decay}, outputs);
  }
  return num_blocks;
}

}  // namespace orrery
