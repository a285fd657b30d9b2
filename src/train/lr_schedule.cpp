#include "train/lr_schedule.h"

#include <algorithm>

#include "base/portable_math.h"

namespace orrery {
namespace {

constexpr double kPi = 3.141592653589793;
constexpr int64_t kWsdDecayShare = 5;  // the decay takes the last 1/5 of the run

// base^exponent by squaring: the same bits on every C library.
double integer_power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1, base *= base)
    if (exponent & 1) result *= base;
  return result;
}

}  // namespace

double learning_rate(const OptimizerSection& optimizer, int64_t step, int64_t num_steps) {
  if (step < optimizer.warmup_steps) return optimizer.lr * static_cast<double>(step + 1) / static_cast<double>(optimizer.warmup_steps);
  const double floor = optimizer.lr * optimizer.min_lr_ratio;
  // 0 at the end of the warm-up, 1 at the last step.
  const auto progress = [&](int64_t begin) {
    const int64_t length = std::max<int64_t>(1, num_steps - 1 - begin);
    return std::clamp(static_cast<double>(step - begin) / static_cast<double>(length), 0.0, 1.0);
  };
  switch (optimizer.schedule) {
    case LrScheduleName::kConstant: return optimizer.lr;
    case LrScheduleName::kCosine:
      return floor + (optimizer.lr - floor) * 0.5 * (1 + portable_sincos(kPi * progress(optimizer.warmup_steps)).cos);
    case LrScheduleName::kLinear: return optimizer.lr + (floor - optimizer.lr) * progress(optimizer.warmup_steps);
    case LrScheduleName::kWsd: {
      const int64_t decay_begin = std::max(optimizer.warmup_steps, num_steps - num_steps / kWsdDecayShare);
      return step < decay_begin ? optimizer.lr : optimizer.lr + (floor - optimizer.lr) * progress(decay_begin);
    }
  }
  return optimizer.lr;
}

OptimizerHyper optimizer_hyper(const OptimizerSection& optimizer, int64_t step, int64_t num_steps) {
  OptimizerHyper hyper;
  hyper.lr = static_cast<float>(learning_rate(optimizer, step, num_steps));
  hyper.beta1 = static_cast<float>(optimizer.beta1);
  hyper.beta2 = static_cast<float>(optimizer.beta2);
  hyper.eps = static_cast<float>(optimizer.eps);
  hyper.momentum = static_cast<float>(optimizer.momentum);
  hyper.weight_decay = static_cast<float>(optimizer.weight_decay);
  hyper.bias_correction1 = static_cast<float>(1 - integer_power(optimizer.beta1, step + 1));
  hyper.bias_correction2 = static_cast<float>(1 - integer_power(optimizer.beta2, step + 1));
  hyper.clip = static_cast<float>(optimizer.clip);
  return hyper;
}

}  // namespace orrery
