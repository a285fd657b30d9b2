#include "parallel/optimizer_blocks.h"

#include <algorithm>
#include <array>
#include <map>

#include "base/error.h"
#include "ir/memory_map.h"
#include "ir/vjp.h"

namespace orrery {
namespace {

constexpr int64_t kNormBlock = 4096;
int64_t num_blocks_of(int64_t count) { return (count + kNormBlock - 1) / kNormBlock; }

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

constexpr std::array<const char*, kNumStateFields> kStateSuffixes = {".low", ".m", ".v", ".newest"};

// Cuts state into pieces as the updates come.
class PieceCutter {
 public:
  PieceCutter(int64_t piece_bytes, int64_t element_bytes) : piece_bytes_(std::max(piece_bytes, 2 * kNormBlock * element_bytes)), element_bytes_(element_bytes) {}

  // How many of the next `count` elements go into the piece that `op` belongs to: cut at norm blocks, like shards.
  int64_t next(int64_t count, int32_t op) {
    const auto room = [&] { return (piece_bytes_ - offload_.pieces.back().bytes) / element_bytes_ / kNormBlock * kNormBlock; };
    if (offload_.pieces.empty() || room() == 0) {
      OffloadPiece piece;
      piece.first_op = op;
      if (!offload_.pieces.empty()) piece.file_offset = offload_.pieces.back().file_offset + offload_.pieces.back().bytes;
      offload_.pieces.push_back(piece);
    }
    return std::min(count, room());
  }

  // A field of the elements that next() gave, as a value.
  Value place(Value value, OwnedElements range) {
    OffloadPiece& piece = offload_.pieces.back();
    piece.parts.push_back({value.index, static_cast<StateField>(value.sub), value.dtype, range.begin, range.end, piece.bytes});
    value.buffer_role = Value::kOffloadRole;
    value.chunk = static_cast<int32_t>(offload_.pieces.size() - 1) % kSlots;
    value.element_offset = piece.bytes / dtype_bytes(value.dtype);
    piece.bytes += align_up(range.size() * dtype_bytes(value.dtype), kArenaAlignment);
    return value;
  }
  void end_at(int32_t op) { offload_.pieces.back().last_op = op; }

  StateOffload finish() {
    for (const OffloadPiece& piece : offload_.pieces) offload_.slots.bytes = std::max(offload_.slots.bytes, piece.bytes);
    offload_.slots.count = std::min(kSlots, static_cast<int32_t>(offload_.pieces.size()));
    return std::move(offload_);
  }

