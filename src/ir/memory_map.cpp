#include "ir/memory_map.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <unordered_map>

#include "base/error.h"

namespace orrery {

std::string_view memory_class_name(MemoryClass memory_class) {
  constexpr std::array<std::string_view, static_cast<size_t>(MemoryClass::kCount)> kNames = {
      "weights", "master low halves", "gradients", "moments", "constants", "batch", "step scalars", "kv cache", "packed weights", "checkpoint buffer", "activations"};
  return kNames[static_cast<size_t>(memory_class)];
}

GradientLayout gradient_layout(const Stage& stage) {
  GradientLayout layout;
  layout.offset.assign(stage.parameters.size(), {-1, -1});
  for (int accumulator = 0; accumulator < 2; ++accumulator)
    for (size_t i = 0; i < stage.parameters.size(); ++i) {
      if (accumulator >= stage.parameters[i].num_accumulators) continue;
      layout.offset[i][static_cast<size_t>(accumulator)] = layout.num_elements;
      layout.num_elements += align_up(stage.parameters[i].num_elements(), kArenaAlignment / 4);
    }
  return layout;
}

namespace {

bool overlap_in_time(const PlacedBuffer& a, const PlacedBuffer& b) { return a.begin < b.end && b.begin < a.end; }

// Greedy best fit: each buffer goes into the smallest gap that holds it between the placed buffers alive at the same time.
int64_t place_in_order(std::vector<PlacedBuffer>& buffers, const std::vector<size_t>& order) {
  std::vector<size_t> by_offset;  // placed so far, ascending
  int64_t height = 0;
  for (size_t index : order) {
    PlacedBuffer& buffer = buffers[index];
    int64_t best_offset = -1, best_gap = std::numeric_limits<int64_t>::max(), top = 0;
    for (size_t other_index : by_offset) {
      const PlacedBuffer& other = buffers[other_index];
      if (!overlap_in_time(buffer, other)) continue;
      const int64_t gap = other.offset - top;
      if (gap >= buffer.bytes && gap < best_gap) {
        best_gap = gap;
        best_offset = top;
      }
      top = std::max(top, other.offset + other.bytes);
    }
    buffer.offset = best_offset >= 0 ? best_offset : top;
    height = std::max(height, buffer.offset + buffer.bytes);
    by_offset.insert(std::upper_bound(by_offset.begin(), by_offset.end(), index,
                                      [&](size_t a, size_t b) { return buffers[a].offset < buffers[b].offset; }),
                     index);
  }
  return height;
}

}  // namespace

int64_t place_buffers(std::vector<PlacedBuffer>& buffers) {
  using Less = bool (*)(const PlacedBuffer&, const PlacedBuffer&);
  constexpr Less kOrders[] = {
      [](const PlacedBuffer& a, const PlacedBuffer& b) { return a.bytes > b.bytes; },
      [](const PlacedBuffer& a, const PlacedBuffer& b) { return a.end - a.begin > b.end - b.begin; },
      [](const PlacedBuffer& a, const PlacedBuffer& b) {
        return static_cast<double>(a.bytes) * static_cast<double>(a.end - a.begin) > static_cast<double>(b.bytes) * static_cast<double>(b.end - b.begin);
      },
      [](const PlacedBuffer& a, const PlacedBuffer& b) { return a.begin < b.begin; },
  };
  std::vector<PlacedBuffer> best;
  int64_t best_height = std::numeric_limits<int64_t>::max();
  for (Less less : kOrders) {
    std::vector<size_t> order(buffers.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return less(buffers[a], buffers[b]); });
    const int64_t height = place_in_order(buffers, order);
    if (height < best_height) {
      best_height = height;
      best = buffers;
    }
  }
  buffers = std::move(best);
  return buffers.empty() ? 0 : best_height;
}

int64_t live_bytes_lower_bound(const std::vector<PlacedBuffer>& buffers) {
  std::map<int64_t, int64_t> change;
  for (const PlacedBuffer& buffer : buffers) {
    change[buffer.begin] += buffer.bytes;
    change[buffer.end] -= buffer.bytes;
  }
  int64_t live = 0, most = 0;
  for (const auto& [time, bytes] : change) most = std::max(most, live += bytes);
  return most;
}

namespace {

class Layout {
 public:
  Layout(const Stage& stage, const Schedule& schedule, const MemoryMapOptions& options, const WorkspaceBytes& workspace_bytes)
      : stage_(stage), schedule_(schedule), options_(options), workspace_bytes_(workspace_bytes) {}

