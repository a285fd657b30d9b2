#include "comm/reduction_plan.h"

#include <algorithm>
#include <bit>

#include "base/error.h"

namespace orrery {

std::vector<LaneNode> lane_nodes(int64_t begin_lane, int64_t end_lane) {
  std::vector<LaneNode> nodes;
  while (begin_lane < end_lane) {
    const int aligned = begin_lane == 0 ? 62 : std::countr_zero(static_cast<uint64_t>(begin_lane));
    const int fits = std::bit_width(static_cast<uint64_t>(end_lane - begin_lane)) - 1;
    nodes.push_back({begin_lane, std::min(aligned, fits)});
    begin_lane = nodes.back().end_lane();
  }
  return nodes;
}

void equal_ranges(int64_t count, int64_t granule, std::span<ElementRange> parts) {
  const int64_t units = (count + granule - 1) / granule, num_parts = static_cast<int64_t>(parts.size());
  int64_t unit = 0;
  for (int64_t i = 0; i < num_parts; ++i) {
    const int64_t next = unit + units / num_parts + (i < units % num_parts ? 1 : 0);
    parts[static_cast<size_t>(i)] = {std::min(count, unit * granule), std::min(count, next * granule)};
    unit = next;
  }
}

namespace {

// A finished node and the program that makes it.
struct Sum {
  LaneNode node;
  std::vector<int16_t> code;
};

bool are_halves(const LaneNode& lower, const LaneNode& upper) {
  return lower.level == upper.level && lower.end_lane() == upper.first_lane && ((lower.first_lane >> lower.level) & 1) == 0;
}

TreeProgram finish(std::vector<int16_t> code) {
  TreeProgram program;
  int depth = 0;
  for (const int16_t instruction : code) {
    depth += instruction == TreeProgram::kAdd ? -1 : 1;
    program.max_depth = std::max(program.max_depth, depth);
  }
  program.code = std::move(code);
  return program;
}

void append(std::vector<int16_t>& code, const std::vector<int16_t>& more) { code.insert(code.end(), more.begin(), more.end()); }

}  // namespace

ReductionPlan make_reduction_plan(std::vector<std::vector<LaneNode>> pieces, std::vector<LaneNode> carried) {
  ReductionPlan plan;
  plan.pieces = std::move(pieces);
  plan.carried = std::move(carried);
  for (size_t i = 0; i < plan.carried.size(); ++i) plan.sources.push_back({ReductionPlan::Source::kCarried, static_cast<int>(i)});
  for (int rank = 0; rank < plan.num_ranks(); ++rank)
    for (size_t piece = 0; piece < plan.pieces[static_cast<size_t>(rank)].size(); ++piece) plan.sources.push_back({rank, static_cast<int>(piece)});
  const auto node_of = [&](const ReductionPlan::Source& source) {
    const auto piece = static_cast<size_t>(source.piece);
    return source.rank == ReductionPlan::Source::kCarried ? plan.carried[piece] : plan.pieces[static_cast<size_t>(source.rank)][piece];
  };
  for (const std::vector<LaneNode>& own : plan.pieces)
    for (size_t i = 1; i < own.size(); ++i)
      ORRERY_CHECK(own[i - 1].first_lane < own[i].first_lane, "a rank's pieces travel in the order of their lanes: {} before {}", own[i - 1].first_lane, own[i].first_lane);
  std::sort(plan.sources.begin(), plan.sources.end(), [&](const auto& a, const auto& b) { return node_of(a).first_lane < node_of(b).first_lane; });
  std::vector<Sum> stack;
  for (size_t i = 0; i < plan.sources.size(); ++i) {
    const LaneNode node = node_of(plan.sources[i]);
    if (i > 0 && node_of(plan.sources[i - 1]).end_lane() > node.first_lane)
      throw Error(ErrorCode::kInvalidArgument, "lane {} is held by ranks {} and {}; each lane has one holder", node.first_lane,
                  plan.sources[i - 1].rank, plan.sources[i].rank);
    stack.push_back({node, {static_cast<int16_t>(i)}});
    while (stack.size() >= 2 && are_halves(stack[stack.size() - 2].node, stack.back().node)) {
      Sum upper = std::move(stack.back());
      stack.pop_back();
      append(stack.back().code, upper.code);
      stack.back().code.push_back(TreeProgram::kAdd);
      ++stack.back().node.level;
    }
  }
  for (Sum& sum : stack) {
    if (sum.code.size() == 1 && plan.sources[static_cast<size_t>(sum.code[0])].rank == ReductionPlan::Source::kCarried) continue;
    plan.outputs.push_back(sum.node);
    plan.programs.push_back(finish(std::move(sum.code)));
  }
  return plan;
}

ReductionPlan contiguous_lanes_plan(int num_ranks, int64_t lanes) {
  std::vector<std::vector<LaneNode>> pieces;
  for (int rank = 0; rank < num_ranks; ++rank) pieces.push_back(lane_nodes(rank * lanes / num_ranks, (rank + 1) * lanes / num_ranks));
  return make_reduction_plan(std::move(pieces));
}

namespace {

// The tree over ranks [begin, begin + 2^level), of which only those below `num_ranks` exist.
void add_rank_tree(int num_ranks, int begin, int level, std::vector<int16_t>& code) {
  if (level == 0) {
    code.push_back(static_cast<int16_t>(begin));
    return;
  }
  const int middle = begin + (1 << (level - 1));
  add_rank_tree(num_ranks, begin, level - 1, code);
  if (middle >= num_ranks) return;
  add_rank_tree(num_ranks, middle, level - 1, code);
  code.push_back(TreeProgram::kAdd);
}

}  // namespace

ReductionPlan rank_tree_plan(int num_ranks) {
  ReductionPlan plan;
  for (int rank = 0; rank < num_ranks; ++rank) {
    plan.pieces.push_back({{rank, 0}});
    plan.sources.push_back({rank, 0});
  }
  const int levels = std::bit_width(static_cast<unsigned>(num_ranks - 1));
  std::vector<int16_t> code;
  add_rank_tree(num_ranks, 0, num_ranks == 1 ? 0 : levels, code);
  plan.outputs = {{0, levels}};
  plan.programs = {finish(std::move(code))};
  return plan;
}

}  // namespace orrery
