// The set-up of a run of several processes: rank 0 makes what is missing, the others read it, and all make sure that they mean the same run.
#pragma once

#include <string>

#include "train/process_world.h"
#include "train/run_setup.h"

namespace orrery {

/// prepare_run() on every rank, with `num_threads` compute threads for the ranks of a machine together (0: every core). Collective.
/// Errors: prepare_run's; kInvalidConfig when a rank sees another folder, or is set up otherwise.
RunSetup prepare_together(const RunConfig& config, int num_threads, ProcessWorld& world, const SetupNote& note);

/// The settings in which two numerics keys differ, one a line: "  name: A there, B here".
std::string numerics_difference(const std::string& there, const std::string& here);

}  // namespace orrery
