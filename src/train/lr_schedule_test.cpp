// Learning-rate schedules at the points that define them: warm-up, peak, middle, last step.
#include "train/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace orrery {
namespace {

TEST(LearningRate, DefiningPoints) {
  OptimizerSection optimizer;
  optimizer.lr = 1.0;
  optimizer.warmup_steps = 10;
  optimizer.min_lr_ratio = 0.1;
  for (LrScheduleName schedule : {LrScheduleName::kConstant, LrScheduleName::kCosine, LrScheduleName::kLinear, LrScheduleName::kWsd}) {
    optimizer.schedule = schedule;
    EXPECT_DOUBLE_EQ(learning_rate(optimizer, 0, 111), 0.1);
    EXPECT_DOUBLE_EQ(learning_rate(optimizer, 9, 111), 1.0);
    EXPECT_NEAR(learning_rate(optimizer, 10, 111), 1.0, 1e-12);
    EXPECT_NEAR(learning_rate(optimizer, 110, 111), schedule == LrScheduleName::kConstant ? 1.0 : 0.1, 1e-12);
  }
  optimizer.schedule = LrScheduleName::kCosine;
  EXPECT_NEAR(learning_rate(optimizer, 60, 111), 0.55, 1e-12);
  optimizer.schedule = LrScheduleName::kLinear;
  EXPECT_NEAR(learning_rate(optimizer, 60, 111), 0.55, 1e-12);
  optimizer.schedule = LrScheduleName::kWsd;
  EXPECT_DOUBLE_EQ(learning_rate(optimizer, 88, 111), 1.0);
}

TEST(OptimizerHyper, BiasCorrections) {
  OptimizerSection optimizer;
  EXPECT_FLOAT_EQ(optimizer_hyper(optimizer, 0, 10).bias_correction1, 0.1f);
  EXPECT_FLOAT_EQ(optimizer_hyper(optimizer, 6, 10).bias_correction2, static_cast<float>(1 - std::pow(0.95, 7)));
}

}  // namespace
}  // namespace orrery