  MemoryMap run() {
    parameters();
    gradients();
    constants();
    batch();
    step_fields();
    kv_cache();
    if (options_.checkpoint_buffer_bytes > 0) map_.checkpoint_offset = take(options_.checkpoint_buffer_bytes, MemoryClass::kCheckpoint);
    activations();
    map_.total_bytes = align_up(next_, kArenaGranule);
    return std::move(map_);
  }

 private:
  int64_t take(int64_t bytes, MemoryClass memory_class) {
    const int64_t offset = next_;
    const int64_t padded = align_up(bytes, kArenaAlignment);
    next_ += padded;
    map_.class_bytes[static_cast<size_t>(memory_class)] += padded;
    return offset;
  }

  bool trains() const { return !stage_.block(Phase::kOptimizer).ops.empty(); }

  // All weights, then all low halves, then each moment: one contiguous region a class, in model order.
  void parameters() {
    const size_t count = stage_.parameters.size();
    map_.parameter_offset.assign(count, -1);
    map_.state_offset.assign(count, {-1, -1, -1});
    std::vector<bool> plain(count, false);
    map_.packed_offset.assign(count, -1);
    for (const Block& block : stage_.blocks)
      for (const Op& op : block.ops)
        for (ValueId id : op.inputs) {
          const Value& value = stage_.value(id);
          if (value.kind != ValueKind::kParameter) continue;
          if (value.sub == 0)
            plain[static_cast<size_t>(value.index)] = true;
          else if (map_.packed_offset[static_cast<size_t>(value.index)] < 0)
            map_.packed_offset[static_cast<size_t>(value.index)] = take(value.bytes(), MemoryClass::kPackedWeights);
        }
    // A weight that only packed products read exists in its packed form alone.
    for (size_t i = 0; i < count; ++i)
      if (plain[i]) map_.parameter_offset[i] = take(stage_.parameters[i].num_elements() * dtype_bytes(stage_.compute_dtype), MemoryClass::kWeights);
    map_.state_range = options_.state_range;
    if (map_.state_range.empty())
      for (const ParameterSpec& spec : stage_.parameters) map_.state_range.push_back({0, spec.num_elements()});
    if (!trains()) return;
    const auto take_state = [&](StateField field, DType dtype, MemoryClass memory_class) {
      for (size_t i = 0; i < count; ++i)
        if (const int64_t kept = map_.state_range[i][1] - map_.state_range[i][0]; kept > 0)
          map_.state_offset[i][static_cast<size_t>(field)] = take(kept * dtype_bytes(dtype), memory_class);
    };
    if (stage_.compute_dtype == DType::kBF16) take_state(StateField::kLow, DType::kI16, MemoryClass::kMasterLow);
    for (StateField field : {StateField::kMoment1, StateField::kMoment2})
      if (static_cast<int>(field) - static_cast<int>(StateField::kMoment1) < options_.num_moments) take_state(field, options_.moment_dtype, MemoryClass::kMoments);
  }

  void gradients() {
    if (!trains()) return;
    const GradientLayout layout = gradient_layout(stage_);
    for (const auto& offset : layout.offset) map_.gradient_offset.push_back({offset[0] < 0 ? -1 : offset[0] * 4, offset[1] < 0 ? -1 : offset[1] * 4});
    map_.gradient_buffer_bytes = layout.num_elements * 4;
    for (int buffer = 0; buffer < schedule_.num_gradient_buffers; ++buffer)
      map_.gradient_buffer_offset.push_back(take(map_.gradient_buffer_bytes, MemoryClass::kGradients));
  }

  void constants() {
    for (const RopeTable& table : stage_.constants)
      map_.constant_offset.push_back(take(table.max_positions * table.rotary_dim * 4, MemoryClass::kConstants));
  }

  // Token-shaped fields hold the whole step; cu_seqlens and the serving fields one slice a micro-batch.
  void batch() {
    map_.batch_offset.fill(-1);
    const int64_t num_micro_batches = std::max<int64_t>(1, static_cast<int64_t>(schedule_.micro_batches.size()));
    for (const Value& value : stage_.values) {
      if (value.kind != ValueKind::kBatch) continue;
      const bool whole_step = !value.shape.empty() && value.shape[0].dynamic == DynamicDim::kTokens && options_.batch_sequences > 0;
      const int64_t bytes = whole_step ? options_.batch_sequences * options_.sequence_tokens * dtype_bytes(value.dtype)
                                       : num_micro_batches * align_up(value.bytes(), kArenaAlignment);
      map_.batch_bytes[value.index] = align_up(bytes, kArenaAlignment);
      map_.batch_offset[value.index] = take(map_.batch_bytes[value.index] * options_.batch_copies, MemoryClass::kBatch);
    }
  }

