#include "ir/verify.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "ir/op_table.h"
#include "ir/unroll_schedule.h"

namespace orrery {
namespace {

struct Range {
  int64_t begin = 0, end = 0;
  bool overlaps(const Range& other) const { return begin < other.end && other.begin < end; }
};

// What a value is for one micro-batch: the same value of another one is something else. -1: of no micro-batch.
using Content = std::pair<ValueId, int32_t>;

// What a byte range of the activation area holds; the newest write wins.
class ByteOwners {
 public:
  void write(Range range, Content value) {
    if (range.begin >= range.end) return;
    split_at(range.begin);
    split_at(range.end);
    owners_.erase(owners_.lower_bound(range.begin), owners_.lower_bound(range.end));
    owners_[range.begin] = {range.end, value};
  }
  bool holds(Range range, Content value) const {
    int64_t at = range.begin;
    while (at < range.end) {
      auto next = owners_.upper_bound(at);
      if (next == owners_.begin()) return false;
      --next;
      if (next->second.first <= at || next->second.second != value) return false;
      at = next->second.first;
    }
    return true;
  }
  void clear() { owners_.clear(); }

 private:
  void split_at(int64_t at) {
    auto next = owners_.lower_bound(at);
    if (next == owners_.begin()) return;
    --next;
    if (next->second.first > at && next->first < at) {
      owners_[at] = next->second;
      next->second.first = at;
    }
  }
  std::map<int64_t, std::pair<int64_t, Content>> owners_;  // begin -> (end, content)
};

class Verifier {
 public:
  Verifier(const Stage& stage, const Schedule& schedule, const MemoryMap& map, const ShardOptions& shards, const std::vector<ActivationGroup>& groups)
      : stage_(stage), schedule_(schedule), map_(map), shards_(shards), groups_(groups) {
    // Steps that run into each other are followed for as long as it takes until they repeat.
    if (schedule.carries) steps_ = unroll(schedule, 2);
  }

  std::vector<std::string> run() {
    const Schedule& steps = steps_ ? *steps_ : schedule_;
    for (const Action& action : steps.actions)
      if (action.kind == ActionKind::kForward) slot_of_[{action.chunk, action.micro_batch}] = action.slot;
    persistent_buffers();
    message_buffers();
    rows_are_added_to_zero();
    if (map_.gradients_by_lifetime) received_gradients();
    end_of_schedule();
    weight_versions();
    plan_copies();
    for (const Action& action : steps.actions) {
      if (problems_.size() >= kMaxProblems) break;
      run_action(action);
    }
    if (!schedule_.actions.empty() && !stage_.block(Phase::kEval).ops.empty()) {
      owners_.clear();
      for (int32_t chunk = 0; chunk < stage_.num_chunks(); ++chunk) {
        if (boundary_messages(stage_, chunk).input) write(stage_.boundaries[static_cast<size_t>(chunk)].input, kNoBatch);
        run_ops(Phase::kEval, chunk, kNoBatch, "eval");
      }
    }
    return std::move(problems_);
  }

 private:
  static constexpr size_t kMaxProblems = 20;
  static constexpr int32_t kNoBatch = -1;

