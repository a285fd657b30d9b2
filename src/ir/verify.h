// Checks a plan before it runs, independently of what made it: walks the schedule and keeps, for every byte of the arena, which
// value it holds. A plan that does not verify does not run.
#pragma once

#include <string>
#include <vector>

#include "ir/memory_map.h"

namespace orrery {

/// What is wrong with the plan, one sentence each, empty when it verifies:
///   - every buffer lies inside the arena; nothing persistent overlaps anything;
///   - an op reads only bytes that hold the value it means, written earlier for the same micro-batch (no read before write, no
///     reuse while live), and its outputs and workspace overlap none of its inputs unless they are the same value in place;
///   - each micro-batch has one forward, then one backward, and OPT comes last, once;
///   - gradient buffers: zeroed before row-wise accumulation, and the sums that reach NORM are those of the rank's lanes, in
///     the association that NUMERICS rules 3 and 4 fix; forward and backward of a micro-batch add to the same buffer.
/// Cost: O(actions * operands * log(buffers)).
std::vector<std::string> verify_plan(const Stage& stage, const Schedule& schedule, const MemoryMap& map);

}  // namespace orrery
