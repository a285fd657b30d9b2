// The learning rate as a function of the step, and the step's scalars for the optimizer kernels.
#pragma once

#include <cstdint>

#include "ir/op.h"
#include "train/run_config.h"

namespace orrery {

/// Learning rate of 0-based step `step` of `num_steps`: linear warm-up from lr / warmup_steps to lr, then constant; cosine or linear
/// to min_lr_ratio * lr; or wsd: constant, with a linear decay to min_lr_ratio * lr over the last fifth of the run.
double learning_rate(const OptimizerSection& optimizer, int64_t step, int64_t num_steps);

/// Everything that the update of a step needs, bias corrections in f64.
OptimizerHyper optimizer_hyper(const OptimizerSection& optimizer, int64_t step, int64_t num_steps);

}  // namespace orrery
