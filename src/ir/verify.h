// Checks a rank's memory before it runs, independently of what laid it out: walks the schedule and keeps, for every byte of the arena,
// which value it holds. A plan that does not verify does not run.
#pragma once

#include <string>
#include <vector>

#include "ir/memory_map.h"

namespace orrery {

/// What is wrong with one rank's memory, one sentence each, empty when it verifies:
///   - every buffer lies inside the arena; nothing persistent overlaps anything, and neither does what is sent or received;
///   - an op reads only bytes that hold the value it means, written earlier for the same micro-batch (no read before write, no
///     reuse while live), and its outputs and workspace overlap none of its inputs unless they are the same value in place;
///   - each parameter that is gathered, and each gradient that is reduced, by its unit has its place in the unit's slot, and no slot overlaps
///     anything else (that units take turns in time: verify_schedules.h); rows are added only to accumulators that were zeroed just before;
///   - gradients that share the activations' area are held to what is said of values: read only while they hold what was written;
///   - what is offloaded of a micro-batch is whole until its forward has waited for the copy, and nothing else is in its place from when it may
///     come back (its actions' waits, which verify_schedules.h compares with what the groups say);
///   - with delayed gradients every weight takes the place of the one before it, which forwards and backwards read, before it is updated;
///   - NORM comes before OPT, and OPT is the last compute action, once.
/// The order of the micro-batches, gradient sums, messages and collectives are those of all ranks together: verify_schedules.h.
/// Cost: O(actions * operands * log(buffers)).
std::vector<std::string> verify_plan(const Stage& stage, const Schedule& schedule, const MemoryMap& map, const ShardOptions& shards = {},
                                     const std::vector<ActivationGroup>& activation_groups = {});

}  // namespace orrery
