// When each action of a set of schedules runs if compute takes given times: longest paths through what must happen before what. Links
// take a fixed time a message and are never busy; the simulator of whole clusters is another program. Printed as a step x rank grid.
#pragma once

#include <string>
#include <vector>

#include "ir/schedule_graph.h"

namespace orrery {

/// Time of one micro-batch on one stage, in any unit; the backward is the sum of its halves.
struct StageCosts {
  double forward = 1, backward_input = 1, backward_weight = 1;
};

struct ScheduleCosts {
  std::vector<StageCosts> stages;  // by stage
  double message = 0;              // of one send
};

struct ScheduleTimes {
  struct Interval {
    double start = 0, end = 0;
  };
  std::vector<std::vector<Interval>> actions;  // by rank, by action
  std::vector<double> busy, span;              // by rank: sum of its F, B, I, W; from the first of them to the end of the last; where steps carry, the whole step
  double total = 0;                            // from the first action of any rank to the last

  /// What the slowest rank takes beyond the work of the busiest one, and that over the work: the (p - 1)/m of 1F1B.
  double bubble() const;
  double bubble_fraction() const;
};

/// Errors: kInvalidConfig when the schedules wait for each other in a circle.
ScheduleTimes time_schedules(const std::vector<Schedule>& ranks, const ScheduleContext& context, const ScheduleCosts& costs);

/// A line a rank, a column for each `unit` of time: the action that runs at its middle, `-` while it goes on, `.` for a bubble.
std::string to_grid(const std::vector<Schedule>& ranks, const ScheduleTimes& times, double unit);

}  // namespace orrery
