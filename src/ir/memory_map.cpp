#include "ir/memory_map.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "base/error.h"
#include "ir/lifetimes.h"

namespace orrery {

namespace {
constexpr int64_t kParameterGranule = 32;  // elements
}

std::string_view memory_class_name(MemoryClass memory_class) {
  constexpr std::array<std::string_view, static_cast<size_t>(MemoryClass::kCount)> kNames = {
      "weights", "newest weights", "master low halves", "gradients", "moments", "offload slots", "constants", "batch", "step scalars", "kv cache", "packed weights", "checkpoint buffer", "gathered weights", "unit gradients", "activations"};
  return kNames[static_cast<size_t>(memory_class)];
}

std::optional<Phase> phase_of_action(ActionKind kind) {
  switch (kind) {
    case ActionKind::kForward: return Phase::kForward;
    case ActionKind::kBackward: return Phase::kBackward;
    case ActionKind::kBackwardInput: return Phase::kBackwardInput;
    case ActionKind::kBackwardWeight: return Phase::kBackwardWeight;
    case ActionKind::kMerge: return Phase::kMerge;
    case ActionKind::kNorm: return Phase::kNorm;
    case ActionKind::kOptimizer: return Phase::kOptimizer;
    default: return std::nullopt;
  }
}

GradientLayout gradient_layout(const Stage& stage) {
  enum class Origin : uint8_t { kNone, kReceived, kSummed };
  const size_t num_parameters = stage.parameters.size();
  GradientLayout layout;
  layout.offset.assign(num_parameters, {-1, -1});
  layout.chunk.assign(num_parameters, {0, 0});
  layout.chunks.resize(static_cast<size_t>(stage.num_chunks()));
  std::vector<std::array<Origin, 2>> origins(num_parameters, {Origin::kNone, Origin::kNone});
  const auto note = [&](const Value& value, Origin origin) {
    if (value.kind != ValueKind::kGradient) return;
    Origin& known = origins[static_cast<size_t>(value.index)][static_cast<size_t>(value.sub)];
    known = std::max(known, origin);
    if (origin == known) layout.chunk[static_cast<size_t>(value.index)][static_cast<size_t>(value.sub)] = value.chunk;
  };
  for (const Value& value : stage.values) note(value, Origin::kReceived);
  for (int32_t chunk = 0; chunk < stage.num_chunks(); ++chunk)
    for (Phase phase : {Phase::kForward, Phase::kBackward})
      for (const Op& op : stage.block(phase, chunk).ops)
        for (ValueId id : op.outputs) note(stage.value(id), Origin::kSummed);
  for (Origin origin : {Origin::kSummed, Origin::kReceived})
    for (size_t accumulator = 0; accumulator < 2; ++accumulator)
      for (size_t i = 0; i < num_parameters; ++i) {
        if (origins[i][accumulator] != origin) continue;
        GradientLayout::Size& size = layout.chunks[static_cast<size_t>(layout.chunk[i][accumulator])];
        layout.offset[i][accumulator] = size.num_elements;
        size.num_elements += align_up(stage.parameters[i].num_elements(), kParameterGranule);
        if (origin == Origin::kSummed) size.num_summed = size.num_elements;
      }
  return layout;
}

BoundaryMessages boundary_messages(const Stage& stage, int32_t chunk) {
  const StageBoundary& boundary = stage.boundaries[static_cast<size_t>(chunk)];
  BoundaryMessages messages{boundary.input != kNoValue, boundary.output != kNoValue};
  for (const StageBoundary& other : stage.boundaries) {
    if (other.output == boundary.input) messages.input = false;
    if (other.input == boundary.output) messages.output = false;
  }
  return messages;
}

namespace {

bool overlap_in_time(const PlacedBuffer& a, const PlacedBuffer& b) {
  for (size_t i = 0, k = 0; i < a.alive.size() && k < b.alive.size();) {
    if (a.alive[i][0] < b.alive[k][1] && b.alive[k][0] < a.alive[i][1]) return true;
    a.alive[i][1] <= b.alive[k][1] ? ++i : ++k;
  }
  return false;
}

int64_t lifetime(const PlacedBuffer& buffer) {
  return std::accumulate(buffer.alive.begin(), buffer.alive.end(), int64_t{0}, [](int64_t sum, const auto& interval) { return sum + interval[1] - interval[0]; });
}

// Which buffers are alive at the same time: asked once for all orders that are tried, as a buffer may live in hundreds of intervals.
class Overlaps {
 public:
  explicit Overlaps(const std::vector<PlacedBuffer>& buffers) : row_words_((buffers.size() + 63) / 64), bits_(row_words_ * buffers.size(), 0) {
    for (size_t a = 0; a < buffers.size(); ++a)
      for (size_t b = 0; b < a; ++b)
        if (overlap_in_time(buffers[a], buffers[b])) set(a, b), set(b, a);
  }
  bool operator()(size_t a, size_t b) const { return bits_[a * row_words_ + b / 64] >> (b % 64) & 1; }

