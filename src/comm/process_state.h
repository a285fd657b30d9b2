// Whether a process of this host still runs, from /proc: for the report of a hang, and to notice a dead peer before the deadline.
#pragma once

#include <cstdint>
#include <string_view>

namespace orrery {

enum class ProcessState : uint8_t { kUnknown, kRuns, kStopped, kGone };
std::string_view process_state_name(ProcessState state);

/// kUnknown for ids below 1 (another host). A zombie is gone. Allocates nothing.
ProcessState process_state(int64_t process_id);

}  // namespace orrery
