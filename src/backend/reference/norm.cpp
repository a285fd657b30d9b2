#include <cmath>

#include "backend/reference/ops.h"

namespace orrery::reference {
namespace {

double mean_of(const double* x, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += x[i];
  return sum / static_cast<double>(n);
}

double rstd_of(const double* x, size_t n, double mean, double eps) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += (x[i] - mean) * (x[i] - mean);
  return 1 / std::sqrt(sum / static_cast<double>(n) + eps);
}

// Both norms: RMSNorm is LayerNorm whose mean is taken as 0, so that nothing flows through it.
NormGrad norm_grad(const Array& dy, const Array& x, const Array& weight, double eps, bool centered) {
  const size_t n = weight.size();
  NormGrad result{Array(x.size()), Array(n, 0.0), Array(centered ? n : 0, 0.0)};
  for (size_t row = 0; row < x.size(); row += n) {
    const double mean = centered ? mean_of(&x[row], n) : 0, rstd = rstd_of(&x[row], n, mean, eps);
    double mean_g = 0, mean_gn = 0;
    for (size_t i = 0; i < n; ++i) {
      const double g = dy[row + i] * weight[i], normalized = (x[row + i] - mean) * rstd;
      mean_g += g / static_cast<double>(n);
      mean_gn += g * normalized / static_cast<double>(n);
      result.dweight[i] += dy[row + i] * normalized;
      if (centered) result.dbias[i] += dy[row + i];
    }
    for (size_t i = 0; i < n; ++i) {
      const double g = dy[row + i] * weight[i], normalized = (x[row + i] - mean) * rstd;
      result.dx[row + i] = rstd * (g - (centered ? mean_g : 0) - normalized * mean_gn);
    }
  }
  return result;
}

}  // namespace

Norm rms_norm(const Array& x, const Array& weight, double eps) {
  const size_t n = weight.size();
  Norm result{Array(x.size()), {}, {}};
  for (size_t row = 0; row < x.size(); row += n) {
    const double rstd = rstd_of(&x[row], n, 0, eps);
    result.rstd.push_back(rstd);
    for (size_t i = 0; i < n; ++i) result.y[row + i] = x[row + i] * rstd * weight[i];
  }
  return result;
}
NormGrad rms_norm_grad(const Array& dy, const Array& x, const Array& weight, double eps) {
  return norm_grad(dy, x, weight, eps, false);
}

Norm layer_norm(const Array& x, const Array& weight, const Array& bias, double eps) {
  const size_t n = weight.size();
  Norm result{Array(x.size()), {}, {}};
  for (size_t row = 0; row < x.size(); row += n) {
    const double mean = mean_of(&x[row], n), rstd = rstd_of(&x[row], n, mean, eps);
    result.mean.push_back(mean);
    result.rstd.push_back(rstd);
    for (size_t i = 0; i < n; ++i) result.y[row + i] = (x[row + i] - mean) * rstd * weight[i] + bias[i];
  }
  return result;
}
NormGrad layer_norm_grad(const Array& dy, const Array& x, const Array& weight, double eps) {
  return norm_grad(dy, x, weight, eps, true);
}

}  // namespace orrery::reference
