// A plan's schedules for people: the step x rank grid with its bubble, the bytes on every link, and the memory of every rank.
#pragma once

#include <string>
#include <vector>

#include "planner/plan.h"

namespace orrery {

/// `plans`: all ranks', in world order. The grid's time is floating point operations: a column is the shortest action of any stage, messages
/// take none. Bytes are those of one step.
std::string schedules_to_text(const std::vector<Plan>& plans);

}  // namespace orrery
