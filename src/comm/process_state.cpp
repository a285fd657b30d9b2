#include "comm/process_state.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace orrery {

std::string_view process_state_name(ProcessState state) {
  switch (state) {
    case ProcessState::kUnknown: return "of another host";
    case ProcessState::kRuns: return "running";
    case ProcessState::kStopped: return "stopped";
    case ProcessState::kGone: return "dead";
  }
  return "?";
}

ProcessState process_state(int64_t process_id) {
  if (process_id < 1) return ProcessState::kUnknown;
  char path[48];
  *fmt::format_to_n(path, sizeof path - 1, "/proc/{}/stat", process_id).out = '\0';
  const int file = ::open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return errno == ENOENT ? ProcessState::kGone : ProcessState::kUnknown;
  char text[512];
  const ssize_t length = ::read(file, text, sizeof text - 1);
  ::close(file);
  if (length <= 0) return ProcessState::kGone;
  text[length] = '\0';
  // "pid (name) S ...": the name may hold anything, the last parenthesis ends it.
  const char* end = std::strrchr(text, ')');
  if (end == nullptr || end[1] == '\0') return ProcessState::kUnknown;
  switch (end[2]) {
    case 'Z':
    case 'X': return ProcessState::kGone;
    case 'T':
    case 't': return ProcessState::kStopped;
    default: return ProcessState::kRuns;
  }
}

}  // namespace orrery