 private:
  static constexpr int32_t kSlots = 3;  // one is read ahead, one updated, one written behind
  int64_t piece_bytes_, element_bytes_;
  StateOffload offload_;
};

// `count` elements of what this rank keeps of a parameter; where they are is the memory map's part.
Value state_value(int32_t parameter, StateField field, DType dtype, int64_t count, const std::string& name) {
  Value value;
  value.name = name + kStateSuffixes[static_cast<size_t>(field)];
  value.dtype = dtype;
  value.shape = {{count}};
  value.kind = ValueKind::kState;
  value.index = parameter;
  value.sub = static_cast<int32_t>(field);
  return value;
}

// Elements of a parameter's gradient as a vector; `shard`: of which this rank has those from `owned` on.
ValueId gradient_elements(BlockBuilder& builder, int32_t parameter, int32_t accumulator, int32_t chunk, OwnedElements range, OwnedElements owned, bool shard, const std::string& name) {
  Value value;
  value.name = "d" + name;
  value.dtype = DType::kF32;
  value.shape = {{range.size()}};
  value.kind = ValueKind::kGradient;
  value.index = parameter;
  value.sub = accumulator;
  value.element_offset = range.begin - (shard ? owned.begin : 0);
  value.buffer_role = shard ? Value::kShardRole : 0;
  value.chunk = chunk;
  return builder.add_value(std::move(value));
}

// Elements of the compute weight as a vector, for elementwise kernels.
ValueId weight_elements(BlockBuilder& builder, int32_t parameter, OwnedElements range, OwnedElements owned, bool shard) {
  Value value;
  value.name = builder.stage().parameters[parameter].name + ".flat";
  value.dtype = builder.stage().compute_dtype;
  value.shape = {{range.size()}};
  value.kind = ValueKind::kParameter;
  value.index = parameter;
  value.element_offset = range.begin - (shard ? owned.begin : 0);
  value.buffer_role = shard ? Value::kShardRole : 0;
  return builder.add_value(std::move(value));
}

void zero_before_rows_are_added(std::vector<Op>& ops) {
  for (size_t i = 0; i < ops.size(); ++i)
    if (ops[i].kind == OpKind::kEmbeddingGrad) ops.insert(ops.begin() + static_cast<ptrdiff_t>(i++), Op{OpKind::kZero, {}, {ops[i].outputs[0]}, NoAttributes{}, ops[i].layer});
}

}  // namespace

int num_moments(OptimizerKind kind) { return kind == OptimizerKind::kAdamW ? 2 : 1; }

NormBlocks norm_blocks(const ModelConfig& model, const ParallelContext& parallel) {
  NormBlocks blocks;
  blocks.parallel = parallel;
  for (const LogicalTensor& tensor : logical_tensors(model)) {
    const int64_t count = tensor.num_elements();
    int64_t room = num_blocks_of(count);
    if (parallel.tensor_size > 1) {
      // Parts differ by a row at most, and may be three, of a fused q, k, v, that each begin a block. Keys and values are cut into whole heads.
      constexpr int64_t kMostParts = 3;
      const int64_t longest_row = *std::max_element(tensor.shape.begin(), tensor.shape.end());
      const int64_t num_cuts = tensor.shape.front() == model.kv_size() ? std::min(parallel.tensor_size, model.num_kv_heads) : parallel.tensor_size;
      room = num_blocks_of(count / num_cuts + longest_row) + kMostParts;
    }
    blocks.first.push_back(blocks.count);
    blocks.num_elements.push_back(count);
    blocks.rank_blocks.push_back(room);
    blocks.count += room * parallel.tensor_size;
  }
  return blocks;
}

StateOffload build_optimizer_blocks(Stage& stage, const OptimizerBlockOptions& options, const NormBlocks& blocks, const RankUpdate& rank, int64_t num_exchanged) {
  const std::vector<OwnedElements>&owned = rank.owned, &updated = rank.updated;
  BlockBuilder norm(stage, Phase::kNorm), optimizer(stage, Phase::kOptimizer);
  for (int32_t chunk = 0; chunk < stage.num_chunks(); ++chunk)
    for (Phase phase : {Phase::kBackward, Phase::kBackwardInput, Phase::kBackwardWeight}) zero_before_rows_are_added(stage.block(phase, chunk).ops);

  // What a chunk sums, it merges; an accumulator that is received comes as one sum.
  const GradientLayout layout = gradient_layout(stage);
  const auto num_parameters = static_cast<int32_t>(stage.parameters.size());
  for (int32_t accumulator = 0; accumulator < 2 && !rank.gradient_shards; ++accumulator)
    for (int32_t parameter = 0; parameter < num_parameters; ++parameter) {
      const int64_t offset = layout.offset[static_cast<size_t>(parameter)][static_cast<size_t>(accumulator)];
      const int32_t chunk = layout.chunk[static_cast<size_t>(parameter)][static_cast<size_t>(accumulator)];
      if (offset < 0 || offset >= layout.chunks[static_cast<size_t>(chunk)].num_summed) continue;
      const ValueId source = gradient_value(stage, parameter, accumulator, 1), destination = gradient_value(stage, parameter, accumulator, 0);
      stage.values[static_cast<size_t>(source)].chunk = chunk;
      stage.block(Phase::kMerge, chunk).ops.push_back({OpKind::kAccumulate, {source}, {destination}, NoAttributes{}});
    }
  const auto gradient = [&](BlockBuilder& builder, int32_t parameter, int32_t accumulator, OwnedElements range, const std::string& name) {
    return gradient_elements(builder, parameter, accumulator, layout.chunk[static_cast<size_t>(parameter)][static_cast<size_t>(accumulator)], range, owned[static_cast<size_t>(parameter)],
                             rank.gradient_shards, name);
  };

  // The two uses of a tied matrix meet after the lane tree (NUMERICS rule 6).
  for (int32_t parameter = 0; parameter < num_parameters; ++parameter)
    for (int32_t accumulator = 1; accumulator < stage.parameters[parameter].num_accumulators; ++accumulator) {
      const OwnedElements range = owned[static_cast<size_t>(parameter)];
      const std::string& name = stage.parameters[parameter].name;
      if (range.size() == 0) continue;
      const ValueId first = gradient(norm, parameter, 0, range, name), second = gradient(norm, parameter, accumulator, range, name);
      norm.emit(OpKind::kAccumulate, {second}, NoAttributes{}, {first});
    }

  // What several ranks have parts of, in runs of rows with the same ranks.
  for (int32_t parameter = 0; parameter < num_parameters; ++parameter) {
    const std::vector<ParameterSegment>& segments = stage.parameters[static_cast<size_t>(parameter)].segments;
    const int64_t columns = stage.parameters[static_cast<size_t>(parameter)].columns();
    for (size_t i = 0, next = 0; i < segments.size(); i = next) {
      for (next = i + 1; next < segments.size() && segments[next].num_summands == segments[i].num_summands; ++next) {}
      const ParameterSegment& last = segments[next - 1];
      const OwnedElements& mine = owned[static_cast<size_t>(parameter)];
      const OwnedElements range{std::max(mine.begin, segments[i].row_begin * columns), std::min(mine.end, (last.row_begin + last.num_rows) * columns)};
      if (segments[i].num_summands == 1 || range.begin >= range.end) continue;
      const ValueId sum = gradient(norm, parameter, 0, range, stage.parameters[static_cast<size_t>(parameter)].name);
      norm.emit(OpKind::kAllReduce, {sum}, GroupAttributes{segments[i].num_summands, 1}, {sum});
    }
  }

  // Norm, in model order of the logical tensors.
  struct Piece {
    int32_t parameter;
    OwnedElements elements;  // of the segment in the parameter
    std::string tensor;
    bool counts;  // here, not on another holder
  };
  std::map<std::pair<int32_t, int64_t>, Piece> pieces;  // by tensor and first row
  std::map<int32_t, int64_t> held;                      // elements of each tensor on this rank
  for (int32_t parameter = 0; parameter < num_parameters; ++parameter) {
    const int64_t columns = stage.parameters[parameter].columns();
    for (const ParameterSegment& segment : stage.parameters[parameter].segments) {
      const OwnedElements elements{segment.row_begin * columns, (segment.row_begin + segment.num_rows) * columns};
      const bool fresh = pieces.emplace(std::pair(segment.tensor_index, segment.tensor_row_begin), Piece{parameter, elements, segment.tensor, segment.holder == 0}).second;
      ORRERY_CHECK(fresh, "tensor {} fills two places", segment.tensor);
      held[segment.tensor_index] += elements.size();
    }
  }
  std::map<int32_t, int64_t> num_before;  // blocks of a tensor's earlier segments
  for (const auto& [place, piece] : pieces) {
    const int32_t index = place.first;
    const auto tensor = static_cast<size_t>(index);
    const bool is_part = held[index] < blocks.num_elements[tensor];
    const int64_t first = blocks.first[tensor] + (is_part ? blocks.parallel.tensor_rank * blocks.rank_blocks[tensor] : 0) + num_before[index];
    num_before[index] += num_blocks_of(piece.elements.size());
    ORRERY_CHECK(!is_part || num_before[index] <= blocks.rank_blocks[tensor], "{} has {} norm blocks here", piece.tensor, num_before[index]);
    if (!rank.takes_norm || !piece.counts) continue;
    const OwnedElements mine{std::max(piece.elements.begin, owned[static_cast<size_t>(piece.parameter)].begin), std::min(piece.elements.end, owned[static_cast<size_t>(piece.parameter)].end)};
    if (mine.begin < mine.end) {
      const int64_t before = mine.begin - piece.elements.begin;
      ORRERY_CHECK(before % kNormBlock == 0 && (mine.end == piece.elements.end || (mine.end - piece.elements.begin) % kNormBlock == 0), "{} is cut inside a norm block", piece.tensor);
      const ValueId elements = gradient(norm, piece.parameter, 0, mine, piece.tensor);
      const ValueId sums = step_value(norm, StepField::kSquaredSums, "sums." + piece.tensor, DType::kF64, num_blocks_of(mine.size()), first + before / kNormBlock);
      norm.emit(OpKind::kSquaredSums, {elements}, NoAttributes{}, {sums});
    }
  }
  const ValueId sums = step_value(optimizer, StepField::kSquaredSums, "sums", DType::kF64, blocks.count);
  if (num_exchanged > 0) step_value(optimizer, StepField::kSquaredSums, "exchanged", DType::kF64, num_exchanged, blocks.count);
  const ValueId num_valid = step_value(optimizer, StepField::kNumValid, "num_valid", DType::kI32, 1);
  const ValueId hyper = step_value(optimizer, StepField::kHyper, "hyper", DType::kU8, sizeof(OptimizerHyper));
  const ValueId scale = step_value(optimizer, StepField::kScale, "scale", DType::kF32, 2);
  const ValueId stats = step_value(optimizer, StepField::kStats, "stats", DType::kF64, 4);
  optimizer.emit(OpKind::kOptimizerScale, {sums, num_valid, hyper}, NoAttributes{}, {scale, stats});

  struct Field {
    StateField field;
    DType dtype;
  };
  const bool delayed = options.gradient_delay > 0;
  std::vector<Field> fields;
  if (options.newest_apart()) fields.push_back({StateField::kNewest, stage.compute_dtype});
  if (stage.compute_dtype == DType::kBF16) fields.push_back({StateField::kLow, DType::kI16});
  fields.push_back({StateField::kMoment1, options.moment_dtype});
  if (num_moments(options.kind) > 1) fields.push_back({StateField::kMoment2, options.moment_dtype});
  int64_t element_bytes = 0;
  // Newest weights that work of the next step reads stay in the arena.
  const auto stays = [&](const Field& field) { return options.newest_whole && field.field == StateField::kNewest; };
  for (const Field& field : fields) element_bytes += stays(field) ? 0 : dtype_bytes(field.dtype);
  const bool offloads = options.offload_piece_bytes > 0;
  PieceCutter cutter(options.offload_piece_bytes, element_bytes);
  const auto num_ops = [&] { return static_cast<int32_t>(stage.block(Phase::kOptimizer).ops.size()); };

  const OpKind update = options.kind == OptimizerKind::kAdamW ? OpKind::kAdamW : options.kind == OptimizerKind::kSgd ? OpKind::kSgd : OpKind::kLion;
  for (int32_t parameter = 0; parameter < num_parameters; ++parameter) {
    const OwnedElements whole = updated[static_cast<size_t>(parameter)];
    const std::string& name = stage.parameters[parameter].name;
    const auto newest_value = [&](OwnedElements range) {
      Value value = state_value(parameter, StateField::kNewest, stage.compute_dtype, range.size(), name);
      value.element_offset = range.begin;
      return optimizer.add_value(std::move(value));
    };
    if (options.newest_whole) {
      const OwnedElements all{0, stage.parameters[static_cast<size_t>(parameter)].num_elements()};
      const ValueId weight = weight_elements(optimizer, parameter, all, all, false);
      optimizer.emit(OpKind::kCopy, {newest_value(all)}, NoAttributes{}, {weight});
    }
    for (OwnedElements range{whole.begin, whole.begin}; range.begin < whole.end; range.begin = range.end) {
      range.end = range.begin + (offloads ? cutter.next(whole.end - range.begin, num_ops()) : whole.size());
      const auto weight = [&] { return weight_elements(optimizer, parameter, range, owned[static_cast<size_t>(parameter)], rank.weight_shards); };
      std::vector<ValueId> state;
      for (const Field& field : fields) {
        if (stays(field)) {
          state.push_back(newest_value(range));
          continue;
        }
        Value value = state_value(parameter, field.field, field.dtype, range.size(), name);
        state.push_back(optimizer.add_value(offloads ? cutter.place(std::move(value), range) : std::move(value)));
      }
      if (delayed && !options.newest_whole) optimizer.emit(OpKind::kCopy, {state[0]}, NoAttributes{}, {weight()});
      if (!options.newest_apart()) state.insert(state.begin(), weight());
      const ValueId elements = gradient(optimizer, parameter, 0, range, name);
      optimizer.emit(update, {elements, scale, hyper}, OptimizerAttributes{stage.parameters[parameter].decay}, state);
      if (offloads) cutter.end_at(num_ops() - 1);
    }
  }
  return cutter.finish();
}

}  // namespace orrery
