// Ctrl-C, SIGTERM and SIGUSR1 for a training run: the first asks it to save a checkpoint and stop; a second SIGINT or SIGTERM ends the
// process at once. (SIGUSR1 is what launchers pass on to every rank, and what Slurm sends ahead of a job's end.)
#pragma once

namespace orrery {

/// While one lives, SIGINT, SIGTERM and SIGUSR1 are requests, and a closed pipe on stdout or stderr is a write error, not the end of the
/// run. One at a time in a process; the handlers that were there come back.
class StopSignals {
 public:
  /// `speaks`: the first signal is answered with a line on stderr.
  explicit StopSignals(bool speaks = true);
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// The signal that asked first; 0 while none has. Read between steps. A second signal exits with status 130 without
  /// returning.
  int requested() const;
};

}  // namespace orrery
