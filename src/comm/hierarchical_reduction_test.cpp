// Proves that a reduction in two levels gives the bits of the lane tree and sends the bytes that its contract names, for small groups
// and for a world beyond the direct exchange.
#include "comm/hierarchical_reduction.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "comm/comm_suite.h"

namespace orrery {
namespace {

void expect_lane_tree(int num_ranks, int64_t lanes, int group_size, size_t count) {
  const ReductionPlan plan = contiguous_lanes_plan(num_ranks, lanes);
  run_local_ranks(num_ranks, {}, [&](Communicator& comm) {
    HierarchicalReduction reduction(comm, plan, group_size);
    std::vector<ElementRange> owners(static_cast<size_t>(num_ranks));
    equal_ranges(static_cast<int64_t>(count), 3, owners);
    const LaneNode node = plan.pieces[static_cast<size_t>(comm.rank())][0];
    std::vector<float> piece(count), partial(static_cast<size_t>(reduction.partial_elements(owners)));
    for (size_t i = 0; i < count; ++i) piece[i] = comm_suite::tree_by_definition(9, node.first_lane, node.level, i);
    const ElementRange own = owners[static_cast<size_t>(comm.rank())];
    std::vector<float> result(static_cast<size_t>(own.size()));
    const auto bytes = [](std::vector<float>& values) { return reinterpret_cast<std::byte*>(values.data()); };
    const int64_t before = reduction.bytes_sent();
    reduction.run(DType::kF32, bytes(piece), owners, bytes(partial), bytes(result), "RS");
    int64_t planned = 0;
    for (int peer = 0; peer < num_ranks; ++peer) {
      const bool inside = peer / group_size == comm.rank() / group_size, counterpart = peer % group_size == comm.rank() % group_size;
      // Inside the group a member gets what all its counterparts will own; between groups its own range alone.
      if (inside && peer != comm.rank())
        for (int group = 0; group < num_ranks / group_size; ++group) planned += 4 * owners[static_cast<size_t>(group * group_size + peer % group_size)].size();
      if (!inside && counterpart) planned += 4 * owners[static_cast<size_t>(peer)].size();
    }
    EXPECT_EQ(reduction.bytes_sent() - before, planned);
    const int level = plan.outputs[0].level;
    for (size_t i = 0; i < result.size(); ++i) ASSERT_EQ(result[i], comm_suite::tree_by_definition(9, 0, level, static_cast<size_t>(own.begin) + i));
  });
}

TEST(HierarchicalReduction, HasTheBitsOfTheLaneTree) {
  expect_lane_tree(8, 8, 2, 1001);
  expect_lane_tree(8, 16, 4, 100);
  expect_lane_tree(6, 8, 3, 333);
  expect_lane_tree(4, 8, 4, 7);   // one group
  expect_lane_tree(4, 4, 1, 50);  // groups of one
}

TEST(HierarchicalReduction, BeyondTheDirectExchange) {
  const ReductionPlan plan = contiguous_lanes_plan(128, 128);
  EXPECT_EQ(reduction_group_size(plan), 64);
  expect_lane_tree(128, 128, 64, 500);
}

TEST(HierarchicalReduction, GroupsHoldWholeSubtrees) {
  EXPECT_EQ(reduction_group_size(contiguous_lanes_plan(8, 8)), 1);  // direct
  EXPECT_EQ(reduction_group_size(contiguous_lanes_plan(8, 8), 4), 4);
  EXPECT_EQ(reduction_group_size(contiguous_lanes_plan(6, 8), 4), 3);  // lanes [0, 4) and [4, 8)
  EXPECT_EQ(reduction_group_size(contiguous_lanes_plan(6, 8), 2), 1);
  EXPECT_THROW(run_local_ranks(6, {}, [](Communicator& comm) { HierarchicalReduction(comm, contiguous_lanes_plan(6, 8), 2); }), Error);
}

}  // namespace
}  // namespace orrery
