// What a run that is set up will take on this machine, and that it keeps within the run file's [budget].
#pragma once

#include "planner/run_forecast.h"
#include "train/run_setup.h"

namespace orrery {

/// The whole run, from its first step, by the step's prediction and the kept probe of the machine.
RunForecast forecast_run(const RunSetup& setup, const StepPrediction& step);

/// Errors: kInvalidConfig when the forecast is above budget.hours or budget.energy, or cannot be compared with them.
void require_budget(const RunConfig& config, const RunForecast& forecast);

}  // namespace orrery
