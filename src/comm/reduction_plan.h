// The order of a sum over lanes (NUMERICS rules 4 and 5) as a pure value: which rank brings which finished subtrees of the lane
// tree, and in which order an owner adds what it received. Nothing here touches memory or a transport; tree_sum.h adds,
// communicator.h moves.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace orrery {

/// The sum of lanes [first_lane, first_lane + 2^level), a multiple of 2^level: one node of the fixed binary tree over the lanes.
struct LaneNode {
  int64_t first_lane = 0;
  int level = 0;
  int64_t end_lane() const { return first_lane + (int64_t{1} << level); }
  bool operator==(const LaneNode&) const = default;
};

/// The fewest nodes that make up lanes [begin, end), in order: what a rank holds once its own lanes have met. [3, 6) is 3, [4, 6).
std::vector<LaneNode> lane_nodes(int64_t begin_lane, int64_t end_lane);

/// A sum in postfix form over numbered sources: a value >= 0 pushes that source, kAdd replaces the two top entries (lower, upper) by
/// lower + upper.
struct TreeProgram {
  static constexpr int16_t kAdd = -1;
  std::vector<int16_t> code;
  int max_depth = 0;
  bool operator==(const TreeProgram&) const = default;
};

struct ElementRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const ElementRange&) const = default;
};

/// [0, count) cut into `parts` ranges, as equal as possible in units of `granule` elements; the first ones are the larger.
void equal_ranges(int64_t count, int64_t granule, std::span<ElementRange> parts);

/// A reduce_scatter: rank r brings pieces[r], each as long as the whole tensor; the owner of an element range ends with one sum for
/// each of `outputs`.
///   Steps  1: every rank sends each of its pieces' parts to their owners, which add.
///   Bytes  from p to q: (pieces of p) x (bytes of q's range); nothing to itself.
/// Owners may add to sums that they keep, `carried`; those never travel.
struct ReductionPlan {
  struct Source {
    static constexpr int kCarried = -1;  // rank: the owner's own, piece: which of them
    int rank = 0, piece = 0;
    bool operator==(const Source&) const = default;
  };
  std::vector<std::vector<LaneNode>> pieces;  // by rank
  std::vector<LaneNode> carried;
  std::vector<Source> sources;                // every piece of every rank and what is carried, by first lane: what programs number
  std::vector<LaneNode> outputs;              // the largest nodes that these complete, by first lane; without what is carried on alone
  std::vector<TreeProgram> programs;          // by output
  bool operator==(const ReductionPlan&) const = default;

  int num_ranks() const { return static_cast<int>(pieces.size()); }
  int64_t elements_sent(int from, int to, std::span<const ElementRange> owners) const {
    return from == to ? 0 : static_cast<int64_t>(pieces[static_cast<size_t>(from)].size()) * owners[static_cast<size_t>(to)].size();
  }
};

/// Pieces meet whenever two of them are the halves of one node, as the binary counter over all lanes would make them meet; what
/// cannot meet stays an output of its own. Errors: kInvalidArgument when a lane is held twice.
ReductionPlan make_reduction_plan(std::vector<std::vector<LaneNode>> pieces, std::vector<LaneNode> carried = {});

/// Rank r holds lanes [rV/N, (r+1)V/N): ZeRO-0 and 1, and any N <= V (3 ranks of 8 lanes: 2, 3 and 3).
ReductionPlan contiguous_lanes_plan(int num_ranks, int64_t lanes);

/// One addend a rank, in the tree over the rank index, leaves that do not exist left out: 3 ranks are (0 + 1) + 2.
ReductionPlan rank_tree_plan(int num_ranks);

}  // namespace orrery
