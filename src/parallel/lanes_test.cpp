// The lane schedule adds the sequences of a global batch in one fixed order, whatever the micro-batch size: each schedule is run
// symbolically, with strings for sums, and must give the string that the definition of NUMERICS rule 4 gives.
#include "parallel/lanes.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <map>
#include <string>

#include "base/error.h"

namespace orrery {
namespace {

std::string lane_sum(int64_t lane, int64_t per_lane) {
  std::string sum = std::to_string(lane * per_lane);
  for (int64_t i = 1; i < per_lane; ++i) sum = "(" + sum + "+" + std::to_string(lane * per_lane + i) + ")";
  return sum;
}

std::string tree_sum(int64_t first, int64_t count, int64_t per_lane) {
  if (count == 1) return lane_sum(first, per_lane);
  return "(" + tree_sum(first, count / 2, per_lane) + "+" + tree_sum(first + count / 2, count / 2, per_lane) + ")";
}

// The sums that are left, in lane order.
std::vector<std::string> run(const Schedule& schedule) {
  std::map<int, std::string> buffers;
  for (const Action& action : schedule.actions) {
    if (action.kind == ActionKind::kMerge)
      buffers[action.gradient_buffer] = "(" + buffers.at(action.gradient_buffer) + "+" + buffers.at(action.source_buffer) + ")";
    if (action.kind != ActionKind::kBackward) continue;
    const MicroBatch& batch = schedule.micro_batches[action.micro_batch];
    std::vector<std::string> stack;
    if (action.add_to_destination) stack.push_back(buffers.at(action.gradient_buffer));
    EXPECT_EQ(static_cast<int64_t>(action.merges.size()), batch.num_sequences);
    for (int64_t i = 0; i < batch.num_sequences; ++i) {
      stack.push_back(std::to_string(batch.first_sequence + i));
      for (int merge = 0; merge < action.merges[i]; ++merge) {
        const std::string upper = stack.back();
        stack.pop_back();
        stack.back() = "(" + stack.back() + "+" + upper + ")";
      }
    }
    EXPECT_EQ(stack.size(), 1u);
    buffers[action.gradient_buffer] = stack[0];
  }
  std::vector<std::string> sums;
  for (int32_t buffer : schedule.piece_buffers[0]) sums.push_back(buffers.at(buffer));
  return sums;
}

TEST(LaneSchedule, SameSumForEveryMicroBatchSize) {
  for (int64_t lanes : {1, 2, 4, 8})
    for (int64_t per_lane : {1, 2, 3, 4, 5})
      for (int64_t micro_batch = 1; micro_batch <= lanes * per_lane; ++micro_batch) {
        const Schedule schedule = lane_schedules({lanes * per_lane, lanes, micro_batch}).front();
        EXPECT_EQ(run(schedule), std::vector{tree_sum(0, lanes, per_lane)}) << lanes << " " << per_lane << " " << micro_batch;
        const int64_t whole = micro_batch >= per_lane ? std::min<int64_t>(lanes, std::bit_floor(static_cast<uint64_t>(micro_batch / per_lane))) : 0;
        const int log_lanes = std::countr_zero(static_cast<uint64_t>(lanes));
        const int bound = whole ? std::max(1, log_lanes - std::countr_zero(static_cast<uint64_t>(whole))) : log_lanes + 1;
        EXPECT_EQ(schedule.num_gradient_buffers[0], bound) << lanes << " " << per_lane << " " << micro_batch;
      }
}

// A rank that holds lanes [begin, end) ends with the largest nodes of the lane tree inside them, and no sum reaches beyond its share.
TEST(LaneSchedule, SharesOfRanksAreNodesOfTheTree) {
  for (int64_t lanes : {1, 2, 4, 8, 16})
    for (int64_t ranks = 1; ranks <= lanes; ++ranks)
      for (int64_t per_lane : {1, 2, 3})
        for (int64_t micro_batch : {1, 2, 3, 4, 7, 16}) {
          int64_t expected_first = 0;
          for (int64_t rank = 0; rank < ranks; ++rank) {
            const LaneSchedule options{lanes * per_lane, lanes, micro_batch, ranks, rank};
            const Schedule schedule = lane_schedules(options).front();
            const int64_t begin = first_lane_of(options, rank), end = first_lane_of(options, rank + 1);
            EXPECT_EQ(begin, expected_first);
            expected_first = end;
            EXPECT_EQ(num_sequences(schedule), (end - begin) * per_lane);
            std::vector<std::string> wanted;
            for (int64_t lane = begin; lane < end;) {
              int64_t size = 1;
              while (lane % (2 * size) == 0 && lane + 2 * size <= end) size *= 2;
              wanted.push_back(tree_sum(lane - begin, size, per_lane));  // sequences are counted from the rank's first
              lane += size;
            }
            EXPECT_EQ(run(schedule), wanted) << lanes << " lanes, rank " << rank << " of " << ranks << ", " << per_lane << " a lane, micro-batch " << micro_batch;
          }
          EXPECT_EQ(expected_first, lanes);
        }
}

// What a member's micro-batches of a round add up to; sequences are those of the batch.
std::string sum_of_round(const LaneFolds& folds, size_t round) {
  std::string sum;
  for (size_t i = 0; i < folds.folds.size(); ++i) {
    const MicroBatch& batch = folds.micro_batches[i];
    if (batch.round != static_cast<int32_t>(round) || batch.num_sequences == 0) continue;
    std::vector<std::string> stack;
    if (folds.folds[i].add_to_destination) stack.push_back(sum);
    for (int64_t sequence = 0; sequence < batch.num_sequences; ++sequence) {
      stack.push_back(std::to_string(batch.batch_sequence + sequence));
      for (int merge = 0; merge < folds.folds[i].merges[static_cast<size_t>(sequence)]; ++merge) {
        const std::string upper = stack.back();
        stack.pop_back();
        stack.back() = "(" + stack.back() + "+" + upper + ")";
      }
    }
    EXPECT_EQ(stack.size(), 1u);
    sum = stack[0];
  }
  return sum;
}

// The members of a shard group bring nodes of the lane tree, which owners join with what they keep to the tree over the group's lanes. No member
// has more lanes than it must, and all have the same rounds and as many micro-batches.
TEST(LaneFolds, RoundsOfAShardGroupMeetInTheLaneTree) {
  for (int64_t lanes : {1, 2, 4, 8, 16})
    for (int64_t first : {int64_t{0}, lanes / 2})
      for (int64_t members = 1; members <= lanes - first; ++members)
        for (int64_t per_lane : {1, 2, 3})
          for (int64_t micro_batch : {1, 2, 3, 4, 7, 16}) {
            const std::string name = fmt::format("lanes [{}, {}), {} members, {} a lane, micro-batch {}", first, lanes, members, per_lane, micro_batch);
            LaneShare share{lanes * per_lane, lanes, micro_batch, first, lanes - first, members, 0};
            std::vector<LaneFolds> folds;
            for (share.member = 0; share.member < members; ++share.member) folds.push_back(lane_folds(share));
            int64_t num_sequences = 0;
            for (const LaneFolds& member : folds) {
              ASSERT_EQ(member.rounds, folds[0].rounds) << name;
              ASSERT_EQ(member.micro_batches.size(), folds[0].micro_batches.size()) << name;
              int64_t held = 0;
              for (const MicroBatch& batch : member.micro_batches) held += batch.num_sequences;
              EXPECT_LE(held, (lanes - first + members - 1) / members * per_lane) << name;
              num_sequences += held;
            }
            EXPECT_EQ(num_sequences, (lanes - first) * per_lane) << name;
            std::map<int32_t, std::string> kept;  // by buffer
            for (size_t j = 0; j < folds[0].rounds.size(); ++j) {
              const ReductionRound& round = folds[0].rounds[j];
              std::vector<std::pair<LaneRange, std::string>> nodes;
              for (const ShardSum& sum : round.before) nodes.emplace_back(sum.lanes, kept.at(sum.buffer));
              for (size_t member = 0; member < folds.size(); ++member) {
                const LaneRange& piece = round.pieces[member];
                ASSERT_EQ(sum_of_round(folds[member], j), piece.count > 0 ? tree_sum(piece.first, piece.count, per_lane) : "") << name;
                if (piece.count > 0) nodes.emplace_back(piece, tree_sum(piece.first, piece.count, per_lane));
              }
              for (const ShardSum& sum : round.after) {
                EXPECT_EQ(sum.lanes.first % sum.lanes.count, 0) << name;
                int64_t lane = sum.lanes.first;
                for (const auto& [range, text] : nodes)
                  if (range.first == lane && lane < sum.lanes.first + sum.lanes.count) lane += range.count;
                EXPECT_EQ(lane, sum.lanes.first + sum.lanes.count) << name;
                kept[sum.buffer] = tree_sum(sum.lanes.first, sum.lanes.count, per_lane);
              }
              EXPECT_LE(round.after.size(), static_cast<size_t>(folds[0].num_shard_sums)) << name;
            }
            const std::vector<ShardSum>& last = folds[0].rounds.back().after;
            EXPECT_EQ(last.size(), 1u) << name;
            EXPECT_EQ(last[0], (ShardSum{{first, lanes - first}, 0})) << name;
          }
  // A round of a power of two of ranks is one node: owners keep as many sums as there are levels above.
  EXPECT_EQ(lane_folds({16, 16, 1, 0, 16, 4, 0}).num_shard_sums, 2);
  EXPECT_EQ(lane_folds({16, 16, 4, 0, 16, 4, 0}).num_shard_sums, 1);
}

TEST(LaneSchedule, RefusesLanesThatDoNotDivide) {
  EXPECT_THROW(lane_schedules({4, 2, 1, 3, 0}), Error);
  EXPECT_THROW(lane_schedules({6, 4, 1}), Error);
  EXPECT_THROW(lane_schedules({6, 3, 1}), Error);
}

TEST(LaneSchedule, PrintsActions) {
  EXPECT_EQ(to_string(lane_schedules({2, 2, 1}).front()), "F0 B0 F1 B1");
  EXPECT_EQ(to_string(lane_schedules({4, 2, 1}).front()), "F0 B0 F1 B1 F2 B2 F3 B3 M1>0");
}

}  // namespace
}  // namespace orrery