 private:
  void set(size_t a, size_t b) { bits_[a * row_words_ + b / 64] |= uint64_t{1} << (b % 64); }

  size_t row_words_;
  std::vector<uint64_t> bits_;
};

// Greedy best fit: each buffer goes into the smallest gap that holds it between the placed buffers alive at the same time.
int64_t place_in_order(std::vector<PlacedBuffer>& buffers, const std::vector<size_t>& order, const Overlaps& overlaps) {
  std::vector<size_t> by_offset;  // placed so far, ascending
  int64_t height = 0;
  for (size_t index : order) {
    PlacedBuffer& buffer = buffers[index];
    int64_t best_offset = -1, best_gap = std::numeric_limits<int64_t>::max(), top = 0;
    for (size_t other_index : by_offset) {
      if (!overlaps(index, other_index)) continue;
      const PlacedBuffer& other = buffers[other_index];
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
      [](const PlacedBuffer& a, const PlacedBuffer& b) { return lifetime(a) > lifetime(b); },
      [](const PlacedBuffer& a, const PlacedBuffer& b) {
        return static_cast<double>(a.bytes) * static_cast<double>(lifetime(a)) > static_cast<double>(b.bytes) * static_cast<double>(lifetime(b));
      },
      [](const PlacedBuffer& a, const PlacedBuffer& b) { return a.alive.front() < b.alive.front(); },
  };
  std::vector<int64_t> best;
  const int64_t bound = live_bytes_lower_bound(buffers);
  const Overlaps overlaps(buffers);
  int64_t best_height = std::numeric_limits<int64_t>::max();
  for (Less less : kOrders) {
    if (best_height <= bound) break;
    std::vector<size_t> order(buffers.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return less(buffers[a], buffers[b]); });
    const int64_t height = place_in_order(buffers, order, overlaps);
    if (height >= best_height) continue;
    best_height = height;
    best.clear();
    for (const PlacedBuffer& buffer : buffers) best.push_back(buffer.offset);
  }
  for (size_t i = 0; i < buffers.size(); ++i) buffers[i].offset = best[i];
  return buffers.empty() ? 0 : best_height;
}

int64_t live_bytes_lower_bound(const std::vector<PlacedBuffer>& buffers) {
  std::map<int64_t, int64_t> change;
  for (const PlacedBuffer& buffer : buffers)
    for (const auto& [begin, end] : buffer.alive) {
      change[begin] += buffer.bytes;
      change[end] -= buffer.bytes;
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
    map_.state_offset.assign(count, {-1, -1, -1, -1});
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
    if (options_.shards.weights) sharded_weights();
    for (size_t i = 0; i < count; ++i)
      if (plain[i] && !options_.shards.weights) map_.parameter_offset[i] = take(stage_.parameters[i].num_elements() * dtype_bytes(stage_.compute_dtype), MemoryClass::kWeights);
    map_.state_range = options_.state_range;
    if (map_.state_range.empty())
      for (const ParameterSpec& spec : stage_.parameters) map_.state_range.push_back({0, spec.num_elements()});
    if (!trains()) return;
    for (int32_t slot = 0; slot < options_.offload_slots.count; ++slot) map_.offload_slot_offset.push_back(take(options_.offload_slots.bytes, MemoryClass::kOffloadSlots));
    const bool offloads = options_.offload_slots.count > 0;
    map_.newest_whole = options_.newest_whole;
    const auto take_state = [&](StateField field, DType dtype, MemoryClass memory_class) {
      const bool whole = options_.newest_whole && field == StateField::kNewest;
      for (size_t i = 0; i < count; ++i)
        if (const int64_t kept = whole ? stage_.parameters[i].num_elements() : map_.state_range[i][1] - map_.state_range[i][0]; kept > 0)
          map_.state_offset[i][static_cast<size_t>(field)] = take(kept * dtype_bytes(dtype), memory_class);
    };
    if (options_.newest_whole || (options_.newest_apart && !offloads)) take_state(StateField::kNewest, stage_.compute_dtype, MemoryClass::kNewestWeights);
    if (offloads) return;  // the rest comes piece by piece
    if (stage_.compute_dtype == DType::kBF16) take_state(StateField::kLow, DType::kI16, MemoryClass::kMasterLow);
    for (StateField field : {StateField::kMoment1, StateField::kMoment2})
      if (static_cast<int>(field) - static_cast<int>(StateField::kMoment1) < options_.num_moments) take_state(field, options_.moment_dtype, MemoryClass::kMoments);
  }

  // Each slot as long as the longest unit that is ever in it.
  std::vector<int64_t> take_slots(int32_t ParameterUnit::*slot, int64_t width, MemoryClass memory_class) {
    std::vector<int64_t> bytes, offsets;
    for (const ParameterUnit& unit : options_.shards.units) {
      if (unit.*slot < 0) continue;
      bytes.resize(std::max(bytes.size(), static_cast<size_t>(unit.*slot) + 1), 0);
      bytes[static_cast<size_t>(unit.*slot)] = std::max(bytes[static_cast<size_t>(unit.*slot)], unit.size() * width);
    }
    for (int64_t slot_bytes : bytes) offsets.push_back(take(slot_bytes, memory_class));
    return offsets;
  }

  // The first element of a unit's parameter that the rank keeps, counted from its shard's first.
  int64_t in_shard(const ParameterUnit& unit, int64_t parameter_start) const {
    const auto shard = static_cast<size_t>(options_.shards.shard);
    return std::clamp(parameter_start, unit.cuts[shard], unit.cuts[shard + 1]) - unit.cuts[shard];
  }

  void sharded_weights() {
    const ShardOptions& shards = options_.shards;
    const int64_t width = dtype_bytes(stage_.compute_dtype);
    map_.unit_shard_offset.assign(shards.units.size(), -1);
    map_.parameter_shard_offset.assign(stage_.parameters.size(), -1);
    if (!shards.weights_stay && !shards.weights_elsewhere)
      for (size_t i = 0; i < shards.units.size(); ++i)
        if (shards.units[i].weight_slot >= 0) map_.unit_shard_offset[i] = take(shards.units[i].shard_size(shards.shard) * width, MemoryClass::kWeights);
    const std::vector<int64_t> slots = take_slots(&ParameterUnit::weight_slot, width, shards.weights_stay ? MemoryClass::kWeights : MemoryClass::kGatheredWeights);
    for (size_t i = 0; i < shards.units.size(); ++i) {
      const ParameterUnit& unit = shards.units[i];
      if (unit.weight_slot < 0) continue;
      const int64_t slot = slots[static_cast<size_t>(unit.weight_slot)];
      int64_t& shard = map_.unit_shard_offset[i];
      if (shard < 0 && !shards.weights_elsewhere) shard = slot + (unit.cuts[static_cast<size_t>(shards.shard)] - unit.begin()) * width;
      for (size_t k = 0; k < unit.starts.size(); ++k) {
        const auto parameter = static_cast<size_t>(unit.first) + k;
        map_.parameter_offset[parameter] = slot + (unit.starts[k] - unit.begin()) * width;
        if (shard >= 0) map_.parameter_shard_offset[parameter] = shard + in_shard(unit, unit.starts[k]) * width;
      }
    }
  }

  void sharded_gradients(const GradientLayout& layout) {
    const ShardOptions& shards = options_.shards;
    const std::vector<int64_t> slots = take_slots(&ParameterUnit::gradient_slot, 4, MemoryClass::kUnitGradients);
    map_.gradient_buffer_offset.assign(layout.chunks.size(), {slots.front()});
    map_.gradient_buffer_bytes.assign(layout.chunks.size(), {next_ - slots.front()});
    map_.gradient_offset.assign(stage_.parameters.size(), {-1, -1});
    map_.gradient_shard_offset.assign(stage_.parameters.size(), {-1, -1});
    for (const ParameterUnit& unit : shards.units) {
      auto& sums = map_.shard_sum_offset.emplace_back();
      for (int32_t sum = 0; sum < shards.num_sums; ++sum) sums.push_back(take(unit.shard_size(shards.shard) * 4, MemoryClass::kGradients));
      const auto accumulator = static_cast<size_t>(unit.accumulator);
      for (size_t k = 0; k < unit.starts.size(); ++k) {
        const auto parameter = static_cast<size_t>(unit.first) + k;
        map_.gradient_offset[parameter][accumulator] = slots[static_cast<size_t>(unit.gradient_slot)] - slots.front() + (unit.starts[k] - unit.begin()) * 4;
        map_.gradient_shard_offset[parameter][accumulator] = sums.front() + in_shard(unit, unit.starts[k]) * 4;
      }
      // The sum of the other use, where another rank makes it, is as long as that of the first.
      const auto first = static_cast<size_t>(unit.first);
      if (unit.accumulator == 0 && layout.offset[first][1] >= layout.chunks[static_cast<size_t>(layout.chunk[first][1])].num_summed)
        map_.gradient_shard_offset[first][1] = take(unit.shard_size(shards.shard) * 4, MemoryClass::kGradients);
    }
  }

  void gradients() {
    if (!trains()) return;
    const GradientLayout layout = gradient_layout(stage_);
    if (options_.shards.gradients) return sharded_gradients(layout);
    if (schedule_.micro_batches.size() == 1) {
      map_.gradients_by_lifetime = true;
      return;  // activations()
    }
    for (const auto& offset : layout.offset) map_.gradient_offset.push_back({offset[0] < 0 ? -1 : offset[0] * 4, offset[1] < 0 ? -1 : offset[1] * 4});
    for (size_t chunk = 0; chunk < schedule_.num_gradient_buffers.size(); ++chunk) {
      auto& offsets = map_.gradient_buffer_offset.emplace_back();
      auto& sizes = map_.gradient_buffer_bytes.emplace_back();
      for (int buffer = 0; buffer < schedule_.num_gradient_buffers[chunk]; ++buffer) {
        const bool reaches_update = buffer == 0 || (buffer == 1 && schedule_.num_swapped_buffers > 0);
        sizes.push_back((reaches_update ? layout.chunks[chunk].num_elements : layout.chunks[chunk].num_summed) * 4);
        offsets.push_back(take(sizes.back(), MemoryClass::kGradients));
      }
    }
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

  // Time is that of the compute actions, op by op. Evaluation, and the phases without activations, come at other times and share the area.
  void activations();
  // Gradients that lie side by side, of which one buffer or message is made: f32 elements [begin, begin + size) of a chunk's gradient layout.
  struct GradientRun {
    int32_t parameter = 0, count = 1, accumulator = 0;
    int64_t begin = 0, size = 0;
  };
  std::vector<GradientRun> gradient_runs(const GradientLayout& layout) const;

  const Stage& stage_;
  const Schedule& schedule_;
  const MemoryMapOptions& options_;
  const WorkspaceBytes& workspace_bytes_;
  MemoryMap map_;
  int64_t next_ = 0;
};

// Sorted, and overlapping ones joined.
std::vector<std::array<int64_t, 2>> joined(std::vector<std::array<int64_t, 2>> intervals) {
  std::sort(intervals.begin(), intervals.end());
  std::vector<std::array<int64_t, 2>> result;
  for (const auto& interval : intervals) {
    if (!result.empty() && interval[0] <= result.back()[1])
      result.back()[1] = std::max(result.back()[1], interval[1]);
    else
      result.push_back(interval);
  }
  return result;
}

std::vector<Layout::GradientRun> Layout::gradient_runs(const GradientLayout& layout) const {
  std::vector<GradientRun> runs;
  std::vector<std::array<bool, 2>> joined_in(stage_.parameters.size(), {false, false});
  for (const ParameterUnit& unit : options_.reduced_units) {
    runs.push_back({unit.first, unit.count, unit.accumulator, unit.begin(), unit.size()});
    for (int32_t i = 0; i < unit.count; ++i) joined_in[static_cast<size_t>(unit.first + i)][static_cast<size_t>(unit.accumulator)] = true;
  }
  for (size_t i = 0; i < layout.offset.size(); ++i)
    for (size_t accumulator = 0; accumulator < 2; ++accumulator)
      if (layout.offset[i][accumulator] >= 0 && !joined_in[i][accumulator])
        runs.push_back({static_cast<int32_t>(i), 1, static_cast<int32_t>(accumulator), layout.offset[i][accumulator], stage_.parameters[i].num_elements()});
  return runs;
}

void Layout::activations() {
  map_.num_slots = 1;
  for (int32_t slots : schedule_.num_slots) map_.num_slots = std::max(map_.num_slots, slots);
  const auto num_slots = static_cast<size_t>(map_.num_slots);
  map_.activation_offset.assign(stage_.values.size() * num_slots, -1);
  map_.workspace_offset.resize(stage_.blocks.size());
  map_.workspace_bytes.resize(stage_.blocks.size());
  const Lifetimes lifetimes(stage_, schedule_, options_.activation_groups);
  std::set<ValueId> messages;
  for (int32_t chunk = 0; chunk < stage_.num_chunks(); ++chunk) {
    const StageBoundary& boundary = stage_.boundaries[static_cast<size_t>(chunk)];
    const BoundaryMessages at = boundary_messages(stage_, chunk);
    if (at.input) messages.insert({boundary.input, boundary.input_gradient});
    if (at.output) messages.insert({boundary.output, boundary.output_gradient});
  }
  messages.erase(kNoValue);

  std::vector<PlacedBuffer> buffers;
  struct ValueRef {
    ValueId value;
    int32_t first_slot, end_slot;
    size_t buffer;
  };
  std::vector<ValueRef> values;
  const auto slots_of = [&](ValueId id) {
    const auto chunk = static_cast<size_t>(stage_.value(id).chunk);
    return chunk < schedule_.num_slots.size() ? std::max(1, schedule_.num_slots[chunk]) : 1;
  };
  const auto place = [&](ValueId id, int32_t first_slot, int32_t end_slot, std::vector<std::array<int64_t, 2>> alive) {
    values.push_back({id, first_slot, end_slot, buffers.size()});
    buffers.push_back({align_up(stage_.value(id).bytes(), kArenaAlignment), joined(std::move(alive)), 0});
  };
  const std::vector<std::array<int64_t, 2>> always = {{0, std::max<int64_t>(1, lifetimes.end())}};
  for (ValueId id : messages)
    for (int32_t slot = 0; slot < slots_of(id); ++slot) place(id, slot, slot + 1, always);
  for (const auto& [id, value] : lifetimes.values()) {
    if (messages.count(id)) continue;
    if (value.crosses_actions) {
      for (const auto& [slot, alive] : value.by_slot) place(id, slot, slot + 1, alive);
      continue;
    }
    std::vector<std::array<int64_t, 2>> alive;
    for (const auto& [slot, part] : value.by_slot) alive.insert(alive.end(), part.begin(), part.end());
    place(id, 0, slots_of(id), std::move(alive));
  }
  struct WorkspaceRef {
    size_t block, op, buffer;
  };
  std::vector<WorkspaceRef> workspaces;
  for (size_t block = 0; block < stage_.blocks.size(); ++block) {
    const std::vector<Op>& ops = stage_.blocks[block].ops;
    map_.workspace_offset[block].assign(ops.size(), -1);
    map_.workspace_bytes[block].assign(ops.size(), 0);
    for (size_t i = 0; i < ops.size(); ++i) {
      std::vector<std::array<int64_t, 2>> alive = lifetimes.times_of(block, i);
      const int64_t bytes = alive.empty() ? 0 : workspace_bytes_(stage_, ops[i]);
      if (bytes == 0) continue;
      workspaces.push_back({block, i, buffers.size()});
      map_.workspace_bytes[block][i] = bytes;
      buffers.push_back({align_up(bytes, kArenaAlignment), std::move(alive), 0});
    }
  }
  map_.activation_lower_bound = live_bytes_lower_bound(buffers);
  const size_t first_gradient = buffers.size();
  GradientLayout layout;
  std::vector<GradientRun> runs;
  if (map_.gradients_by_lifetime) {
    layout = gradient_layout(stage_);
    runs = gradient_runs(layout);
    for (const GradientRun& run : runs) {
      const GradientLayout::Size& chunk = layout.chunks[static_cast<size_t>(layout.chunk[static_cast<size_t>(run.parameter)][static_cast<size_t>(run.accumulator)])];
      std::array<int64_t, 2> alive = {lifetimes.end_of_step(), lifetimes.end_of_step()};
      if (run.begin >= chunk.num_summed) alive = always[0];  // what another rank sends
      for (int32_t i = 0; i < run.count && run.begin < chunk.num_summed; ++i) alive[0] = std::min(alive[0], lifetimes.first_use(run.parameter + i, run.accumulator));
      buffers.push_back({align_up(run.size * 4, kArenaAlignment), {alive}, 0});
    }
  }
  const int64_t height = place_buffers(buffers), with_gradients = live_bytes_lower_bound(buffers) - map_.activation_lower_bound;
  const int64_t base = take(height - with_gradients, MemoryClass::kActivations);
  if (map_.gradients_by_lifetime) {
    take(with_gradients, MemoryClass::kGradients);
    map_.gradient_buffer_offset.assign(layout.chunks.size(), {base});
    map_.gradient_buffer_bytes.assign(layout.chunks.size(), {0});
    map_.gradient_offset.assign(stage_.parameters.size(), {-1, -1});
    for (size_t i = 0; i < runs.size(); ++i)
      for (auto k = static_cast<size_t>(runs[i].parameter); k < static_cast<size_t>(runs[i].parameter + runs[i].count); ++k) {
        const auto accumulator = static_cast<size_t>(runs[i].accumulator);
        map_.gradient_offset[k][accumulator] = buffers[first_gradient + i].offset + (layout.offset[k][accumulator] - runs[i].begin) * 4;
      }
  }
  for (const ValueRef& ref : values)
    for (int32_t slot = ref.first_slot; slot < ref.end_slot; ++slot)
      map_.activation_offset[static_cast<size_t>(ref.value) * num_slots + static_cast<size_t>(slot)] = base + buffers[ref.buffer].offset;
  for (const WorkspaceRef& ref : workspaces) map_.workspace_offset[ref.block][ref.op] = base + buffers[ref.buffer].offset;
}

}  // namespace

MemoryMap build_memory_map(const Stage& stage, const Schedule& schedule, const MemoryMapOptions& options, const WorkspaceBytes& workspace_bytes) {
  return Layout(stage, schedule, options, workspace_bytes).run();
}

}  // namespace orrery
