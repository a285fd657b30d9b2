#include "runtime/executor.h"

#include <algorithm>

#include "backend/cpu/gemm_kernels.h"
#include "backend/cpu/quantized_linear.h"
#include "ir/op_table.h"

namespace orrery {
namespace {

constexpr size_t kMaxOperands = 16;

int64_t actual_extent(const Stage& stage, const Dim& dim, const ActionBinding& binding) {
  switch (dim.dynamic) {
    case DynamicDim::kStatic: return dim.bound;
    case DynamicDim::kTokens: return binding.num_tokens;
    case DynamicDim::kTokenShare: return binding.num_tokens / stage.parallel.tensor_size;
    case DynamicDim::kAllTokens: return binding.num_tokens * stage.parallel.context_size;
    case DynamicDim::kSegments: return binding.num_segments;
    case DynamicDim::kSegmentsPlusOne: return binding.num_segments + 1;
    case DynamicDim::kRows: return binding.num_rows;
  }
  return 0;
}

// Shape and strides of a value; the address is the caller's.
TensorView view_at_bounds(const Stage& stage, const Value& value) {
  TensorView view;
  view.dtype = value.dtype;
  view.num_dims = static_cast<int8_t>(value.shape.size());
  ORRERY_CHECK(value.shape.size() <= view.dims.size(), "{} has {} dimensions", value.name, value.shape.size());
  for (size_t i = 0; i < value.shape.size(); ++i) view.dims[i] = value.shape[i].bound;
  view.row_stride = value.view_of == kNoValue ? view.row_width() : stage.value(value.view_of).shape.back().bound;
  return view;
}

TensorView shaped_view(const Stage& stage, const Value& value, const ActionBinding& binding) {
  TensorView view = view_at_bounds(stage, value);
  for (size_t i = 0; i < value.shape.size(); ++i) {
    view.dims[i] = actual_extent(stage, value.shape[i], binding);
    ORRERY_CHECK(view.dims[i] <= value.shape[i].bound, "{}: extent {} above its bound {}", value.name, view.dims[i], value.shape[i].bound);
  }
  if (value.view_of == kNoValue) view.row_stride = view.row_width();
  return view;
}

ActionBinding bounds_of(const Stage& stage, int64_t sequence_tokens) {
  ActionBinding binding;
  for (const Value& value : stage.values)
    for (const Dim& dim : value.shape) switch (dim.dynamic) {
        case DynamicDim::kStatic:
        case DynamicDim::kTokenShare:
        case DynamicDim::kAllTokens: break;
        case DynamicDim::kTokens: binding.num_tokens = std::max(binding.num_tokens, dim.bound); break;
        case DynamicDim::kSegments: binding.num_segments = std::max(binding.num_segments, dim.bound); break;
        case DynamicDim::kSegmentsPlusOne: binding.num_segments = std::max(binding.num_segments, dim.bound - 1); break;
        case DynamicDim::kRows: binding.num_rows = std::max(binding.num_rows, dim.bound); break;
      }
  if (sequence_tokens > 0) {
    binding.fold.sequence_tokens = sequence_tokens / stage.parallel.context_size;
    binding.fold.num_sequences = binding.num_tokens / binding.fold.sequence_tokens;
  }
  return binding;
}

// The rows of an op may be all tokens of a sequence, this rank's, or its share of those.
GradFold fold_of(GradFold fold, std::span<const TensorView> inputs) {
  if (fold.num_sequences > 0 && !inputs.empty()) fold.sequence_tokens = inputs[0].rows() / fold.num_sequences;
  return fold;
}

// Whether the address of a value is the same under every binding. What has no memory, because no op here uses it, has none.
bool has_one_address(const Stage& stage, ValueId id, const MemoryMap& map) {
  const Value& value = stage.value(id);
  switch (value.kind) {
    case ValueKind::kActivation: return map.num_slots == 1 && map.activation(stage.storage(id), 0) >= 0;
    case ValueKind::kParameter: return (value.sub == 0 ? map.parameter_offset : map.packed_offset)[static_cast<size_t>(value.index)] >= 0;
    case ValueKind::kKvCache: return true;
    default: return false;
  }
}

// For each op the weights of the next packed product, where they come in equal units; after the last comes the first, of the next pass over the block.
std::vector<ReadAhead> next_weights(const Stage& stage, const MemoryMap& map, const Arena& arena, const Block& block) {
  std::vector<ReadAhead> next(block.ops.size());
  ReadAhead stream;
  for (size_t i = 2 * block.ops.size(); i-- > 0;) {
    const Op& op = block.ops[i % block.ops.size()];
    next[i % block.ops.size()] = stream;
    if (op.kind != OpKind::kLinearPacked) continue;
    const auto& shape = std::get<PackedLinearAttributes>(op.attributes);
    const std::byte* packed = arena.data() + map.packed_offset[static_cast<size_t>(stage.value(op.inputs[1]).index)];
    stream = shape.segments.empty() ? packed_weight_stream(stage.compute_dtype, shape.num_columns, stage.value(op.inputs[0]).shape.back().bound, packed)
                                    : quantized_weight_stream(shape, packed);
  }
  return next;
}

}  // namespace

int64_t op_workspace_bytes(const DeviceSpec& device, const Stage& stage, const Op& op, int64_t sequence_tokens) {
  const KernelEntry* kernel = is_collective(op.kind) ? nullptr : &cpu_kernel(op.kind, stage.compute_dtype);
  if (kernel != nullptr && !kernel->workspace_bytes) return 0;
  const ActionBinding binding = bounds_of(stage, sequence_tokens);
  std::vector<TensorView> inputs, outputs;
  for (ValueId id : op.inputs) inputs.push_back(shaped_view(stage, stage.value(id), binding));
  for (ValueId id : op.outputs) outputs.push_back(shaped_view(stage, stage.value(id), binding));
  OpCall call;
  call.kind = op.kind;
  call.inputs = inputs;
  call.outputs = outputs;
  call.attributes = &op.attributes;
  const GradFold fold = fold_of(binding.fold, inputs);
  call.fold = &fold;
  return kernel != nullptr ? kernel->workspace_bytes(device, call) : op_collective_workspace_bytes(device, call, group_of(stage, op));
}

Executor::Executor(const Stage& stage, const MemoryMap& map, const Arena& arena, const KernelContext& context, int64_t sequence_tokens)
    : stage_(stage), map_(map), arena_(arena), context_(context), sequence_tokens_(sequence_tokens) {
  ORRERY_CHECK(arena.bytes() == map.total_bytes, "arena of {} bytes for a map of {}", arena.bytes(), map.total_bytes);
  kernels_.resize(stage.blocks.size());
  times_.resize(stage.blocks.size());
  for (size_t block = 0; block < stage.blocks.size(); ++block) {
    for (const Op& op : stage.blocks[block].ops) {
      ORRERY_CHECK(op.inputs.size() <= kMaxOperands && op.outputs.size() <= kMaxOperands, "{} has too many operands", op_name(op.kind));
      kernels_[block].push_back(is_collective(op.kind) ? nullptr : &cpu_kernel(op.kind, stage.compute_dtype));
    }
    times_[block].resize(stage.blocks[block].ops.size());
    next_weights_.push_back(next_weights(stage, map, arena, stage.blocks[block]));
  }
  for (size_t id = 0; id < stage.values.size(); ++id) {
    const Value& value = stage.values[id];
    Resolved resolved;
    resolved.view = view_at_bounds(stage, value);
    if (!value.shape.empty()) resolved.rows = value.shape[0];
    resolved.dynamic_inside = std::any_of(value.shape.begin() + !value.shape.empty(), value.shape.end(), [](const Dim& dim) { return dim.dynamic != DynamicDim::kStatic; });
    if (map.newest_whole && value.kind == ValueKind::kParameter && value.sub == 0)
      resolved.newest = arena.data() + map.state_offset[static_cast<size_t>(value.index)][static_cast<size_t>(StateField::kNewest)] + value.element_offset * dtype_bytes(value.dtype);
    if (has_one_address(stage, static_cast<ValueId>(id), map)) resolved.view.data = address(static_cast<ValueId>(id), {});
    resolved_.push_back(resolved);
  }
}

void Executor::set_groups(std::vector<OpGroup> groups) {
  groups_ = std::move(groups);
  op_groups_.resize(stage_.blocks.size());
  for (size_t block = 0; block < stage_.blocks.size(); ++block)
    for (const Op& op : stage_.blocks[block].ops) {
      const auto found = is_collective(op.kind) ? std::find_if(groups_.begin(), groups_.end(), [&](const OpGroup& group) { return group.where() == group_of(stage_, op); }) : groups_.end();
      ORRERY_CHECK(found != groups_.end() || !is_collective(op.kind), "{} without its group", op_name(op.kind));
      op_groups_[block].push_back(found == groups_.end() ? nullptr : &*found);
    }
}

Executor::~Executor() {
  for (const auto& block : next_weights_)
    for (const ReadAhead& next : block)
      if (next.data != nullptr) {
        context_.pool->set_read_ahead({});
        context_.pool->run([](int, int) {});
        return;
      }
}

TensorView Executor::view(ValueId id, const ActionBinding& binding) const {
  const Resolved& resolved = resolved_[static_cast<size_t>(id)];
  TensorView view = resolved.view;
  if (resolved.dynamic_inside) {
    view = shaped_view(stage_, stage_.value(id), binding);
    view.data = resolved.view.data;
  } else if (resolved.rows.dynamic != DynamicDim::kStatic) {
    view.dims[0] = actual_extent(stage_, resolved.rows, binding);
    ORRERY_CHECK(view.dims[0] <= resolved.rows.bound, "{}: extent {} above its bound {}", stage_.value(id).name, view.dims[0], resolved.rows.bound);
  }
  if (binding.newest_weights && resolved.newest != nullptr) view.data = resolved.newest;
  if (view.data == nullptr) view.data = address(id, binding);
  return view;
}

std::byte* Executor::address(ValueId id, const ActionBinding& binding) const {
  const Value& value = stage_.value(id);
  const int64_t element = dtype_bytes(value.dtype);
  int64_t offset = -1;
  switch (value.kind) {
    case ValueKind::kBatch: {
      offset = map_.batch_offset[value.index];
      if (offset < 0) break;
      offset += binding.batch_copy * map_.batch_bytes[value.index];
      const bool token_shaped = !value.shape.empty() && value.shape[0].dynamic == DynamicDim::kTokens;
      offset += token_shaped ? binding.first_token * element : binding.micro_batch * align_up(value.bytes(), kArenaAlignment);
      break;
    }
    case ValueKind::kParameter: offset = value.buffer_role == Value::kShardRole ? map_.parameter_shard_offset[value.index] : value.sub == 0 ? map_.parameter_offset[value.index] : map_.packed_offset[value.index]; break;
    case ValueKind::kConstant: offset = map_.constant_offset[value.index]; break;
    case ValueKind::kActivation: {
      const ValueId storage = stage_.storage(id);
      offset = map_.activation(storage, binding.slots.empty() ? 0 : binding.slots[static_cast<size_t>(stage_.value(storage).chunk)]);
      break;
    }
    case ValueKind::kGradient:
      if (value.buffer_role == Value::kShardRole) {
        offset = map_.gradient_shard_offset[value.index][value.sub];
        break;
      }
      offset = map_.gradient_buffer_offset[static_cast<size_t>(value.chunk)][static_cast<size_t>(value.buffer_role == 0 ? binding.gradient_buffer : binding.source_buffer)] +
               map_.gradient_offset[value.index][value.sub];
      break;
    case ValueKind::kState: offset = value.buffer_role == Value::kOffloadRole ? map_.offload_slot_offset[static_cast<size_t>(value.chunk)] : map_.state_offset[value.index][value.sub]; break;
    case ValueKind::kStep: offset = map_.step_offset[value.index]; break;
    case ValueKind::kKvCache: offset = map_.kv_offset[value.index][value.sub]; break;
  }
  ORRERY_CHECK(offset >= 0, "{} ({}) has no memory in the map", value.name, value_kind_name(value.kind));
  return arena_.data() + offset + value.element_offset * element;
}

void Executor::run(Phase phase, const ActionBinding& binding, std::atomic<int64_t>* done, OpRange range) {
  const size_t block = Stage::block_index(phase, binding.chunk);
  const std::vector<Op>& ops = stage_.blocks[block].ops;
  std::array<TensorView, kMaxOperands> inputs, outputs;
  // Workspaces were planned for segments of at most sequence_tokens_, so a binding without folds says so too.
  GradFold bound = binding.fold;
  if (bound.sequence_tokens == 0) bound.sequence_tokens = sequence_tokens_;
  auto before = std::chrono::steady_clock::now();
  for (size_t i = range.begin; i < std::min(range.end, ops.size()); ++i) {
    const Op& op = ops[i];
    for (size_t k = 0; k < op.inputs.size(); ++k) inputs[k] = view(op.inputs[k], binding);
    for (size_t k = 0; k < op.outputs.size(); ++k) outputs[k] = view(op.outputs[k], binding);
    OpCall call;
    call.kind = op.kind;
    call.inputs = {inputs.data(), op.inputs.size()};
    call.outputs = {outputs.data(), op.outputs.size()};
    call.attributes = &op.attributes;
    const GradFold fold = fold_of(bound, call.inputs);
    call.fold = &fold;
    call.next_weights = next_weights_[block][i];
    const int64_t workspace = map_.workspace_bytes[block][i];
    if (workspace > 0) call.workspace = {arena_.data() + map_.workspace_offset[block][i], static_cast<size_t>(workspace)};
    if (kernels_[block][i] != nullptr) {
      kernels_[block][i]->run(context_, call);
    } else {
      ORRERY_CHECK(!op_groups_.empty(), "{} before the groups are known", op_name(op.kind));
      op_groups_[block][i]->run(context_, call, phase == Phase::kEval ? "evaluate" : op_name(op.kind));
    }
    const auto after = std::chrono::steady_clock::now();
    times_[block][i].seconds += std::chrono::duration<double>(after - before).count();
    ++times_[block][i].calls;
    before = after;
    if (done != nullptr) {
      done->fetch_add(1, std::memory_order_release);
      done->notify_all();
    }
  }
}

void Executor::reset_op_times() {
  for (auto& block : times_)
    for (OpTime& time : block) time = {};
}

}  // namespace orrery
