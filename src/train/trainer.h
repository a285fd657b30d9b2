// A training run from its first step, or its newest good checkpoint, to its last: steps, validation, reports, saves, stop signals.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "train/run_config.h"

namespace orrery {

struct TrainOptions {
  bool fresh = false;     // begin anew: what the folder holds moves into a subfolder
  bool accept_changes = false;  // resume although the numerics key differs: the bits will not be those of an undisturbed run
  bool json = false;      // JSON lines on stdout
  int num_threads = 0;    // of all ranks of this machine together; 0: every core
  int num_ranks = 0;      // as threads of this process; 0: what the launcher says, or one
  bool op_table = false;  // print where the time went, op by op
};

/// Reads the run file: in a run of several processes what is wrong with it on any host is told once.
using LoadRunConfig = std::function<RunConfig()>;

/// Runs what `load` gives to its end. Under a launcher of several processes this one is a rank of the run; rank 0 prepares the data, speaks and
/// writes. Returns the exit status: 0, or 130 after a stop signal (the state is saved), or that of an error which another rank tells.
/// Errors: those of `load`. kInvalidConfig: the folder holds a run with another numerics key. kInvalidArgument: another process trains there.
/// kPeerLost, kTimeout: a rank was lost or is late; the message names it.
int train_run(const LoadRunConfig& load, const TrainOptions& options);

}  // namespace orrery
