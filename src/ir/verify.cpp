#include "ir/verify.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/error.h"
#include "ir/op_table.h"

namespace orrery {
namespace {

struct Range {
  int64_t begin = 0, end = 0;
  bool overlaps(const Range& other) const { return begin < other.end && other.begin < end; }
};

// What a byte range of the activation area holds: a value of a micro-batch; the newest write wins.
class ByteOwners {
 public:
  void write(Range range, ValueId value) {
    if (range.begin >= range.end) return;
    split_at(range.begin);
    split_at(range.end);
    owners_.erase(owners_.lower_bound(range.begin), owners_.lower_bound(range.end));
    owners_[range.begin] = {range.end, value};
  }
  bool holds(Range range, ValueId value) const {
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
  std::map<int64_t, std::pair<int64_t, ValueId>> owners_;  // begin -> (end, value)
};

class Verifier {
 public:
  Verifier(const Stage& stage, const Schedule& schedule, const MemoryMap& map) : stage_(stage), schedule_(schedule), map_(map) {}

  std::vector<std::string> run() {
    persistent_buffers();
    micro_batch_order();
    for (const Action& action : schedule_.actions) {
      if (problems_.size() >= kMaxProblems) break;
      run_action(action);
    }
    if (!schedule_.actions.empty() && !stage_.block(Phase::kEval).ops.empty()) {
      owners_.clear();
      run_ops(Phase::kEval, "eval");
    }
    return std::move(problems_);
  }

 private:
  static constexpr size_t kMaxProblems = 20;

  template <typename... Args>
  void problem(fmt::format_string<Args...> format, Args&&... args) {
    if (problems_.size() < kMaxProblems) problems_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  void persistent(const std::string& name, int64_t offset, int64_t bytes) {
    if (offset < 0) return;
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
      persistent(spec.name, map_.parameter_offset[i], spec.num_elements() * dtype_bytes(stage_.compute_dtype));
      if (i < map_.state_offset.size())
        for (size_t field = 0; field < 3; ++field)
          persistent(fmt::format("{} state {}", spec.name, field), map_.state_offset[i][field], (map_.state_range[i][1] - map_.state_range[i][0]) * 2);
    }
    for (const Value& value : stage_.values)
      if (value.kind == ValueKind::kParameter && value.sub == 1) persistent(value.name, map_.packed_offset[static_cast<size_t>(value.index)], value.bytes());
    for (size_t i = 0; i < map_.gradient_buffer_offset.size(); ++i)
      persistent(fmt::format("gradient buffer {}", i), map_.gradient_buffer_offset[i], map_.gradient_buffer_bytes);
    for (size_t i = 0; i < map_.constant_offset.size(); ++i)
      persistent(fmt::format("constant {}", i), map_.constant_offset[i], stage_.constants[i].max_positions * stage_.constants[i].rotary_dim * 4);
    for (size_t i = 0; i < map_.batch_offset.size(); ++i) persistent(fmt::format("batch field {}", i), map_.batch_offset[i], map_.batch_bytes[i]);
  }

  void micro_batch_order() {
    std::vector<int> progress(schedule_.micro_batches.size(), 0);
    int num_optimizer = 0;
    for (const Action& action : schedule_.actions) {
      if (action.kind == ActionKind::kOptimizer) ++num_optimizer;
      if (action.kind != ActionKind::kForward && action.kind != ActionKind::kBackward) continue;
      if (action.micro_batch < 0 || action.micro_batch >= static_cast<int32_t>(progress.size())) {
        problem("{} names a micro-batch that is not there", to_string(action, schedule_));
        continue;
      }
      const int wanted = action.kind == ActionKind::kForward ? 0 : 1;
      if (progress[action.micro_batch] != wanted) problem("{} comes out of order", to_string(action, schedule_));
      progress[action.micro_batch] = wanted + 1;
    }
    for (size_t i = 0; i < progress.size(); ++i)
      if (progress[i] != 2) problem("micro-batch {} is not both run forward and backward", i);
    const auto last_compute = std::find_if(schedule_.actions.rbegin(), schedule_.actions.rend(), [](const Action& action) { return stream_of(action.kind) == Stream::kCompute; });
    if (!schedule_.actions.empty() && (num_optimizer != 1 || last_compute->kind != ActionKind::kOptimizer)) problem("the schedule does not end in one OPT");
  }

  Range range_of(ValueId id) const {
    const Value& value = stage_.value(stage_.storage(id));
    const int64_t begin = map_.activation_offset[stage_.storage(id)];
    return {begin, begin + value.bytes()};
  }

