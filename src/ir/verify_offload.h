// The part of verify_schedules.h that is about what is offloaded: whether each piece of the state is in its slot while OPT updates it and back where
// it lies afterwards, and whether activations leave and come when their memory is theirs. Independent of parallel/offload.h, which puts the copies
// there.
#pragma once

#include <string>
#include <vector>

#include "ir/schedule_graph.h"

namespace orrery {

/// What is wrong with the copies of a rank:
///   - a piece of the state comes once (EU), before the first op of OPT that needs it, and goes back once (OU), behind the last; a slot's next piece
///     does not come before the one in it has gone;
///   - a group of a micro-batch's activations goes once (OF), behind the last op of the forward that touches it and before the op from which its
///     memory is others', and comes back once (EF), from when it is its own again and before the backward needs it; what a slot's earlier
///     micro-batch left in the file has come back before.
/// Every stage runs each micro-batch once, and `graph`, of the same ranks and context, has no cycle.
std::vector<std::string> verify_offload(const Schedule& schedule, const ScheduleContext& context, const ScheduleGraph& graph, int32_t rank);

/// Whether the copy names a piece of the state, or a group of its chunk's activations, that is there.
bool names_what_is_offloaded(const Action& copy, const ScheduleContext& context, int32_t rank);

}  // namespace orrery
