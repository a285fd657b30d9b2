// The part of verify_schedules.h that is about gradients and weights in shards, or offloaded: whether units take turns in their slots as they
// should, and whether the sums of rounds meet in the lane tree. Independent of parallel/shard.h, which puts the gathers and reductions there.
#pragma once

#include <string>
#include <vector>

#include "ir/schedule_graph.h"

namespace orrery {

/// What is wrong with the units of a rank that have slots, the first problem of each kind. Fields are in range, every stage runs each
/// micro-batch once, and `graph`, of the same ranks and context, has no cycle.
std::vector<std::string> verify_shards(const std::vector<Schedule>& ranks, const ScheduleContext& context, const ScheduleGraph& graph, int32_t rank);

}  // namespace orrery
