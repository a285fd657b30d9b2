// What a source's measured runs teach about its others: the closed form's residuals as a Gaussian process over layouts. A constant of the
// source and of its release, scale factors on the shares of host time, communication and pipeline fill, one value for layouts whose
// layers are alike, and a smooth part that fades with the distance between two layouts. Never used to price a row it has seen.
// Source  Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", chapter 2.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "planner/cost_model.h"

namespace orrery {

inline constexpr size_t kLayoutFeatures = 17;

/// A job as the process sees it: coordinates in units of the distance at which two layouts have little in common, and shares of its time.
struct LayoutPoint {
  uint64_t release = 0, layer = 0, device = 0;  // hashes of names: equal or not
  std::array<float, kLayoutFeatures> at{};
  std::array<float, 3> share{};  // host, communication, pipeline fill
};
LayoutPoint layout_point(const TrainingJob& job, const StepCost& cost, std::string_view release, std::string_view layer_key);
uint64_t hash_name(std::string_view text);

struct ResidualRow {
  LayoutPoint point;
  double log_ratio = 0;  // measured over predicted
};

class LayoutResiduals {
 public:
  /// Cost: rows cubed over three.
  explicit LayoutResiduals(std::vector<ResidualRow> rows);

  struct Estimate {
    double log_ratio = 0, sigma = 0;  // mean and standard deviation of ln(measured / predicted)
  };
  Estimate estimate(const LayoutPoint& point) const;

 private:
  std::vector<ResidualRow> rows_;
  std::vector<double> factor_;  // lower triangle of the covariance's Cholesky factor, row by row
  std::vector<double> weights_;
};

/// One row of a source as it is shipped: what fit_cost_model learned it from, so that it is never used on itself or its layout.
struct ShippedResidual {
  uint64_t source, fingerprint, layout;
  ResidualRow row;
};
std::span<const ShippedResidual> shipped_residuals();

}  // namespace orrery