  void run_ops(Phase phase, const std::string& where) {
    const auto phase_index = static_cast<size_t>(phase);
    const std::vector<Op>& ops = stage_.block(phase).ops;
    for (size_t i = 0; i < ops.size(); ++i) {
      const Op& op = ops[i];
      std::vector<std::pair<Range, ValueId>> reads;
      for (ValueId id : op.inputs) {
        if (stage_.value(id).kind != ValueKind::kActivation) continue;
        const Range range = range_of(id);
        reads.push_back({range, stage_.storage(id)});
        if (range.begin < 0 || range.end > map_.total_bytes) problem("{}: {} of {} has no memory", where, stage_.value(id).name, op_name(op.kind));
        else if (!owners_.holds(range, stage_.storage(id)))
          problem("{}: op {} {} reads {} whose bytes hold something else, or nothing yet", where, i, op_name(op.kind), stage_.value(id).name);
      }
      std::vector<std::pair<Range, ValueId>> writes;
      for (ValueId id : op.outputs)
        if (stage_.value(id).kind == ValueKind::kActivation) writes.push_back({range_of(id), stage_.storage(id)});
      const int64_t workspace = map_.workspace_bytes[phase_index][i];
      if (workspace > 0) {
        const int64_t begin = map_.workspace_offset[phase_index][i];
        writes.push_back({{begin, begin + workspace}, kNoValue});
      }
      for (size_t a = 0; a < writes.size(); ++a) {
        const auto& [range, value] = writes[a];
        if (range.begin < 0 || range.end > map_.total_bytes) problem("{}: an output of op {} {} has no memory", where, i, op_name(op.kind));
        for (const auto& [read_range, read_value] : reads)
          if (read_value != value && range.overlaps(read_range)) problem("{}: op {} {} overwrites its own input", where, i, op_name(op.kind));
        for (size_t b = 0; b < a; ++b)
          if (writes[b].second != value && range.overlaps(writes[b].first)) problem("{}: two outputs of op {} {} overlap", where, i, op_name(op.kind));
        const auto next = persistent_.upper_bound(range.begin);
        if ((next != persistent_.end() && next->first < range.end) || (next != persistent_.begin() && std::prev(next)->second.first > range.begin))
          problem("{}: op {} {} writes into a persistent buffer", where, i, op_name(op.kind));
        owners_.write(range, value);
      }
    }
  }

  // Sums are compared as hashes of their association: a leaf per sequence, a node per addition.
  static uint64_t leaf(int64_t sequence) { return mix(0x9E3779B97F4A7C15ull, static_cast<uint64_t>(sequence) + 1); }
  static uint64_t node(uint64_t lower, uint64_t upper) { return mix(lower * 0xD6E8FEB86659FD93ull + 1, upper); }
  static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t x = (a ^ (b + 0x9E3779B97F4A7C15ull)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 29)) * 0x94D049BB133111EBull;
    return x ^ (x >> 32);
  }

  uint64_t lane_tree(int64_t first_lane, int64_t num_lanes, int64_t per_lane) const {
    if (num_lanes > 1) return node(lane_tree(first_lane, num_lanes / 2, per_lane), lane_tree(first_lane + num_lanes / 2, num_lanes / 2, per_lane));
    uint64_t sum = leaf(first_lane * per_lane);
    for (int64_t i = 1; i < per_lane; ++i) sum = node(sum, leaf(first_lane * per_lane + i));
    return sum;
  }

  // The sum that a micro-batch leaves in its gradient buffer.
  void fold(const Action& action) {
    const MicroBatch& batch = schedule_.micro_batches[action.micro_batch];
    if (static_cast<int64_t>(action.merges.size()) != batch.num_sequences) {
      problem("{} folds {} sequences of {}", to_string(action, schedule_), action.merges.size(), batch.num_sequences);
      return;
    }
    std::vector<uint64_t> stack;
    if (action.add_to_destination) {
      if (!filled_.count(action.gradient_buffer)) {
        problem("{} adds to gradient buffer {} before it holds a sum", to_string(action, schedule_), action.gradient_buffer);
        return;
      }
      stack.push_back(filled_[action.gradient_buffer]);
    }
    for (int64_t i = 0; i < batch.num_sequences; ++i) {
      stack.push_back(leaf(batch.first_sequence + i));
      if (action.merges[i] >= stack.size()) {
        problem("{} merges an empty stack", to_string(action, schedule_));
        return;
      }
      for (int merge = 0; merge < action.merges[i]; ++merge) {
        const uint64_t upper = stack.back();
        stack.pop_back();
        stack.back() = node(stack.back(), upper);
      }
    }
    if (stack.size() != 1) problem("{} leaves {} partial sums", to_string(action, schedule_), stack.size());
    filled_[action.gradient_buffer] = stack[0];
  }

