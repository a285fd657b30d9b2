// Several steps of a schedule laid end to end, as a rank runs them: what the verifiers, the memory map's lifetimes and the interpreter look at where a
// step begins with what the one before has left.
#pragma once

#include <vector>

#include "ir/schedule.h"

namespace orrery {

/// `num_steps` steps, one behind the other; of a schedule that carries, behind the work that a fresh start runs before them (Schedule::carries). Micro-batches
/// and their sequences are counted through all steps, gradient buffers are those of the rank (buffer_in_step, where step_begins[carries + k] begins step k).
/// Waits stay inside a step: the next begins when all actions of the one before are done.
Schedule unroll(const Schedule& schedule, int32_t num_steps);

/// Whether the schedules are to be looked at over several steps.
bool carry(const std::vector<Schedule>& ranks);
std::vector<Schedule> unroll(const std::vector<Schedule>& ranks, int32_t num_steps);

}  // namespace orrery
