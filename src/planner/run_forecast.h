// From the time of a step to what the whole run takes: hours, money, energy, and whether the run file's limits hold. Pure. For
// clusters that are described: search.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/run_limits.h"
#include "planner/step_time.h"

namespace orrery {

struct RunWork {
  int64_t num_steps = 0;
  int64_t num_evaluations = 0;
  double steps_per_evaluation = 0;  // sequences that one evaluation reads, in global batches
};

/// Evaluations of a run that evaluates every `eval_every` steps (0: never) and at its end.
int64_t num_evaluations(int64_t num_steps, int64_t eval_every);

/// What the run file and the machine say of the run's price; 0: nothing.
struct RunPrices {
  double price_per_hour = 0;  // of the machine, in any money
  double watts = 0;           // of its processors at work
  std::string energy_source;  // of `watts`: "powercap", or "n/a: why"
};

/// Everything is 0 where the step's time is not known, and what has no price stays 0.
struct RunForecast {
  RunWork work;
  RunPrices prices;
  double seconds = 0, low = 0, high = 0;  // 90 % interval: that of a step, for what makes one step slower does it to all
  double evaluation_seconds = 0;          // of `seconds`
  double money = 0, kwh = 0;
};

/// An evaluation takes the forward's share of a step for each global batch it reads. Saving goes on beside the steps.
RunForecast forecast_run(const StepPrediction& step, const RunWork& work, const RunPrices& prices);

/// "run       1,000 steps and 4 evaluations (9.1s): 6m41s (6m09s to 7m14s, 90 %)", then cost and energy.
std::string forecast_to_text(const RunForecast& forecast);

/// What the forecast has above the limits of time and energy, and what would meet them, a sentence each; a limit that cannot be compared is named too.
std::vector<std::string> missed_limits(const RunForecast& forecast, const RunLimits& limits);

}  // namespace orrery
