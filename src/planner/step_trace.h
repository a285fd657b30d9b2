// What a run's steps took beside what its plan said they would: action by action and phase by phase, kept in the run's folder
// (trace.json), printed by `orrery plan compare`, and a calibration for the next plan: the ops' times as the run saw them.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/op_times.h"
#include "planner/step_time.h"

namespace orrery {

struct ActionTrace {
  std::string action;  // "F0", "RS3", "OPT"
  double predicted = 0, measured = 0;  // seconds a step; measured without the wait for others before it
};

struct StepTrace {
  std::string machine, layout;
  int64_t steps = 0;                                // that were timed
  double predicted_seconds = 0, low = 0, high = 0;  // of a step; 0 where the plan had no times
  double measured_seconds = 0;
  PhaseSeconds predicted, measured;  // of the first rank
  std::vector<ActionTrace> actions;  // of the first rank, in the schedule's order
  std::vector<std::pair<std::string, OpMeasurement>> ops;  // by key: seconds of a call
};

std::string trace_to_json(const StepTrace& trace);
/// Errors: kCorruptData, naming `file`, when the text is no trace.
StepTrace trace_from_json(const std::string& text, const std::string& file);

/// "phase  predicted  measured  error", a line a phase and the step.
std::string trace_phases_to_text(const StepTrace& trace);
/// The phases, then the actions, those that miss by most first, and what a calibration would change.
std::string trace_to_text(const StepTrace& trace);

/// Replaces the table's times by those of the run. Returns how many there were.
int64_t calibrate(OpTimes& times, const StepTrace& trace);

}  // namespace orrery
