// The ops of a block that the ranks of a tensor group run together (is_tensor_collective in ir/op.h): what to the executor is a kernel, and
// waits for the others inside.
#pragma once

#include "backend/kernel.h"
#include "comm/communicator.h"
#include "ir/block.h"

namespace orrery {

int64_t tensor_collective_workspace_bytes(const Stage& stage, const Op& op);

/// Runs `call` with the group's other ranks, who run the same, under the name `label`. Errors: the group's.
///   Bytes a rank sends, n ranks: kAllReduce 2 S (n - 1) / n of its S bytes, kVocabularyLoss 8 T (n - 1).
void run_tensor_collective(Communicator& group, const KernelContext& context, const OpCall& call, std::string_view label);

}  // namespace orrery
