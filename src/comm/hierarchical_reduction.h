// The reproducible reduce_scatter for worlds in which a direct exchange would be too many messages (more than 64 ranks): first inside
// groups of neighbouring ranks, then between the groups. The association of the sum is the lane tree's all the same, because a group's
// lanes are whole subtrees of it.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "comm/communicator.h"

namespace orrery {

constexpr int kDirectRanksMax = 64;

/// The largest group size up to `direct_ranks_max` that divides the ranks into groups holding one subtree each, when every rank brings one
/// piece of equal level; 1 when there is none (then the exchange is direct).
int reduction_group_size(const ReductionPlan& plan, int direct_ranks_max = kDirectRanksMax);

/// Setup is collective over `world` and splits it; run() allocates nothing.
///   Steps  2 for each group of G ranks of N: N / G exchanges inside a group, then one between the groups.
///   Bytes  a rank sends S (G - 1) / G inside its group and S / G (N / G - 1) / (N / G) between groups: S (N - 1) / N in all, to
///          G - 1 + N / G - 1 peers instead of N - 1.
class HierarchicalReduction {
 public:
  /// Errors: kInvalidArgument when the ranks do not fall into groups of `group_size` with one subtree each.
  HierarchicalReduction(Communicator& world, const ReductionPlan& plan, int group_size);

  /// As Communicator::reduce_scatter with one piece and one output. `partial` has room for partial_elements(owners) elements.
  void run(DType dtype, const std::byte* piece, std::span<const ElementRange> owners, std::byte* partial, std::byte* output, const CommLabel& label);
  int64_t partial_elements(std::span<const ElementRange> owners) const;

  int64_t bytes_sent() const;

 private:
  int group_size_, num_groups_, member_;
  std::unique_ptr<Communicator> inside_, between_;
  ReductionPlan inside_plan_, between_plan_;
  std::vector<ElementRange> inside_owners_, between_owners_;
};

}  // namespace orrery
