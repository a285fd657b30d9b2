#include "backend/reference/linear.h"

#include <algorithm>
#include <cmath>

namespace orrery::reference {

Array linear(const Array& x, const Array& weight, const Array& bias, int64_t k) {
  const int64_t tokens = static_cast<int64_t>(x.size()) / k, n = static_cast<int64_t>(weight.size()) / k;
  Array y(tokens * n);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0; j < n; ++j) {
      double sum = bias.empty() ? 0 : bias[j];
      for (int64_t i = 0; i < k; ++i) sum += x[t * k + i] * weight[j * k + i];
      y[t * n + j] = sum;
    }
  return y;
}

Array linear_grad_input(const Array& dy, const Array& weight, int64_t n) {
  const int64_t tokens = static_cast<int64_t>(dy.size()) / n, k = static_cast<int64_t>(weight.size()) / n;
  Array dx(tokens * k);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0; j < n; ++j)
      for (int64_t i = 0; i < k; ++i) dx[t * k + i] += dy[t * n + j] * weight[j * k + i];
  return dx;
}

Array linear_grad_weight(const Array& dy, const Array& x, int64_t n, int64_t k, int64_t first, int64_t last) {
  Array dweight(n * k);
  for (int64_t t = first; t < last; ++t)
    for (int64_t j = 0; j < n; ++j)
      for (int64_t i = 0; i < k; ++i) dweight[j * k + i] += dy[t * n + j] * x[t * k + i];
  return dweight;
}

CrossEntropy cross_entropy(const Array& logits, const Ids& targets) {
  const int64_t tokens = static_cast<int64_t>(targets.size()), vocab = static_cast<int64_t>(logits.size()) / tokens;
  CrossEntropy result{Array(tokens), Array(tokens), Array(logits.size())};
  for (int64_t t = 0; t < tokens; ++t) {
    const double* row = &logits[t * vocab];
    const double top = *std::max_element(row, row + vocab);
    double sum = 0;
    for (int64_t j = 0; j < vocab; ++j) sum += std::exp(row[j] - top);
    result.lse[t] = top + std::log(sum);
    if (targets[t] < 0) continue;
    result.token_loss[t] = result.lse[t] - row[targets[t]];
    for (int64_t j = 0; j < vocab; ++j) result.dlogits[t * vocab + j] = std::exp(row[j] - result.lse[t]) - (j == targets[t] ? 1.0 : 0.0);
  }
  return result;
}

}  // namespace orrery::reference