  template <typename... Args>
  void problem(fmt::format_string<Args...> format, Args&&... args) {
    if (problems_.size() < kMaxProblems) problems_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  void persistent(const std::string& name, int64_t offset, int64_t bytes) {
    if (offset < 0 || bytes == 0) return;
    if (offset % kArenaAlignment != 0) problem("{} starts at byte {}, not on a multiple of {}", name, offset, kArenaAlignment);
    if (offset + bytes > map_.total_bytes) problem("{} ends at byte {}, behind the arena's end {}", name, offset + bytes, map_.total_bytes);
    const auto next = persistent_.lower_bound(offset);
    if (next != persistent_.end() && next->first < offset + bytes) problem("{} overlaps {}", name, next->second.second);
    if (next != persistent_.begin() && std::prev(next)->second.first > offset) problem("{} overlaps {}", name, std::prev(next)->second.second);
    persistent_[offset] = {offset + bytes, name};
  }

  void persistent_buffers() {
    for (size_t i = 0; i < stage_.parameters.size(); ++i) {
      const ParameterSpec& spec = stage_.parameters[i];
      if (!shards_.weights) persistent(spec.name, map_.parameter_offset[i], spec.num_elements() * dtype_bytes(stage_.compute_dtype));
      if (i < map_.state_offset.size())
        for (size_t field = 0; field < kNumStateFields; ++field)
          persistent(fmt::format("{} state {}", spec.name, field), map_.state_offset[i][field],
                     (map_.newest_whole && field == static_cast<size_t>(StateField::kNewest) ? spec.num_elements() : map_.state_range[i][1] - map_.state_range[i][0]) * 2);
    }
    for (const Value& value : stage_.values)
      if (value.kind == ValueKind::kParameter && value.sub == 1) persistent(value.name, map_.packed_offset[static_cast<size_t>(value.index)], value.bytes());
    int64_t slot_bytes = 0;
    for (const Value& value : stage_.values)
      if (value.buffer_role == Value::kOffloadRole) slot_bytes = std::max(slot_bytes, value.element_offset * dtype_bytes(value.dtype) + value.bytes());
    for (size_t slot = 0; slot < map_.offload_slot_offset.size(); ++slot) persistent(fmt::format("offload slot {}", slot), map_.offload_slot_offset[slot], slot_bytes);
    if (!shards_.units.empty()) unit_buffers();
    for (size_t chunk = 0; chunk < map_.gradient_buffer_offset.size() && !shards_.gradients; ++chunk)
      for (size_t i = 0; i < map_.gradient_buffer_offset[chunk].size(); ++i)
        persistent(fmt::format("gradient buffer {} of chunk {}", i, chunk), map_.gradient_buffer_offset[chunk][i], map_.gradient_buffer_bytes[chunk][i]);
    for (size_t i = 0; i < map_.constant_offset.size(); ++i)
      persistent(fmt::format("constant {}", i), map_.constant_offset[i], stage_.constants[i].max_positions * stage_.constants[i].rotary_dim * 4);
    for (size_t i = 0; i < map_.batch_offset.size(); ++i) persistent(fmt::format("batch field {}", i), map_.batch_offset[i], map_.batch_bytes[i]);
  }

  // With delayed gradients the compute weights are those of the update before: what the newest were is copied to them before these change.
  void weight_versions() {
    const auto is_newest = [&](ValueId id) { return stage_.value(id).kind == ValueKind::kState && stage_.value(id).sub == static_cast<int32_t>(StateField::kNewest); };
    std::map<int32_t, Range> copied;  // by parameter: elements
    const auto elements = [&](ValueId id) { return Range{stage_.value(id).element_offset, stage_.value(id).element_offset + stage_.value(id).bytes() / dtype_bytes(stage_.value(id).dtype)}; };
    const std::vector<Op>& ops = stage_.block(Phase::kOptimizer).ops;
    const bool delayed = !shards_.weights_elsewhere && std::any_of(ops.begin(), ops.end(), [&](const Op& op) { return std::any_of(op.outputs.begin(), op.outputs.end(), is_newest); });
    for (const Op& op : ops) {
      if (op.kind == OpKind::kCopy && is_newest(op.inputs[0])) {
        const Value &from = stage_.value(op.inputs[0]), &to = stage_.value(op.outputs[0]);
        if (to.kind != ValueKind::kParameter || to.index != from.index) problem("{} is copied to {}", from.name, to.name);
        // Pieces of what is offloaded come one after the other, each to its update.
        const bool again = copied.count(from.index) > 0 && from.buffer_role != Value::kOffloadRole;
        if (again) problem("{} is copied to {} again", from.name, to.name);
        copied[from.index] = elements(op.inputs[0]);
      }
      if (op.kind != OpKind::kAdamW && op.kind != OpKind::kSgd && op.kind != OpKind::kLion) continue;
      const Value& updated = stage_.value(op.outputs[0]);
      if (delayed && !is_newest(op.outputs[0])) problem("{} is updated without its delay", updated.name);
      if (!delayed || !is_newest(op.outputs[0])) continue;
      const auto kept = copied.find(updated.index);
      const Range range = elements(op.outputs[0]);
      if (kept == copied.end() || range.begin < kept->second.begin || range.end > kept->second.end) problem("{} is updated before the weights of the step before are kept", updated.name);
    }
    if (!schedule_.carries) return;
    // Work of the next step reads the newest weights, whatever of them is updated here, and finds them as its own a step later.
    for (const Value& value : stage_.values) {
      if (value.kind != ValueKind::kParameter || value.sub != 0) continue;
      const auto parameter = static_cast<size_t>(value.index);
      if (map_.parameter_offset[parameter] < 0) continue;
      if (!map_.newest_whole || map_.state_offset[parameter][static_cast<size_t>(StateField::kNewest)] < 0) problem("{} has no newest weights for work of the next step", value.name);
      const auto kept = copied.find(value.index);
      if (kept == copied.end() || kept->second.begin != 0 || kept->second.end != stage_.parameters[parameter].num_elements()) problem("{} keeps the weights of two steps before", value.name);
    }
  }

  // A slot is what its units cover; two slots are apart.
  void slot(std::map<int32_t, Range>& slots, int32_t index, Range place) {
    Range& known = slots.try_emplace(index, place).first->second;
    if (known.begin != place.begin) problem("units of slot {} start at bytes {} and {}", index, known.begin, place.begin);
    known.end = std::max(known.end, place.end);
  }

  void unit_buffers() {
    std::map<int32_t, Range> weights, gradients;
    for (size_t i = 0; i < shards_.units.size(); ++i) {
      if (shards_.gradients) unit_gradients(i, gradients);
      if (shards_.weights && shards_.units[i].weight_slot >= 0) unit_weights(i, weights);
    }
    for (const auto& [index, place] : weights) persistent(fmt::format("slot {} of gathered weights", index), place.begin, place.end - place.begin);
    for (const auto& [index, place] : gradients) persistent(fmt::format("slot {} of unit gradients", index), place.begin, place.end - place.begin);
  }

  void rows_are_added_to_zero() {
    for (size_t block = 0; block < stage_.blocks.size(); ++block) {
      const std::vector<Op>& ops = stage_.blocks[block].ops;
      for (size_t i = 0; i < ops.size(); ++i)
        if (ops[i].kind == OpKind::kEmbeddingGrad && (i == 0 || ops[i - 1].kind != OpKind::kZero || ops[i - 1].outputs != ops[i].outputs))
          problem("op {} {} adds rows to what was not zeroed just before", i, op_name(ops[i].kind));
    }
  }

  // Of parameter k of a unit: its first element, and the first that this rank keeps, counted from the unit's and from the shard's.
  int64_t inside(const ParameterUnit& unit, size_t k) const { return unit.starts[k] - unit.begin(); }
  int64_t kept(const ParameterUnit& unit, size_t k) const {
    const auto shard = static_cast<size_t>(shards_.shard);
    return std::clamp(unit.starts[k], unit.cuts[shard], unit.cuts[shard + 1]) - unit.cuts[shard];
  }

  void unit_gradients(size_t i, std::map<int32_t, Range>& slots) {
    const ParameterUnit& unit = shards_.units[i];
    const auto accumulator = static_cast<size_t>(unit.accumulator), first = static_cast<size_t>(unit.first);
    const int64_t own_bytes = unit.shard_size(shards_.shard) * 4, begin = map_.gradient_buffer_offset.front().front() + map_.gradient_offset[first][accumulator];
    slot(slots, unit.gradient_slot, {begin, begin + unit.size() * 4});
    for (size_t sum = 0; sum < map_.shard_sum_offset[i].size(); ++sum) persistent(fmt::format("sum {} of unit {}", sum, i), map_.shard_sum_offset[i][sum], own_bytes);
    if (unit.accumulator == 0 && map_.gradient_shard_offset[first][1] >= 0 && map_.gradient_offset[first][1] < 0)
      persistent(fmt::format("received sum of unit {}", i), map_.gradient_shard_offset[first][1], own_bytes);
    for (size_t k = 0; k < unit.starts.size(); ++k)
      if (map_.gradient_offset[first + k][accumulator] != map_.gradient_offset[first][accumulator] + inside(unit, k) * 4 ||
          map_.gradient_shard_offset[first + k][accumulator] != map_.shard_sum_offset[i].front() + kept(unit, k) * 4)
        problem("the gradient of {} is not in its place in unit {}", stage_.parameters[first + k].name, i);
  }

  void unit_weights(size_t i, std::map<int32_t, Range>& slots) {
    const ParameterUnit& unit = shards_.units[i];
    const auto first = static_cast<size_t>(unit.first), shard = static_cast<size_t>(shards_.shard);
    const int64_t width = dtype_bytes(stage_.compute_dtype), place = map_.parameter_offset[first], own = map_.unit_shard_offset[i];
    slot(slots, unit.weight_slot, {place, place + unit.size() * width});
    if (shards_.weights_stay && own != place + (unit.cuts[shard] - unit.begin()) * width) problem("the shard of unit {} is not in its place among the gathered weights", i);
    if (!shards_.weights_stay) persistent(fmt::format("weights of unit {}", i), own, unit.shard_size(shards_.shard) * width);
    for (size_t k = 0; k < unit.starts.size(); ++k)
      if (map_.parameter_offset[first + k] != place + inside(unit, k) * width || (!shards_.weights_elsewhere && map_.parameter_shard_offset[first + k] != own + kept(unit, k) * width))
        problem("{} is not in its place in unit {}", stage_.parameters[first + k].name, i);
  }

  // Messages leave and arrive while anything runs, so nothing else may ever be where they are.
  void message_buffers() {
    for (int32_t chunk = 0; chunk < stage_.num_chunks(); ++chunk) {
      const StageBoundary& boundary = stage_.boundaries[static_cast<size_t>(chunk)];
      const BoundaryMessages at = boundary_messages(stage_, chunk);
      if (at.input) messages_.insert({boundary.input, boundary.input_gradient});
      if (at.output) messages_.insert({boundary.output, boundary.output_gradient});
    }
    messages_.erase(kNoValue);
    for (ValueId id : messages_)
      for (int32_t slot = 0; slot < num_slots(id); ++slot) {
        const int64_t offset = map_.activation(id, slot);
        if (offset < 0) problem("message {} has no memory in slot {}", stage_.value(id).name, slot);
        persistent(fmt::format("message {} in slot {}", stage_.value(id).name, slot), offset, stage_.value(id).bytes());
      }
  }
  // The sum of another rank arrives while anything runs.
  void received_gradients() {
    const GradientLayout layout = gradient_layout(stage_);
    for (size_t i = 0; i < layout.offset.size(); ++i)
      for (size_t accumulator = 0; accumulator < 2; ++accumulator) {
        const auto chunk = static_cast<size_t>(layout.chunk[i][accumulator]);
        if (layout.offset[i][accumulator] < layout.chunks[chunk].num_summed) continue;
        const int64_t begin = map_.gradient_buffer_offset[chunk].front() + map_.gradient_offset[i][accumulator], bytes = stage_.parameters[i].num_elements() * 4;
        persistent(fmt::format("received gradient of {}", stage_.parameters[i].name), begin, bytes);
        owners_.write({begin, begin + bytes}, gradient_content(static_cast<int32_t>(i), static_cast<int32_t>(accumulator)));
      }
  }
  int32_t num_slots(ValueId id) const {
    const auto chunk = static_cast<size_t>(stage_.value(id).chunk);
    return chunk < schedule_.num_slots.size() ? schedule_.num_slots[chunk] : 1;
  }

  void end_of_schedule() {
    const auto is_optimizer = [](const Action& action) { return action.kind == ActionKind::kOptimizer; };
    const auto num_optimizer = std::count_if(schedule_.actions.begin(), schedule_.actions.end(), is_optimizer);
    const auto last_compute = std::find_if(schedule_.actions.rbegin(), schedule_.actions.rend(), [](const Action& action) { return stream_of(action.kind) == Stream::kCompute; });
    if (!schedule_.actions.empty() && (num_optimizer != 1 || !is_optimizer(*last_compute))) problem("the schedule does not end in one OPT");
    for (const Action& action : schedule_.actions)
      if ((action.kind == ActionKind::kNorm || is_optimizer(action)) && action.gradient_buffer != 0)
        problem("{} reads gradient buffer {}; the sums of every chunk are in 0", to_string(action, schedule_), action.gradient_buffer);
  }

  // Where a value of a micro-batch is: in the slot that its chunk gave it.
  Range range_of(ValueId id, int32_t micro_batch) const {
    const ValueId storage = stage_.storage(id);
    const auto slot = slot_of_.find({stage_.value(storage).chunk, micro_batch});
    const int64_t begin = map_.activation(storage, slot == slot_of_.end() ? 0 : slot->second);
    return {begin, begin + stage_.value(storage).bytes()};
  }
  Content content(ValueId id, int32_t micro_batch) const { return {stage_.storage(id), micro_batch}; }
  // Gradients that share the activations' area: one content an accumulator, beside those of values.
  static Content gradient_content(int32_t parameter, int32_t accumulator) { return {kNoValue - 1 - (2 * parameter + accumulator), kNoBatch}; }
  bool shares_area(const Value& value) const { return map_.gradients_by_lifetime && value.kind == ValueKind::kGradient; }
  std::pair<Range, Content> gradient(const Value& value) const {
    const auto parameter = static_cast<size_t>(value.index);
    const int64_t begin = map_.gradient_buffer_offset[static_cast<size_t>(value.chunk)].front() + map_.gradient_offset[parameter][static_cast<size_t>(value.sub)] + value.element_offset * 4;
    return {{begin, begin + value.bytes()}, gradient_content(value.index, value.sub)};
  }
  // Whether an op adds to what its outputs hold.
  static bool adds_to_outputs(OpKind kind) { return kind == OpKind::kAccumulate || kind == OpKind::kEmbeddingGrad; }
  void write(ValueId id, int32_t micro_batch) { owners_.write(range_of(id, micro_batch), content(id, micro_batch)); }

  // Before which op of an action copies of activations are over, or may begin to come.
  void plan_copies() {
    const Schedule& steps = steps_ ? *steps_ : schedule_;
    for (const Action& action : steps.actions) {
      if ((action.kind != ActionKind::kOffload && action.kind != ActionKind::kFetch) || action.micro_batch < 0) continue;
      if (action.unit < 0 || action.unit >= static_cast<int32_t>(groups_.size())) {
        problem("{} copies activations that are not known", to_string(action, steps));
        continue;
      }
      const ActivationGroup& group = groups_[static_cast<size_t>(action.unit)];
      const bool leaves = action.kind == ActionKind::kOffload;
      copies_[{action.chunk, action.micro_batch, leaves}].emplace(leaves ? group.gone_before : group.comes_after + 1, &group);
    }
  }

  void copy_before(size_t op, Phase phase, int32_t chunk, int32_t micro_batch, const std::string& where) {
    const bool leaves = phase == Phase::kForward;
    if (!leaves && phase != Phase::kBackward && phase != Phase::kBackwardInput) return;
    const auto copies = copies_.find({chunk, micro_batch, leaves});
    if (copies == copies_.end()) return;
    for (auto [at, end] = copies->second.equal_range(static_cast<int32_t>(op)); at != end; ++at)
      for (ValueId id : at->second->values) {
        if (leaves) {
          // The copy may be as late as this.
          if (!owners_.holds(range_of(id, micro_batch), content(id, micro_batch))) problem("{}: {} leaves when its bytes hold something else", where, stage_.value(id).name);
          owners_.write(range_of(id, micro_batch), {kNoValue, kNoBatch});
        } else {
          write(id, micro_batch);
        }
      }
  }

  void run_ops(Phase phase, int32_t chunk, int32_t micro_batch, const std::string& where) {
    const size_t phase_index = Stage::block_index(phase, chunk);
    const std::vector<Op>& ops = stage_.blocks[phase_index].ops;
    for (size_t i = 0; i < ops.size(); ++i) {
      copy_before(i, phase, chunk, micro_batch, where);
      const Op& op = ops[i];
      std::vector<std::pair<Range, Content>> reads;
      const auto reads_gradient = [&](const Value& value) {
        const auto [range, held] = gradient(value);
        if (!owners_.holds(range, held)) problem("{}: op {} {} reads the gradient {} whose bytes hold something else, or nothing yet", where, i, op_name(op.kind), value.name);
        reads.push_back({range, held});
      };
      for (ValueId id : op.inputs) {
        if (shares_area(stage_.value(id))) reads_gradient(stage_.value(id));
        if (stage_.value(id).kind != ValueKind::kActivation) continue;
        const Range range = range_of(id, micro_batch);
        reads.push_back({range, content(id, micro_batch)});
        if (range.begin < 0 || range.end > map_.total_bytes) problem("{}: {} of {} has no memory", where, stage_.value(id).name, op_name(op.kind));
        else if (!owners_.holds(range, content(id, micro_batch)))
          problem("{}: op {} {} reads {} whose bytes hold something else, or nothing yet", where, i, op_name(op.kind), stage_.value(id).name);
      }
      std::vector<std::pair<Range, Content>> writes;
      for (ValueId id : op.outputs) {
        const Value& value = stage_.value(id);
        if (value.kind == ValueKind::kActivation) writes.push_back({range_of(id, micro_batch), content(id, micro_batch)});
        if (!shares_area(value)) continue;
        if (adds_to_outputs(op.kind)) reads_gradient(value);
        writes.push_back(gradient(value));
      }
      const int64_t workspace = map_.workspace_bytes[phase_index][i];
      if (workspace > 0) {
        const int64_t begin = map_.workspace_offset[phase_index][i];
        writes.push_back({{begin, begin + workspace}, {kNoValue, kNoBatch}});
      }
      for (size_t a = 0; a < writes.size(); ++a) {
        const auto& [range, value] = writes[a];
        if (range.begin < 0 || range.end > map_.total_bytes) problem("{}: an output of op {} {} has no memory", where, i, op_name(op.kind));
        for (const auto& [read_range, read_value] : reads)
          if (read_value != value && range.overlaps(read_range)) problem("{}: op {} {} overwrites its own input", where, i, op_name(op.kind));
        for (size_t b = 0; b < a; ++b)
          if (writes[b].second != value && range.overlaps(writes[b].first)) problem("{}: two outputs of op {} {} overlap", where, i, op_name(op.kind));
        const auto next = persistent_.upper_bound(range.begin);
        if (!messages_.count(value.first) && ((next != persistent_.end() && next->first < range.end) || (next != persistent_.begin() && std::prev(next)->second.first > range.begin)))
          problem("{}: op {} {} writes into a persistent buffer", where, i, op_name(op.kind));
        owners_.write(range, value);
      }
    }
  }

  void run_action(const Action& action) {
    const std::string name = to_string(action, steps_ ? *steps_ : schedule_);
    const auto chunk = static_cast<size_t>(action.chunk);
    if (action.chunk < 0 || action.chunk >= stage_.num_chunks()) return problem("{} names chunk {} of {}", name, action.chunk, stage_.num_chunks());
    const StageBoundary& boundary = stage_.boundaries[chunk];
    switch (action.kind) {
      case ActionKind::kRecvActivation: return write(boundary.input, action.micro_batch);
      case ActionKind::kRecvGradient: return write(boundary.output_gradient, action.micro_batch);
      case ActionKind::kSendActivation: return send(boundary.output, action.micro_batch, name);
      case ActionKind::kSendGradient: return send(boundary.input_gradient, action.micro_batch, name);
      default: break;
    }
    const auto phase = phase_of_action(action.kind);
    if (!phase) return;  // collectives, and messages of what is persistent: verify_schedules.h
    if (chunk >= map_.gradient_buffer_offset.size() || action.gradient_buffer < 0 || action.gradient_buffer >= static_cast<int32_t>(map_.gradient_buffer_offset[chunk].size()))
      return problem("{} names gradient buffer {}, the map has another number", name, action.gradient_buffer);
    if (action.kind == ActionKind::kNorm) normed_ = true;
    if (action.kind == ActionKind::kOptimizer && !std::exchange(normed_, false)) problem("OPT comes before NORM");
    run_ops(*phase, action.chunk, action.micro_batch, name);
  }

  void send(ValueId id, int32_t micro_batch, const std::string& name) {
    if (!owners_.holds(range_of(id, micro_batch), content(id, micro_batch))) problem("{} sends {} whose bytes hold something else, or nothing yet", name, stage_.value(id).name);
  }

  const Stage& stage_;
  const Schedule& schedule_;
  std::optional<Schedule> steps_;  // of a schedule that carries: some steps in a row
  const MemoryMap& map_;
  const ShardOptions& shards_;
  const std::vector<ActivationGroup>& groups_;
  std::map<std::tuple<int32_t, int32_t, bool>, std::multimap<int32_t, const ActivationGroup*>> copies_;  // by chunk, micro-batch and direction: by op
  ByteOwners owners_;
  std::map<int64_t, std::pair<int64_t, std::string>> persistent_;  // begin -> (end, name)
  std::set<ValueId> messages_;
  std::map<std::pair<int32_t, int32_t>, int32_t> slot_of_;  // (chunk, micro-batch)
  bool normed_ = false;
  std::vector<std::string> problems_;
};

}  // namespace

std::vector<std::string> verify_plan(const Stage& stage, const Schedule& schedule, const MemoryMap& map, const ShardOptions& shards,
                                     const std::vector<ActivationGroup>& activation_groups) {
  return Verifier(stage, schedule, map, shards, activation_groups).run();
}

}  // namespace orrery
