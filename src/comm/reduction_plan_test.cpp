// Proves that a reduction plan adds each lane once, in the lane tree's association, for every number of ranks; that strided lanes
// complete the nodes they can; and that the vector addition has the bits of plain f32 additions.
#include "comm/reduction_plan.h"

#include <gtest/gtest.h>

#include <string>

#include "base/cpu_features.h"
#include "base/error.h"
#include "comm/comm_suite.h"
#include "comm/tree_sum.h"

namespace orrery {
namespace {

// "((0+1)+(2+3))" for lanes [0, 4).
std::string tree_text(int64_t begin, int level) {
  if (level == 0) return std::to_string(begin);
  return "(" + tree_text(begin, level - 1) + "+" + tree_text(begin + (int64_t{1} << (level - 1)), level - 1) + ")";
}
std::string program_text(const ReductionPlan& plan, size_t output) {
  std::vector<std::string> stack;
  for (const int16_t instruction : plan.programs[output].code) {
    if (instruction >= 0) {
      const auto& source = plan.sources[static_cast<size_t>(instruction)];
      const LaneNode node = source.rank == ReductionPlan::Source::kCarried ? plan.carried[static_cast<size_t>(source.piece)] : plan.pieces[static_cast<size_t>(source.rank)][static_cast<size_t>(source.piece)];
      stack.push_back(tree_text(node.first_lane, node.level));
    } else {
      const std::string upper = stack.back();
      stack.pop_back();
      stack.back() = "(" + stack.back() + "+" + upper + ")";
    }
  }
  return stack.size() == 1 ? stack[0] : "unbalanced";
}

TEST(ReductionPlan, AnyNumberOfRanksIsTheLaneTree) {
  for (int level = 0; level <= 6; ++level)
    for (int num_ranks = 1; num_ranks <= 1 << level; ++num_ranks) {
      const ReductionPlan plan = contiguous_lanes_plan(num_ranks, int64_t{1} << level);
      ASSERT_EQ(plan.outputs.size(), 1u) << num_ranks << " ranks, level " << level;
      EXPECT_EQ(plan.outputs[0], (LaneNode{0, level}));
      EXPECT_EQ(program_text(plan, 0), tree_text(0, level)) << num_ranks;
    }
}

TEST(ReductionPlan, ThreeRanksOfEightLanes) {
  EXPECT_EQ(lane_nodes(2, 5), (std::vector<LaneNode>{{2, 1}, {4, 0}}));
  EXPECT_EQ(lane_nodes(0, 8), (std::vector<LaneNode>{{0, 3}}));
  const ReductionPlan plan = contiguous_lanes_plan(3, 8);
  EXPECT_EQ(plan.sources.size(), 5u);  // [0,2) | [2,4) 4 | 5 [6,8)
  const std::vector<ElementRange> owners = {{0, 10}, {10, 30}, {30, 30}};
  EXPECT_EQ(plan.elements_sent(1, 0, owners), 20);
  EXPECT_EQ(plan.elements_sent(0, 1, owners), 20);
  EXPECT_EQ(plan.elements_sent(0, 2, owners), 0);
  EXPECT_EQ(plan.elements_sent(1, 1, owners), 0);
}

// Three ranks of eight lanes in rounds: what is carried joins what arrives, and what only stays is no output.
TEST(ReductionPlan, CarriedSumsMeetWhatArrives) {
  const ReductionPlan first = make_reduction_plan({{{0, 0}}, {{1, 0}}, {{2, 0}}});
  ASSERT_EQ(first.outputs, (std::vector<LaneNode>{{0, 1}, {2, 0}}));
  const ReductionPlan second = make_reduction_plan({{{3, 0}}, {{4, 0}}, {{5, 0}}}, {{0, 1}, {2, 0}});
  ASSERT_EQ(second.outputs, (std::vector<LaneNode>{{0, 2}, {4, 1}}));
  EXPECT_EQ(program_text(second, 0), tree_text(0, 2));
  EXPECT_EQ(program_text(second, 1), tree_text(4, 1));
  const ReductionPlan third = make_reduction_plan({{{6, 0}}, {{7, 0}}, {}}, {{0, 2}, {4, 1}});
  ASSERT_EQ(third.outputs, (std::vector<LaneNode>{{0, 3}}));
  EXPECT_EQ(program_text(third, 0), tree_text(0, 3));
  const ReductionPlan stays = make_reduction_plan({{{6, 0}}, {}}, {{0, 2}});
  EXPECT_EQ(stays.outputs, (std::vector<LaneNode>{{6, 0}}));
  EXPECT_THROW(make_reduction_plan({{{3, 0}}}, {{0, 2}}), Error);
}

TEST(ReductionPlan, StridedRoundsCompleteWhatTheyCan) {
  // Round 1 of 3 ranks over 8 lanes: lanes 3, 4 and 5. 3 waits for 2, which the first round left.
  const ReductionPlan plan = make_reduction_plan({{{3, 0}}, {{4, 0}}, {{5, 0}}});
  EXPECT_EQ(plan.outputs, (std::vector<LaneNode>{{3, 0}, {4, 1}}));
  EXPECT_THROW(make_reduction_plan({{{2, 1}}, {{3, 0}}}), Error);
}

TEST(ReductionPlan, EqualRanges) {
  std::vector<ElementRange> ranges(3);
  equal_ranges(10, 4, ranges);  // three units of four, the last one short
  EXPECT_EQ(ranges, (std::vector<ElementRange>{{0, 4}, {4, 8}, {8, 10}}));
  equal_ranges(1, 4, ranges);
  EXPECT_EQ(ranges, (std::vector<ElementRange>{{0, 1}, {1, 1}, {1, 1}}));
}

TEST(TreeSum, HasTheBitsOfPlainAdditionsOnEveryInstructionSet) {
  const ReductionPlan plan = contiguous_lanes_plan(8, 8);
  for (const size_t count : {0u, 1u, 15u, 16u, 511u, 513u, 5000u}) {
    std::vector<std::vector<float>> lanes;
    std::vector<const std::byte*> sources;
    for (int lane = 0; lane < 8; ++lane) lanes.push_back(comm_suite::make_floats(count, lane, count));
    for (const auto& lane : lanes) sources.push_back(reinterpret_cast<const std::byte*>(lane.data()));
    for (const VectorIsa isa : {VectorIsa::kAvx2, VectorIsa::kAvx512}) {
      if (isa == VectorIsa::kAvx512 && !cpu_features().avx512) continue;
      std::vector<float> sum(count);
      tree_sum(isa, DType::kF32, plan.programs[0], sources, reinterpret_cast<std::byte*>(sum.data()), static_cast<int64_t>(count));
      for (size_t i = 0; i < count; ++i) ASSERT_EQ(sum[i], comm_suite::tree_by_definition(count, 0, 3, i)) << i;
    }
  }
}

}  // namespace
}  // namespace orrery
