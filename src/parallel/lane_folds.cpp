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
  FoldBuilder(LaneFolds& folds, int64_t per_lane, int64_t first_lane) : folds_(folds), counter_(folds), per_lane_(per_lane), batch_sequence_(first_lane * per_lane) {}

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
    folds_.micro_batches.push_back({next_sequence_, num_sequences, batch_sequence_ + next_sequence_, 0});
    next_sequence_ += num_sequences;
    folds_.folds.push_back(std::move(fold));
  }
  LaneFolds& folds_;
  SumCounter counter_;
  int64_t per_lane_;
  int64_t next_sequence_ = 0;
  int64_t batch_sequence_;  // of the share's first
};

bool are_halves(const LaneRange& lower, const LaneRange& upper) {
  return lower.count == upper.count && lower.first % (2 * lower.count) == 0 && lower.first + lower.count == upper.first;
}

// What an owner keeps after a round: what it kept and the pieces, joined wherever two are the halves of a node. A joined sum stays in the
// buffer of its lower half; a new one takes the lowest buffer that is free.
std::vector<ShardSum> sums_after(const std::vector<ShardSum>& before, const std::vector<LaneRange>& pieces) {
  constexpr int32_t kNew = -1;
  std::vector<ShardSum> sums;
  const auto push = [&](ShardSum sum) {
    while (!sums.empty() && are_halves(sums.back().lanes, sum.lanes)) {
      sum = {{sums.back().lanes.first, 2 * sum.lanes.count}, sums.back().buffer};
      sums.pop_back();
    }
    sums.push_back(sum);
  };
  for (const ShardSum& sum : before) push(sum);
  for (const LaneRange& piece : pieces)
    if (piece.count > 0) push({piece, kNew});
  for (ShardSum& sum : sums)
    for (int32_t buffer = 0; sum.buffer == kNew; ++buffer)
      if (std::none_of(sums.begin(), sums.end(), [&](const ShardSum& other) { return other.buffer == buffer; })) sum.buffer = buffer;
  return sums;
}

// Lanes of a block: as many as a micro-batch holds, so long as blocks start at multiples of themselves and no member has more lanes than it must.
int64_t lanes_of_block(const LaneShare& share, int64_t first, int64_t num_lanes, int64_t per_lane) {
  const int64_t members = share.num_members, least = (num_lanes + members - 1) / members;
  auto lanes = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(1, share.micro_batch_size / per_lane))));
  const auto most = [&](int64_t block) { return (num_lanes / block + members - 1) / members * block; };
  while (lanes > 1 && (first % lanes != 0 || num_lanes % lanes != 0 || most(lanes) > least)) lanes /= 2;
  return lanes;
}

LaneFolds folds_in_rounds(const LaneShare& share, int64_t first, int64_t num_lanes, int64_t per_lane) {
  LaneFolds folds;
  const int64_t members = share.num_members, block = lanes_of_block(share, first, num_lanes, per_lane);
  const int64_t in_block = block * per_lane, in_micro_batch = std::min(in_block, share.micro_batch_size);
  std::vector<ShardSum> sums;
  int64_t next_sequence = 0;
  for (int64_t begin = 0; begin < num_lanes; begin += members * block) {
    ReductionRound round;
    for (int64_t member = 0; member < members; ++member) {
      const int64_t at = begin + member * block;
      round.pieces.push_back(at < num_lanes ? LaneRange{first + at, block} : LaneRange{});
    }
    round.before = sums;
    sums = round.after = sums_after(round.before, round.pieces);
    for (const ShardSum& sum : sums) folds.num_shard_sums = std::max(folds.num_shard_sums, sum.buffer + 1);
    const LaneRange& mine = round.pieces[static_cast<size_t>(share.member)];
    for (int64_t done = 0; done < in_block; done += in_micro_batch) {
      const int64_t count = mine.count > 0 ? std::min(in_micro_batch, in_block - done) : 0;
      folds.micro_batches.push_back({next_sequence, count, mine.first * per_lane + done, static_cast<int32_t>(folds.rounds.size())});
      next_sequence += count;
      LaneFold fold;
      fold.sum = static_cast<int32_t>(folds.rounds.size());
      fold.add_to_destination = done > 0;
      if (in_micro_batch == in_block && count > 0) {
        fold.merges = whole_lane_merges(block, per_lane, false);
      } else {
        fold.merges.assign(static_cast<size_t>(count), 1);
        if (done == 0 && count > 0) fold.merges[0] = 0;
      }
      folds.folds.push_back(std::move(fold));
    }
    folds.rounds.push_back(std::move(round));
  }
  folds.num_sums = static_cast<int32_t>(folds.rounds.size());
  return folds;
}

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
  if (share.num_members > 0) return folds_in_rounds(share, first, end - first, per_lane);
  LaneFolds folds;
  FoldBuilder builder(folds, per_lane, first);
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
