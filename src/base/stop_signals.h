// Ctrl-C, SIGTERM and SIGUSR1 as requests: the first asks the work to come to an end that leaves things whole, a second SIGINT or
// SIGTERM ends the process at once. (SIGUSR1 is what launchers pass on to every rank, and what Slurm sends ahead of a job's end.)
#pragma once

#include <functional>
#include <string_view>

namespace orrery {

/// While one lives, SIGINT, SIGTERM and SIGUSR1 are requests, and a closed pipe on stdout or stderr is a write error, not the end of the
/// process. One at a time in a process; the handlers that were there come back. Whoever holds one asks it often: work that does not
/// is better ended by the signal itself.
class StopSignals {
 public:
  /// `answer` goes to stderr at the first signal; empty: silence. It must outlive the object.
  explicit StopSignals(std::string_view answer = {});
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// The signal that asked first; 0 while none has. A second signal exits with status 130 without returning.
  int requested() const;
};

/// Asked between the pieces of long work: true when it is to end. Empty: never.
using StopRequested = std::function<bool()>;

/// Errors  kCancelled, "interrupted; OUTCOME", when a stop is requested.
void throw_if_stopped(const StopRequested& stop_requested, std::string_view outcome);

}  // namespace orrery
