#include "planner/goodput.h"

#include <cmath>

namespace orrery {

double best_checkpoint_interval(const FailureModel& f) {
  const double ratio = f.save_seconds / (2 * f.mtbf_seconds);
  if (ratio >= 1) return f.mtbf_seconds;
  return std::sqrt(2 * f.save_seconds * f.mtbf_seconds) * (1 + std::sqrt(ratio) / 3 + ratio / 9) - f.save_seconds;
}

double goodput(const FailureModel& f, double interval) {
  // t / (M e^(R/M) (e^((t+C)/M) - 1))
  const double m = f.mtbf_seconds;
  return interval / (m * std::exp(f.restart_seconds / m) * std::expm1((interval + f.save_seconds) / m));
}

}  // namespace orrery
