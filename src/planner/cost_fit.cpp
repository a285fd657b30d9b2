#include "planner/cost_fit.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>

namespace orrery {
namespace {

constexpr double kOutlier = 0.12;  // log error beyond which a residual counts linearly
constexpr double kNoise = 0.06;    // log error that a row has anyway

struct Problem {
  size_t num_parameters;
  std::vector<double> prior_sigma;
  size_t num_rows;
  std::vector<double> weight;                                          // of a row
  std::function<double(size_t row, const std::vector<double>& x)> residual;  // log(predicted / measured)
};

// Solves A x = b for a symmetric positive definite A (row-major), in place.
void solve(std::vector<double>& a, std::vector<double>& b) {
  const size_t n = b.size();
  for (size_t i = 0; i < n; ++i)
    for (size_t r = i + 1; r < n; ++r) {
      const double factor = a[r * n + i] / a[i * n + i];
      if (factor == 0) continue;
      for (size_t c = i; c < n; ++c) a[r * n + c] -= factor * a[i * n + c];
      b[r] -= factor * b[i];
    }
  for (size_t i = n; i-- > 0;) {
    for (size_t c = i + 1; c < n; ++c) b[i] -= a[i * n + c] * b[c];
    b[i] /= a[i * n + i];
  }
}

// x is the logarithm of parameter over prior.
std::vector<double> minimize(const Problem& problem, int iterations) {
  const size_t n = problem.num_parameters;
  std::vector<double> x(n, 0.0);
  auto objective = [&](const std::vector<double>& at) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += at[i] * at[i] / (problem.prior_sigma[i] * problem.prior_sigma[i]);
    for (size_t row = 0; row < problem.num_rows; ++row) {
      const double r = problem.residual(row, at) / kOutlier;
      sum += problem.weight[row] * 2 * kOutlier * kOutlier / (kNoise * kNoise) * (std::sqrt(1 + r * r) - 1);
    }
    return sum;
  };
  double best = objective(x), damping = 1e-3;
  std::vector<double> gradient_row(n);
  for (int iteration = 0; iteration < iterations; ++iteration) {
    std::vector<double> normal(n * n, 0.0), right(n, 0.0);
    for (size_t row = 0; row < problem.num_rows; ++row) {
      const double r = problem.residual(row, x);
      const double w = problem.weight[row] / (kNoise * kNoise) / std::sqrt(1 + r * r / (kOutlier * kOutlier));
      std::vector<double> moved = x;
      std::vector<size_t> touched;
      for (size_t i = 0; i < n; ++i) {
        constexpr double kStep = 1e-4;
        moved[i] += kStep;
        gradient_row[i] = (problem.residual(row, moved) - r) / kStep;
        moved[i] = x[i];
        if (gradient_row[i] != 0) touched.push_back(i);
      }
      for (const size_t i : touched) {
        right[i] -= w * r * gradient_row[i];
        for (const size_t k : touched) normal[i * n + k] += w * gradient_row[i] * gradient_row[k];
      }
    }
    for (size_t i = 0; i < n; ++i) {
      const double precision = 1 / (problem.prior_sigma[i] * problem.prior_sigma[i]);
      normal[i * n + i] += precision;
      right[i] -= precision * x[i];
    }
    bool better = false;
    for (int attempt = 0; attempt < 6 && !better; ++attempt) {
      std::vector<double> a = normal, step = right;
      for (size_t i = 0; i < n; ++i) a[i * n + i] *= 1 + damping;
      solve(a, step);
      std::vector<double> next = x;
      for (size_t i = 0; i < n; ++i) next[i] += std::clamp(step[i], -0.7, 0.7);
      const double value = objective(next);
      if (std::isfinite(value) && value < best) {
        better = true;
        x = next;
        const bool converged = best - value < 1e-5 * best;
        best = value;
        damping = std::max(1e-6, damping / 5);
        if (converged) return x;
      } else {
        damping *= 6;
      }
    }
    if (!better) break;
  }
  return x;
}

}  // namespace

CostConstants prior_constants() {
  CostConstants constants;
  for (size_t i = 0; i < kNumConstants; ++i) constants.value[i] = constant_priors()[i].value;
  return constants;
}

CostConstants fit_constants(std::span<const PublishedRun* const> runs, const CostConstants& start) {
  std::map<std::string, double> per_source;
  for (const PublishedRun* run : runs) per_source[run->source] += 1;
  Problem problem;
  problem.num_parameters = kNumConstants;
  problem.num_rows = runs.size();
  for (const ConstantPrior& prior : constant_priors()) problem.prior_sigma.push_back(prior.log_sigma);
  for (const PublishedRun* run : runs) problem.weight.push_back(1 / std::sqrt(per_source[run->source]));
  auto constants_at = [&start](const std::vector<double>& x) {
    CostConstants constants = start;
    for (size_t i = 0; i < kNumConstants; ++i)
      if (x[i] != 0) constants.value[i] *= std::exp(x[i]);
    return constants;
  };
  problem.residual = [&](size_t row, const std::vector<double>& x) {
    return std::log(predict_step(runs[row]->job, constants_at(x)).seconds / runs[row]->step_seconds);
  };
  constexpr int kIterations = 30;
  return constants_at(minimize(problem, kIterations));
}

}  // namespace orrery
