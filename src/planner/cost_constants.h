// The fitted constants, shipped as data (cost_constants_data.cpp, printed by bench/fit_cost_model.cpp): one set from all published
// runs, and for each source one set that never saw it; the factors of each source and release; and how wide an interval is.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "planner/cost_model.h"

namespace orrery {

struct SourceConstants {
  std::string_view source;  // the one left out; empty: none
  CostConstants constants;
};
std::span<const SourceConstants> shipped_constants();

/// Fitted on every published run that the program knows.
const CostConstants& default_constants();
/// Fitted without `source`; default_constants() for a source that no fit has seen.
const CostConstants& frozen_constants(std::string_view source);

/// Kinds of job whose predictions err alike; intervals are per kind.
enum class JobClass : uint8_t { kDenseModern, kDenseEarly, kShardedDense, kLaunchBound, kMixture, kCount };
JobClass classify(const TrainingJob& job);
std::string_view job_class_name(JobClass kind);

/// A 90 % interval: the measured time lies between low and high times the prediction. From residuals of rows that were not fitted.
struct IntervalFactors {
  double low = 1, high = 1;
};
struct ClassIntervals {
  IntervalFactors known;   // frozen, of a source whose other rows were measured
  IntervalFactors unseen;  // of a source that no residual is of: sources differ, so it is wider
  double calibrated_low = -1.645, calibrated_high = 1.645;  // in the correction's own standard deviations (layout_residuals.h)
};
const ClassIntervals& shipped_intervals(JobClass kind);
/// Of a prediction with frozen_constants(source).
const IntervalFactors& frozen_interval(JobClass kind, std::string_view source);

}  // namespace orrery
