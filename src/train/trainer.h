// A training run from its first step, or its newest good checkpoint, to its last: steps, validation, reports, saves, stop signals.
#pragma once

#include <string>
#include <vector>

#include "train/run_config.h"

namespace orrery {

struct TrainOptions {
  bool fresh = false;     // begin anew: what the folder holds moves into a subfolder
  bool accept_changes = false;  // resume although the numerics key differs: the bits will not be those of an undisturbed run
  bool json = false;      // JSON lines on stdout
  int num_threads = 0;    // of all ranks together; 0: every core
  int num_ranks = 1;      // as threads of this process
  bool op_table = false;  // print where the time went, op by op
};

/// Runs `config` to its end. Returns the exit status: 0, or 130 after a stop signal (the state is saved).
/// Errors: kInvalidConfig: the folder holds a run with another numerics key. kInvalidArgument: another process trains there.
int train_run(const RunConfig& config, const TrainOptions& options);

}  // namespace orrery
