// What meets inside ops: the groups of ranks that share a layer (ir/parallel_context.h), what they send each other, and whether they agree.
// Actions between ranks of a slice are plan.h's and ir/verify_schedules.h's.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "planner/plan.h"

namespace orrery {

/// Every group of ranks that share a layer in which ops of any rank of the layout meet: the same list on all ranks.
std::vector<GroupAttributes> op_groups(const TrainingPlanOptions& options);

/// What the rank sends in a step inside its ops, to the ranks that share its layers, by kind of op.
std::map<OpKind, int64_t> op_bytes_sent(const Plan& plan);

/// How the plans of a world, in its order, differ where ranks share layers, one sentence each; empty when they verify: all parts of a layer run the
/// same actions and the same collective ops in the same order, and inside each group these have the same operands. Parts that do all the same
/// cannot wait for each other in a circle unless one slice alone would.
std::vector<std::string> verify_shared_layers(std::span<const Plan> plans);

}  // namespace orrery
