#include "parallel/lane_folds.h"

#include <algorithm>
#include <bit>

#include "base/error.h"

namespace orrery {
namespace {

// The finished subtree sums, lowest lane first: a binary counter over the lane index, whose digits are partial sums.
class SumCounter {
 public:
  explicit SumCounter(LaneFolds& folds) : folds_(folds) {}

  int32_t new_sum() { return folds_.num_sums++; }
  // The newest subtree and [first_lane, first_lane + num_lanes) are the halves of one node.
  bool joins_top(int64_t first_lane, int64_t num_lanes) const { return !digits_.empty() && are_halves(digits_.back(), {first_lane, num_lanes, 0}); }
  int32_t top_sum() const { return digits_.back().sum; }
  void grow_top(int64_t num_lanes) { digits_.back().num_lanes += num_lanes; }
  void push(FinishedSum digit) { digits_.push_back(digit); }

  void carry() {
    while (digits_.size() >= 2 && are_halves(digits_[digits_.size() - 2], digits_.back())) {
      const FinishedSum upper = digits_.back();
      digits_.pop_back();
      folds_.folds.back().carries.emplace_back(digits_.back().sum, upper.sum);
      grow_top(upper.num_lanes);
    }
  }

  const std::vector<FinishedSum>& digits() const { return digits_; }

 private:
  static bool are_halves(const FinishedSum& lower, const FinishedSum& upper) {
    return lower.num_lanes == upper.num_lanes && lower.first_lane % (2 * lower.num_lanes) == 0 && lower.first_lane + lower.num_lanes == upper.first_lane;
  }
  LaneFolds& folds_;
  std::vector<FinishedSum> digits_;
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

class FoldBuilder {
 public:
  FoldBuilder(LaneFolds& folds, int64_t per_lane) : folds_(folds), counter_(folds), per_lane_(per_lane) {}

  void whole_lanes(int64_t first_lane, int64_t num_lanes) {
    const bool joins = counter_.joins_top(first_lane, num_lanes);
    const int32_t sum = joins ? counter_.top_sum() : counter_.new_sum();
    add(num_lanes * per_lane_, {sum, joins, whole_lane_merges(num_lanes, per_lane_, joins), {}});
    if (joins)
      counter_.grow_top(num_lanes);
    else
      counter_.push({first_lane, num_lanes, sum});
    counter_.carry();
  }

  void lane_in_parts(int64_t lane, int64_t micro_batch_size) {
    const int32_t sum = counter_.new_sum();
    for (int64_t done = 0; done < per_lane_;) {
      const int64_t count = std::min(micro_batch_size, per_lane_ - done);
      std::vector<uint8_t> merges(static_cast<size_t>(count), 1);
      if (done == 0) merges[0] = 0;
      add(count, {sum, done > 0, std::move(merges), {}});
      done += count;
    }
    counter_.push({lane, 1, sum});
    counter_.carry();
  }

  const std::vector<FinishedSum>& finished() const { return counter_.digits(); }

 private:
  void add(int64_t num_sequences, LaneFold fold) {
    folds_.micro_batches.push_back({next_sequence_, num_sequences});
    next_sequence_ += num_sequences;
    folds_.folds.push_back(std::move(fold));
  }
  LaneFolds& folds_;
  SumCounter counter_;
  int64_t per_lane_;
  int64_t next_sequence_ = 0;
};

}  // namespace

LaneFolds lane_folds(const LaneShare& share) {
  const int64_t lanes = share.lanes, batch = share.global_batch_size;
  if (lanes < 1 || !std::has_single_bit(static_cast<uint64_t>(lanes)))
    throw Error(ErrorCode::kInvalidConfig, "train.lanes = {}: wanted a power of two", lanes);
  if (batch < 1 || batch % lanes != 0)
    throw Error(ErrorCode::kInvalidConfig, "train.global_batch_size = {} is not a multiple of train.lanes = {}; use {} or set train.lanes to a power of two that divides it",
                batch, lanes, (batch / lanes + 1) * lanes);
  ORRERY_CHECK(share.micro_batch_size >= 1, "micro_batch_size={}", share.micro_batch_size);
  const int64_t first = share.first_lane, end = first + (share.num_lanes == 0 ? lanes : share.num_lanes);
  ORRERY_CHECK(first >= 0 && first < end && end <= lanes, "lanes [{}, {}) of {}", first, end, lanes);
  const int64_t per_lane = batch / lanes;
  LaneFolds folds;
  FoldBuilder builder(folds, per_lane);
  if (share.micro_batch_size >= per_lane) {
    const auto group = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(share.micro_batch_size / per_lane)));
    for (int64_t lane = first; lane < end;) {
      int64_t num_lanes = std::min(group, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(end - lane))));
      while (lane % num_lanes != 0) num_lanes /= 2;
      builder.whole_lanes(lane, num_lanes);
      lane += num_lanes;
    }
  } else {
    for (int64_t lane = first; lane < end; ++lane) builder.lane_in_parts(lane, share.micro_batch_size);
  }
  folds.finished = builder.finished();
  return folds;
}

}  // namespace orrery
