#include "parallel/lanes.h"

#include <algorithm>
#include <bit>

#include "base/error.h"

namespace orrery {
namespace {

// The finished or growing subtree sums of the lane tree, lowest lane first: a binary counter whose digits are buffers.
class GradientCounter {
 public:
  explicit GradientCounter(Schedule& schedule) : schedule_(schedule) {}

  int32_t take_buffer() {
    int32_t buffer = 0;
    while (std::any_of(digits_.begin(), digits_.end(), [&](const Digit& digit) { return digit.buffer == buffer; })) ++buffer;
    schedule_.num_gradient_buffers = std::max(schedule_.num_gradient_buffers, buffer + 1);
    return buffer;
  }

  bool top_has_level(int level) const { return !digits_.empty() && digits_.back().level == level; }
  int32_t top_buffer() const { return digits_.back().buffer; }
  void raise_top() { ++digits_.back().level; }
  void push(int32_t buffer, int level) { digits_.push_back({buffer, level}); }

  // While the two newest subtrees have equal height, their sums meet.
  void carry() {
    while (digits_.size() >= 2 && digits_[digits_.size() - 2].level == digits_.back().level) {
      const int32_t source = digits_.back().buffer;
      digits_.pop_back();
      Action merge;
      merge.kind = ActionKind::kMerge;
      merge.gradient_buffer = digits_.back().buffer;
      merge.source_buffer = source;
      schedule_.actions.push_back(merge);
      raise_top();
    }
  }

  size_t num_digits() const { return digits_.size(); }

 private:
  struct Digit {
    int32_t buffer;
    int level;
  };
  Schedule& schedule_;
  std::vector<Digit> digits_;
};

struct Emitter {
  Schedule& schedule;
  bool needs_zero;
  int64_t next_sequence = 0;

  void micro_batch(int64_t num_sequences, int32_t buffer, std::vector<uint8_t> merges, bool add_to_destination) {
    const auto index = static_cast<int32_t>(schedule.micro_batches.size());
    schedule.micro_batches.push_back({next_sequence, num_sequences});
    next_sequence += num_sequences;
    if (needs_zero && !add_to_destination) {
      Action zero;
      zero.kind = ActionKind::kZero;
      zero.gradient_buffer = buffer;
      schedule.actions.push_back(zero);
    }
    Action action;
    action.kind = ActionKind::kForward;
    action.micro_batch = index;
    action.gradient_buffer = buffer;
    action.merges = std::move(merges);
    action.add_to_destination = add_to_destination;
    schedule.actions.push_back(action);
    action.kind = ActionKind::kBackward;
    schedule.actions.push_back(action);
  }
};

// The merges of `num_lanes` whole lanes: each lane is folded sequence by sequence, finished lanes meet like a binary counter.
std::vector<uint8_t> whole_lane_merges(int64_t num_lanes, int64_t sequences_per_lane, bool add_to_destination) {
  std::vector<uint8_t> merges;
  for (int64_t lane = 0; lane < num_lanes; ++lane)
    for (int64_t i = 0; i < sequences_per_lane; ++i) {
      int count = i > 0 ? 1 : 0;
      if (i + 1 == sequences_per_lane) count += std::countr_one(static_cast<uint64_t>(lane));
      merges.push_back(static_cast<uint8_t>(count));
    }
  if (add_to_destination) ++merges.back();
  return merges;
}

}  // namespace

Schedule lane_schedule(const LaneSchedule& options, bool needs_zero) {
  const int64_t lanes = options.lanes, batch = options.global_batch_size;
  if (lanes < 1 || !std::has_single_bit(static_cast<uint64_t>(lanes)))
    throw Error(ErrorCode::kInvalidConfig, "train.lanes = {}: wanted a power of two", lanes);
  if (batch < 1 || batch % lanes != 0)
    throw Error(ErrorCode::kInvalidConfig, "train.global_batch_size = {} is not a multiple of train.lanes = {}; use {} or set train.lanes to a power of two that divides it",
                batch, lanes, (batch / lanes + 1) * lanes);
  ORRERY_CHECK(options.micro_batch_size >= 1, "micro_batch_size={}", options.micro_batch_size);
  const int64_t per_lane = batch / lanes;
  Schedule schedule;
  schedule.lanes = lanes;
  schedule.num_slots = {1};
  Emitter emitter{schedule, needs_zero};
  GradientCounter counter(schedule);
  if (options.micro_batch_size >= per_lane) {
    const auto group = std::min<int64_t>(lanes, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(options.micro_batch_size / per_lane))));
    const int level = std::countr_zero(static_cast<uint64_t>(group));
    for (int64_t first_lane = 0; first_lane < lanes; first_lane += group) {
      const bool join = counter.top_has_level(level);
      const int32_t buffer = join ? counter.top_buffer() : counter.take_buffer();
      emitter.micro_batch(group * per_lane, buffer, whole_lane_merges(group, per_lane, join), join);
      if (join)
        counter.raise_top();
      else
        counter.push(buffer, level);
      counter.carry();
    }
  } else {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int32_t buffer = counter.take_buffer();
      for (int64_t done = 0; done < per_lane;) {
        const int64_t count = std::min(options.micro_batch_size, per_lane - done);
        std::vector<uint8_t> merges(static_cast<size_t>(count), 1);
        if (done == 0) merges[0] = 0;
        emitter.micro_batch(count, buffer, std::move(merges), done > 0);
        done += count;
      }
      counter.push(buffer, 0);
      counter.carry();
    }
  }
  ORRERY_CHECK(counter.num_digits() == 1 && counter.top_buffer() == 0, "{} subtrees left", counter.num_digits());
  Action optimizer;
  optimizer.kind = ActionKind::kOptimizer;
  schedule.actions.push_back(optimizer);
  return schedule;
}

}  // namespace orrery
