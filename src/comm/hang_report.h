// Who is to blame when a call missed its deadline: a pure function of the ranks' flight rings.
#pragma once

#include <string>
#include <vector>

#include "comm/flight_recorder.h"

namespace orrery {

/// What is known of one rank of the group.
struct RankStory {
  int world_rank = 0;
  bool known = true;    // false: its ring could not be read
  std::string process;  // "process 4711, stopped"; empty where ranks are threads or on another host
  bool lost = false;    // dead or stopped: whatever its ring says, it is to blame
  std::vector<FlightRecord> records;  // oldest first
  FlightRing::Activity activity;
};

/// Names the ranks that are lost, else those whose collective differs from the others' at the same place of the group's order, else those that are behind, with
/// what each did last and both call sites; never one that has given up with a report of its own (CommOp::kLeave, failed), while there is another. `now_ns` on the monotonic clock.
std::string hang_report(const std::vector<RankStory>& stories, int32_t group, int64_t now_ns);

}  // namespace orrery
