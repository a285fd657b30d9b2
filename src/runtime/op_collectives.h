// The ops of a block that the ranks of a group run together (is_collective in ir/op.h): what to the executor is a kernel, and waits for the
// others inside. Attention round the ring of context ranks is ring_attention.h.
#pragma once

#include <vector>

#include "backend/kernel.h"
#include "comm/communicator.h"
#include "ir/block.h"

namespace orrery {

/// A group of the ranks that share a layer, and what its collectives need at hand.
class OpGroup {
 public:
  /// `communicator` outlives it.
  OpGroup(GroupAttributes where, Communicator& communicator);
  GroupAttributes where() const { return where_; }

  /// Runs `call` with the group's other ranks, who run the same, under the name `label`; call.fold says of how many sequences the rows are.
  /// Errors: the group's.
  ///   Bytes a rank sends, n ranks: kAllReduce 2 S (n - 1) / n of its S bytes, kVocabularyLoss 8 T (n - 1), kGatherTokens S (n - 1),
  ///   kReduceScatterTokens, kTokensToHeads and kHeadsToTokens S (n - 1) / n.
  void run(const KernelContext& context, const OpCall& call, std::string_view label);

 private:
  void all_reduce(const KernelContext& context, const OpCall& call, std::string_view label);
  void vocabulary_loss(const OpCall& call, std::string_view label);
  void gather_tokens(const OpCall& call, std::string_view label);
  void reduce_scatter_tokens(const OpCall& call, std::string_view label);
  void exchange_heads(const KernelContext& context, const OpCall& call, std::string_view label);

  GroupAttributes where_;
  Communicator& communicator_;
  ReductionPlan tree_;
  std::vector<ElementRange> owners_;  // of the call in progress
};

/// Workspace of a collective op at the shapes of `call`; call.fold as for OpGroup::run.
int64_t op_collective_workspace_bytes(const DeviceSpec& device, const OpCall& call, GroupAttributes group);

}  // namespace orrery
