// Ctrl-C and SIGTERM for a training run: the first asks it to save a checkpoint and stop, the second ends the process at once.
#pragma once

namespace orrery {

/// While one lives, SIGINT and SIGTERM are requests, and a closed pipe on stdout or stderr is a write error, not the end of the
/// run. One at a time in a process; the handlers that were there come back.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// The signal that asked first; 0 while none has. Read between steps. A second signal exits with status 130 without
  /// returning.
  int requested() const;
};

}  // namespace orrery
