#include "planner/layout_residuals.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "topology/device_catalogue.h"

namespace orrery {
namespace {

// Variances of ln(measured / predicted), chosen by five-fold validation over layouts on the published runs with a penalty on their
// distance from round guesses; the errors change little within a factor of two of each.
constexpr double kSource = 0.004, kRelease = 0.0036, kLayer = 0.004, kSmooth = 0.28, kNoise = 0.0005;
constexpr std::array<double, 3> kShares = {0.10, 0.14, 0.06};
constexpr double kOtherDevice = 3.0;  // distance between two kinds of device

double covariance(const LayoutPoint& a, const LayoutPoint& b) {
  double distance = a.device == b.device ? 0 : kOtherDevice;
  for (size_t i = 0; i < kLayoutFeatures; ++i) distance += std::abs(static_cast<double>(a.at[i]) - static_cast<double>(b.at[i]));
  double sum = kSource + kSmooth * std::exp(-distance);
  if (a.release == b.release) sum += kRelease;
  if (a.layer == b.layer) sum += kLayer;
  for (size_t i = 0; i < kShares.size(); ++i) sum += kShares[i] * static_cast<double>(a.share[i]) * static_cast<double>(b.share[i]);
  return sum;
}

double dot(const double* a, const double* b, size_t n) {
  double sum[4] = {};
  size_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (size_t k = 0; k < 4; ++k) sum[k] += a[i + k] * b[i + k];
  for (; i < n; ++i) sum[0] += a[i] * b[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

}  // namespace

uint64_t hash_name(std::string_view text) {
  uint64_t hash = 1469598103934665603u;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

LayoutPoint layout_point(const TrainingJob& job, const StepCost& cost, std::string_view release, std::string_view layer_key) {
  const ModelShape& m = job.model;
  const JobLayout& l = job.layout;
  LayoutPoint point;
  point.release = hash_name(release), point.layer = hash_name(layer_key), point.device = hash_name(job.cluster.device->name);
  size_t index = 0;
  const auto add = [&](double value, double scale) { point.at[index++] = static_cast<float>(value / scale); };
  const auto doublings = [](double value) { return std::log2(std::max(value, 1e-9)); };
  add(doublings(m.hidden), 2.5), add(doublings(m.seq_len), 6.5), add(doublings(m.num_layers), 4), add(doublings(m.num_experts + 1), 4);
  add(doublings(l.tp), 1.6), add(doublings(l.pp), 6), add(doublings(l.virtual_stages), 7), add(doublings(l.cp), 11), add(doublings(l.dp), 46), add(doublings(l.ep), 0.6);
  add(doublings(l.micro_batch), 4.5), add(doublings(l.num_micro_batches), 15), add(doublings(job.cluster.num_devices), 48);
  add(static_cast<double>(job.format), 4.7), add(static_cast<double>(l.recompute), 2), add(static_cast<double>(l.zero), 6), add(l.sequence_parallel ? 1 : 0, 2.3);
  ORRERY_CHECK(index == kLayoutFeatures, "{} features", index);
  const double seconds = std::max(cost.seconds, 1e-12);
  point.share = {static_cast<float>(cost.host_seconds / seconds), static_cast<float>(cost.communication_seconds / seconds), static_cast<float>(cost.bubble_seconds / seconds)};
  return point;
}

LayoutResiduals::LayoutResiduals(std::vector<ResidualRow> rows) : rows_(std::move(rows)) {
  const size_t n = rows_.size();
  factor_.assign(n * n, 0.0);
  weights_.resize(n);
  for (size_t i = 0; i < n; ++i) {
    double* row = &factor_[i * n];
    for (size_t k = 0; k <= i; ++k) {
      const double* other = &factor_[k * n];
      const double left = covariance(rows_[i].point, rows_[k].point) + (i == k ? kNoise : 0) - dot(row, other, k);
      // Noise on the diagonal keeps the matrix positive; rounding may not.
      row[k] = i == k ? std::sqrt(std::max(left, kNoise * 1e-3)) : left / other[k];
    }
    weights_[i] = (rows_[i].log_ratio - dot(row, weights_.data(), i)) / row[i];
  }
  for (size_t i = n; i-- > 0;) {
    for (size_t k = i + 1; k < n; ++k) weights_[i] -= factor_[k * n + i] * weights_[k];
    weights_[i] /= factor_[i * n + i];
  }
}

LayoutResiduals::Estimate LayoutResiduals::estimate(const LayoutPoint& point) const {
  const size_t n = rows_.size();
  Estimate estimate;
  double variance = covariance(point, point) + kNoise;
  std::vector<double> solved(n);
  for (size_t i = 0; i < n; ++i) {
    const double between = covariance(point, rows_[i].point);
    estimate.log_ratio += between * weights_[i];
    solved[i] = (between - dot(&factor_[i * n], solved.data(), i)) / factor_[i * n + i];
    variance -= solved[i] * solved[i];
  }
  estimate.sigma = std::sqrt(std::max(variance, kNoise));
  return estimate;
}

}  // namespace orrery
