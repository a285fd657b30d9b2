#include "comm/hierarchical_reduction.h"

#include "base/error.h"

namespace orrery {
namespace {

// The one subtree that ranks [begin, end) hold together, or nothing.
std::vector<LaneNode> subtree_of(const ReductionPlan& plan, int begin, int end) {
  std::vector<std::vector<LaneNode>> pieces(plan.pieces.begin() + begin, plan.pieces.begin() + end);
  return make_reduction_plan(std::move(pieces)).outputs;
}

}  // namespace

int reduction_group_size(const ReductionPlan& plan, int direct_ranks_max) {
  const int num_ranks = plan.num_ranks();
  if (num_ranks <= direct_ranks_max) return 1;
  for (const auto& own : plan.pieces)
    if (own.size() != 1) return 1;
  for (int group_size = std::min(direct_ranks_max, num_ranks / 2); group_size > 1; --group_size) {
    if (num_ranks % group_size != 0) continue;
    bool whole = true;
    for (int begin = 0; begin < num_ranks && whole; begin += group_size) whole = subtree_of(plan, begin, begin + group_size).size() == 1;
    if (whole) return group_size;
  }
  return 1;
}

HierarchicalReduction::HierarchicalReduction(Communicator& world, const ReductionPlan& plan, int group_size)
    : group_size_(group_size), num_groups_(world.size() / group_size), member_(world.rank() % group_size) {
  if (group_size < 1 || world.size() % group_size != 0 || plan.num_ranks() != world.size())
    throw Error(ErrorCode::kInvalidArgument, "groups of {} ranks in a world of {} with a plan for {}", group_size, world.size(), plan.num_ranks());
  std::vector<std::vector<LaneNode>> subtrees;
  for (int group = 0; group < num_groups_; ++group) {
    subtrees.push_back(subtree_of(plan, group * group_size, (group + 1) * group_size));
    if (subtrees.back().size() != 1)
      throw Error(ErrorCode::kInvalidArgument, "ranks {} to {} hold {} subtrees of the lane tree; a group holds one", group * group_size, (group + 1) * group_size - 1,
                  subtrees.back().size());
  }
  const int group = world.rank() / group_size;
  inside_plan_ = make_reduction_plan({plan.pieces.begin() + group * group_size, plan.pieces.begin() + (group + 1) * group_size});
  between_plan_ = make_reduction_plan(std::move(subtrees));
  if (between_plan_.outputs.size() != 1) throw Error(ErrorCode::kInvalidArgument, "the groups hold {} subtrees of the lane tree, not one", between_plan_.outputs.size());
  inside_owners_.resize(static_cast<size_t>(group_size));
  between_owners_.resize(static_cast<size_t>(num_groups_));
  inside_ = world.split(group, world.rank(), "SPLIT");
  between_ = world.split(member_, world.rank(), "SPLIT");
}

int64_t HierarchicalReduction::partial_elements(std::span<const ElementRange> owners) const {
  int64_t total = 0;
  for (int group = 0; group < num_groups_; ++group) total += owners[static_cast<size_t>(group * group_size_ + member_)].size();
  return total;
}

int64_t HierarchicalReduction::bytes_sent() const {
  int64_t total = 0;
  for (const Communicator* comm : {inside_.get(), between_.get()})
    for (int member = 0; member < comm->size(); ++member) total += comm->bytes_sent(member);
  return total;
}

void HierarchicalReduction::run(DType dtype, const std::byte* piece, std::span<const ElementRange> owners, std::byte* partial, std::byte* output,
                                const CommLabel& label) {
  ORRERY_CHECK(owners.size() == static_cast<size_t>(group_size_ * num_groups_), "{} owners", owners.size());
  // Inside: for each group in turn, its members' ranges; a rank collects what its counterparts in all groups will own.
  int64_t offset = 0;
  for (int group = 0; group < num_groups_; ++group) {
    for (int member = 0; member < group_size_; ++member) inside_owners_[static_cast<size_t>(member)] = owners[static_cast<size_t>(group * group_size_ + member)];
    std::byte* place = partial + offset * dtype_bytes(dtype);
    inside_->reduce_scatter(inside_plan_, dtype, {&piece, 1}, inside_owners_, {&place, 1}, label);
    const int64_t count = inside_owners_[static_cast<size_t>(member_)].size();
    between_owners_[static_cast<size_t>(group)] = {offset, offset + count};
    offset += count;
  }
  const std::byte* mine = partial;
  between_->reduce_scatter(between_plan_, dtype, {&mine, 1}, between_owners_, {&output, 1}, label);
}

}  // namespace orrery
