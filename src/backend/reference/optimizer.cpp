#include <cmath>

#include "backend/reference/ops.h"

namespace orrery::reference {

Array squared_sums(const Array& gradient) {
  Array sums((gradient.size() + 4095) / 4096, 0.0);
  for (size_t i = 0; i < gradient.size(); ++i) sums[i / 4096] += gradient[i] * gradient[i];
  return sums;
}

OptimizerState adamw(OptimizerState s, const Array& gradient, const OptimizerHyper& h, bool decay) {
  for (size_t i = 0; i < gradient.size(); ++i) {
    s.m[i] = h.beta1 * s.m[i] + (1 - h.beta1) * gradient[i];
    s.v[i] = h.beta2 * s.v[i] + (1 - h.beta2) * gradient[i] * gradient[i];
    if (decay) s.weight[i] -= double{h.lr} * h.weight_decay * s.weight[i];
    s.weight[i] -= h.lr * (s.m[i] / h.bias_correction1) / (std::sqrt(s.v[i] / h.bias_correction2) + h.eps);
  }
  return s;
}

OptimizerState sgd(OptimizerState s, const Array& gradient, const OptimizerHyper& h, bool decay) {
  for (size_t i = 0; i < gradient.size(); ++i) {
    s.m[i] = h.momentum * s.m[i] + gradient[i] + (decay ? h.weight_decay * s.weight[i] : 0);
    s.weight[i] -= h.lr * s.m[i];
  }
  return s;
}

OptimizerState lion(OptimizerState s, const Array& gradient, const OptimizerHyper& h, bool decay) {
  for (size_t i = 0; i < gradient.size(); ++i) {
    const double direction = h.beta1 * s.m[i] + (1 - h.beta1) * gradient[i];
    if (decay) s.weight[i] -= double{h.lr} * h.weight_decay * s.weight[i];
    s.weight[i] -= h.lr * (direction > 0 ? 1 : direction < 0 ? -1 : 0);
    s.m[i] = h.beta2 * s.m[i] + (1 - h.beta2) * gradient[i];
  }
  return s;
}

}  // namespace orrery::reference
