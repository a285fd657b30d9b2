// Fitting the cost model: least squares on the logarithm of predicted over measured time, with log-normal priors and a soft bound on
// outliers. Used by the program that fits the constants (bench/fit_cost_model.cpp). Deterministic: no randomness, fixed iteration counts.
#pragma once

#include <span>
#include <vector>

#include "planner/cost_constants.h"
#include "planner/published_runs.h"

namespace orrery {

/// The constants that explain `runs` best under their priors; a source's rows weigh together as the root of their number.
CostConstants fit_constants(std::span<const PublishedRun* const> runs, const CostConstants& start);

/// The start and the priors.
CostConstants prior_constants();

}  // namespace orrery