  // The nodes of the lane tree that make up this rank's lanes, each in the buffer that piece_buffers names, and nothing else.
  void check_gradient_sums() {
    const int64_t per_lane = schedule_.sequences_per_lane;
    const int64_t count = num_sequences(schedule_);
    if (per_lane < 1 || count % per_lane != 0) {
      problem("{} sequences do not fill lanes of {}", count, per_lane);
      return;
    }
    if (filled_.size() != schedule_.piece_buffers.size()) {
      problem("NORM runs while {} gradient buffers hold sums; wanted {}", filled_.size(), schedule_.piece_buffers.size());
      return;
    }
    const int64_t end = schedule_.first_lane + count / per_lane;
    int64_t lane = schedule_.first_lane;
    for (int32_t buffer : schedule_.piece_buffers) {
      int64_t size = 1;
      while (lane % (2 * size) == 0 && lane + 2 * size <= end) size *= 2;
      if (lane >= end || !filled_.count(buffer) || filled_[buffer] != lane_tree(lane - schedule_.first_lane, size, per_lane)) {
        problem("the sum in gradient buffer {} is not the lane tree over lanes {} to {} of {}", buffer, lane, lane + size - 1, schedule_.lanes);
        return;
      }
      lane += size;
    }
    if (lane != end) problem("lanes {} to {} reach no gradient buffer", lane, end - 1);
  }

  void run_action(const Action& action) {
    const std::string name = to_string(action, schedule_);
    if (action.gradient_buffer < 0 || action.gradient_buffer >= static_cast<int32_t>(map_.gradient_buffer_offset.size())) {
      problem("{} names gradient buffer {}, the map has {}", name, action.gradient_buffer, map_.gradient_buffer_offset.size());
      return;
    }
    switch (action.kind) {
      case ActionKind::kZero:
        run_ops(Phase::kZero, name);
        zeroed_.insert(action.gradient_buffer);
        filled_.erase(action.gradient_buffer);
        return;
      case ActionKind::kForward: owners_.clear(); [[fallthrough]];
      case ActionKind::kBackward: {
        if (action.micro_batch < 0 || action.micro_batch >= static_cast<int32_t>(schedule_.micro_batches.size())) return;
        const bool writes_rows = !stage_.block(Phase::kZero).ops.empty();
        if (!action.add_to_destination && writes_rows && !zeroed_.count(action.gradient_buffer)) problem("{} accumulates rows into gradient buffer {}, which was not zeroed", name, action.gradient_buffer);
        if (!action.add_to_destination && filled_.count(action.gradient_buffer)) problem("{} overwrites the sum in gradient buffer {}", name, action.gradient_buffer);
        run_ops(action.kind == ActionKind::kForward ? Phase::kForward : Phase::kBackward, name);
        if (action.kind == ActionKind::kForward) {
          forward_ = action;
          return;
        }
        forward_.kind = ActionKind::kBackward;
        if (!(forward_ == action)) problem("{} does not follow its forward with the same gradient buffer and fold", name);
        fold(action);
        zeroed_.erase(action.gradient_buffer);
        return;
      }
      case ActionKind::kMerge:
        run_ops(Phase::kMerge, name);
        if (!filled_.count(action.source_buffer) || !filled_.count(action.gradient_buffer)) {
          problem("{} merges a gradient buffer that holds no sum", name);
          return;
        }
        filled_[action.gradient_buffer] = node(filled_[action.gradient_buffer], filled_[action.source_buffer]);
        filled_.erase(action.source_buffer);
        return;
      case ActionKind::kNorm:
        check_gradient_sums();
        if (schedule_.piece_buffers.empty() || action.gradient_buffer != schedule_.piece_buffers.front()) problem("{} reads gradient buffer {}, which is not where the sum is", name, action.gradient_buffer);
        owners_.clear();
        run_ops(Phase::kNorm, name);
        normed_ = true;
        return;
      case ActionKind::kReduceScatterGradients:
      case ActionKind::kExchangeSums:
      case ActionKind::kAllGatherGradients:
      case ActionKind::kAllGatherParameters: return;  // between ranks: verify_schedules.h
      case ActionKind::kOptimizer:
        if (!normed_) problem("OPT comes before NORM");
        if (schedule_.piece_buffers.empty() || action.gradient_buffer != schedule_.piece_buffers.front()) problem("{} reads gradient buffer {}, which is not where the sum is", name, action.gradient_buffer);
        owners_.clear();
        run_ops(Phase::kOptimizer, name);
        return;
      default: problem("{} is not an action of one rank", name); return;
    }
  }

  const Stage& stage_;
  const Schedule& schedule_;
  const MemoryMap& map_;
  ByteOwners owners_;
  std::map<int64_t, std::pair<int64_t, std::string>> persistent_;  // begin -> (end, name)
  std::map<int32_t, uint64_t> filled_;  // gradient buffer -> hash of the sum it holds
  std::set<int32_t> zeroed_;
  Action forward_;
  bool normed_ = false;
  std::vector<std::string> problems_;
};

}  // namespace

std::vector<std::string> verify_plan(const Stage& stage, const Schedule& schedule, const MemoryMap& map) {
  return Verifier(stage, schedule, map).run();
}

}  // namespace orrery
