// Fitting the cost model: least squares on the logarithm of predicted over measured time, with log-normal priors and a soft bound on
// outliers. Used by the program that fits the constants and by calibration. Deterministic: no randomness, fixed iteration counts.
#pragma once

#include <span>
#include <vector>

#include "planner/cost_constants.h"
#include "planner/published_runs.h"

namespace orrery {

/// The constants that explain `runs` best under their priors; a source's rows weigh together as the root of their number.
CostConstants fit_constants(std::span<const PublishedRun* const> runs, const CostConstants& start);

/// The factors that explain `runs` best; each is held near `prior` (log-normal, 0.12 compute, 0.35 launch and communication, 0.25
/// memory, 0.1 overall).
CalibrationFactors fit_factors(std::span<const PublishedRun* const> runs, const CostConstants& constants, const CalibrationFactors& prior = {});

/// The start and the priors.
CostConstants prior_constants();

}  // namespace orrery