  void step_fields() {
    map_.step_offset.fill(-1);
    std::array<int64_t, 5> bytes{};
    for (const Value& value : stage_.values)
      if (value.kind == ValueKind::kStep)
        bytes[value.index] = std::max(bytes[value.index], value.element_offset * dtype_bytes(value.dtype) + value.bytes());
    for (size_t field = 0; field < bytes.size(); ++field)
      if (bytes[field] > 0) map_.step_offset[field] = take(bytes[field], MemoryClass::kStep);
  }

  void kv_cache() {
    for (const Value& value : stage_.values) {
      if (value.kind != ValueKind::kKvCache) continue;
      if (map_.kv_offset.size() <= static_cast<size_t>(value.index)) map_.kv_offset.resize(value.index + 1, {-1, -1});
      map_.kv_offset[value.index][value.sub] = take(value.bytes(), MemoryClass::kKvCache);
    }
  }

  // One activation slot: forward and backward of a micro-batch run back to back, so one micro-batch's time line stands for all of
  // them. Evaluation, and the phases without activations, come at other times and share the area.
  void activations();

  const Stage& stage_;
  const Schedule& schedule_;
  const MemoryMapOptions& options_;
  const WorkspaceBytes& workspace_bytes_;
  MemoryMap map_;
  int64_t next_ = 0;
};

void Layout::activations() {
  ORRERY_CHECK(schedule_.num_slots.size() <= 1 && (schedule_.num_slots.empty() || schedule_.num_slots[0] <= 1), "one chunk with one activation slot");
  map_.num_slots = 1;
  map_.activation_offset.assign(stage_.values.size(), -1);
  std::vector<PlacedBuffer> buffers;
  std::unordered_map<ValueId, size_t> buffer_of;
  struct WorkspaceRef {
    Phase phase;
    size_t op;
    size_t buffer;
  };
  std::vector<WorkspaceRef> workspaces;
  int64_t time = 0;
  for (Phase phase : {Phase::kForward, Phase::kBackward, Phase::kEval, Phase::kZero, Phase::kMerge, Phase::kNorm, Phase::kOptimizer}) {
    const std::vector<Op>& ops = stage_.block(phase).ops;
    auto& offsets = map_.workspace_offset[static_cast<size_t>(phase)];
    auto& sizes = map_.workspace_bytes[static_cast<size_t>(phase)];
    offsets.assign(ops.size(), -1);
    sizes.assign(ops.size(), 0);
    for (size_t i = 0; i < ops.size(); ++i, ++time) {
      const auto touch = [&](ValueId id) {
        const ValueId storage = stage_.storage(id);
        const Value& value = stage_.value(storage);
        if (value.kind != ValueKind::kActivation) return;
        const auto [entry, fresh] = buffer_of.try_emplace(storage, buffers.size());
        if (fresh) buffers.push_back({align_up(value.bytes(), kArenaAlignment), time, time, 0});
        buffers[entry->second].end = time + 1;
      };
      for (ValueId id : ops[i].inputs) touch(id);
      for (ValueId id : ops[i].outputs) touch(id);
      const int64_t bytes = workspace_bytes_(stage_, ops[i]);
      if (bytes > 0) {
        workspaces.push_back({phase, i, buffers.size()});
        sizes[i] = bytes;
        buffers.push_back({align_up(bytes, kArenaAlignment), time, time + 1, 0});
      }
    }
  }
  const int64_t height = place_buffers(buffers);
  map_.activation_lower_bound = live_bytes_lower_bound(buffers);
  const int64_t base = take(height, MemoryClass::kActivations);
  for (const auto& [value, buffer] : buffer_of) map_.activation_offset[value] = base + buffers[buffer].offset;
  for (const WorkspaceRef& ref : workspaces)
    map_.workspace_offset[static_cast<size_t>(ref.phase)][ref.op] = base + buffers[ref.buffer].offset;
}

}  // namespace

MemoryMap build_memory_map(const Stage& stage, const Schedule& schedule, const MemoryMapOptions& options, const WorkspaceBytes& workspace_bytes) {
  return Layout(stage, schedule, options, workspace_bytes).run();
}

}  // namespace orrery
