#include "parallel/chunks.h"

#include <algorithm>
#include <set>

#include "base/error.h"

namespace orrery {
namespace {

// The index of an equal entry, which is added when there is none.
template <typename T, typename Same>
int32_t index_of(std::vector<T>& entries, const T& wanted, Same same) {
  const auto found = std::find_if(entries.begin(), entries.end(), [&](const T& entry) { return same(entry, wanted); });
  if (found != entries.end()) return static_cast<int32_t>(found - entries.begin());
  entries.push_back(wanted);
  return static_cast<int32_t>(entries.size()) - 1;
}

// Batch fields, parameters and constants of a stage are one value each.
ValueId known_value(const Stage& stage, const Value& value) {
  if (value.kind != ValueKind::kBatch && value.kind != ValueKind::kParameter && value.kind != ValueKind::kConstant) return kNoValue;
  const auto found = std::find_if(stage.values.begin(), stage.values.end(),
                                  [&](const Value& other) { return other.kind == value.kind && other.index == value.index && other.sub == value.sub; });
  return found == stage.values.end() ? kNoValue : static_cast<ValueId>(found - stage.values.begin());
}

bool makes_only_gradients(const Stage& stage, const Op& op) {
  return std::all_of(op.outputs.begin(), op.outputs.end(), [&](ValueId id) { return stage.value(id).kind == ValueKind::kGradient; });
}

}  // namespace

void append_chunk(Stage& rank, const Stage& chunk, bool follows) {
  ORRERY_CHECK(chunk.num_chunks() == 1 && rank.compute_dtype == chunk.compute_dtype, "a chunk of {} chunks", chunk.num_chunks());
  if (rank.values.empty()) {
    rank = chunk;
    return;
  }
  const int32_t index = rank.num_chunks();
  std::vector<int32_t> parameters, constants;
  for (const ParameterSpec& spec : chunk.parameters) {
    parameters.push_back(index_of(rank.parameters, spec, [](const ParameterSpec& a, const ParameterSpec& b) { return a.name == b.name; }));
    ORRERY_CHECK(rank.parameters[static_cast<size_t>(parameters.back())] == spec, "two parameters are called {}", spec.name);
  }
  for (const RopeTable& table : chunk.constants) constants.push_back(index_of(rank.constants, table, [](const RopeTable& a, const RopeTable& b) { return a == b; }));

  const StageBoundary own = chunk.boundaries.front();
  const StageBoundary before = rank.boundaries.back();
  const size_t first_new = rank.values.size();
  std::vector<ValueId> ids;
  for (size_t i = 0; i < chunk.values.size(); ++i) {
    const auto id = static_cast<ValueId>(i);
    if (follows && (id == own.input || id == own.input_gradient)) {
      ids.push_back(id == own.input ? before.output : before.output_gradient);
      continue;
    }
    Value value = chunk.values[i];
    if (value.kind == ValueKind::kParameter || value.kind == ValueKind::kGradient) value.index = parameters[static_cast<size_t>(value.index)];
    if (value.kind == ValueKind::kConstant) value.index = constants[static_cast<size_t>(value.index)];
    value.chunk = index;
    if (const ValueId known = known_value(rank, value); known != kNoValue) {
      ids.push_back(known);
      continue;
    }
    rank.values.push_back(std::move(value));
    ids.push_back(static_cast<ValueId>(rank.values.size()) - 1);
  }
  const auto renamed = [&](ValueId id) { return id == kNoValue ? id : ids[static_cast<size_t>(id)]; };
  for (size_t i = first_new; i < rank.values.size(); ++i) rank.values[i].view_of = renamed(rank.values[i].view_of);
  for (Block block : chunk.blocks) {
    for (Op& op : block.ops) {
      for (ValueId& id : op.inputs) id = renamed(id);
      for (ValueId& id : op.outputs) id = renamed(id);
    }
    rank.blocks.push_back(std::move(block));
  }
  rank.boundaries.push_back({renamed(own.input), renamed(own.output), renamed(own.input_gradient), renamed(own.output_gradient)});
}

void split_backward(Stage& stage) {
  const std::vector<Op>& ops = stage.block(Phase::kBackward).ops;
  const StageBoundary& boundary = stage.boundaries.front();
  // From behind: a recomputed value belongs to the weight half when every reader does. One that is made from the stage's input stays in the
  // input half, because a neighbour on this rank may have given that value's slot back by the time of the weight half.
  std::vector<bool> weight_half(ops.size(), false);
  std::set<ValueId> read_by_input_half;
  for (size_t i = ops.size(); i-- > 0;) {
    const Op& op = ops[i];
    const bool reads_input = std::count(op.inputs.begin(), op.inputs.end(), boundary.input) > 0;
    const bool for_weights_alone = op.recomputed && !reads_input && std::none_of(op.outputs.begin(), op.outputs.end(), [&](ValueId id) { return read_by_input_half.count(stage.storage(id)) > 0; });
    weight_half[i] = makes_only_gradients(stage, op) || for_weights_alone;
    if (!weight_half[i])
      for (ValueId id : op.inputs) read_by_input_half.insert(stage.storage(id));
  }
  for (size_t i = 0; i < ops.size(); ++i) stage.block(weight_half[i] ? Phase::kBackwardWeight : Phase::kBackwardInput).ops.push_back(ops[i]);
}

}  // namespace orrery
