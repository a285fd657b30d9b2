// Runs a set of schedules without a kernel and without time: values are hashes, and among all points that could come next one is drawn.
// Two executions of schedules without a race end alike; one that reads a slot too late or adds in another order ends differently. Units that
// take turns in slots, and what is offloaded, are followed from op to op.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ir/schedule_graph.h"

namespace orrery {

struct Interpretation {
  bool finished = false;          // false: nothing could go on, a deadlock
  std::string stuck;              // the first action of some rank that did not end
  std::vector<uint64_t> gradients;  // by rank: a hash of all sums that OPT read, and of the state that it left where that is offloaded
};

/// Schedules that carry run some steps, on weights of which each update makes a new version.
/// `seed` draws the interleaving (log it with a failure). Fields have to be in range, as verify_schedules checks first.
Interpretation interpret_schedules(const std::vector<Schedule>& ranks, const ScheduleContext& context, uint64_t seed);

}  // namespace orrery
