// From a step to a run: evaluations are counted as the trainer makes them, money and energy follow the hours, limits that do not hold are
// named with the number of steps that would fit, and nothing is made up where the step's time, or the power, is unknown.
#include "planner/run_forecast.h"

#include <gtest/gtest.h>

namespace orrery {
namespace {

// Two seconds a step, of which a rank computes 1.6 s: a quarter of that forward.
StepPrediction step() {
  StepPrediction step;
  step.seconds = 2, step.low = 1.8, step.high = 2.3;
  step.ranks = {{.forward = 0.4, .backward = 1.0, .update = 0.1, .communication = 0.1}, {.forward = 0.4, .backward = 1.0, .update = 0.1, .communication = 0.1}};
  return step;
}

constexpr RunWork kWork{.num_steps = 1800, .num_evaluations = 4, .steps_per_evaluation = 100};

TEST(RunForecast, CountsEvaluationsAsTheTrainerDoes) {
  EXPECT_EQ(num_evaluations(1000, 250), 4);
  EXPECT_EQ(num_evaluations(1001, 250), 5) << "the last step is evaluated too";
  EXPECT_EQ(num_evaluations(1000, 0), 1);
  EXPECT_EQ(num_evaluations(1000, 5000), 1);
  EXPECT_EQ(num_evaluations(0, 10), 0);
}

TEST(RunForecast, HoursMoneyAndEnergy) {
  const RunForecast f = forecast_run(step(), kWork, {.price_per_hour = 3, .watts = 100, .energy_source = "powercap"});
  EXPECT_DOUBLE_EQ(f.evaluation_seconds, 4 * 100 * 2 * 0.25);
  EXPECT_DOUBLE_EQ(f.seconds, 1800 * 2 + 200);
  EXPECT_DOUBLE_EQ(f.low, f.seconds * 0.9);
  EXPECT_DOUBLE_EQ(f.high, f.seconds * 1.15);
  EXPECT_DOUBLE_EQ(f.money, 3800.0 / 3600 * 3);
  EXPECT_DOUBLE_EQ(f.kwh, 3800.0 * 100 / 3.6e6);
  EXPECT_EQ(forecast_to_text(f),
            "run       1,800 steps and 4 evaluations (3m20s): 1h03m (57m00s to 1h13m, 90 %)\n"
            "cost      3.17 (2.85 to 3.64) at 3 an hour\n"
            "energy    0.106 kWh of the processor, 100 W as the probe measured them in products\n");
}

TEST(RunForecast, SaysWhyEnergyIsNotKnown) {
  const RunForecast f = forecast_run(step(), {.num_steps = 1}, {.energy_source = "n/a: no counter"});
  EXPECT_EQ(forecast_to_text(f), "run       1 step: 2.0s (1.8s to 2.3s, 90 %)\nenergy    n/a: no counter\n");
}

TEST(RunForecast, NothingWithoutAStepTime) {
  StepPrediction unknown = step();
  unknown.missing = {"an op"};
  const RunForecast f = forecast_run(unknown, kWork, {.price_per_hour = 3, .watts = 100});
  EXPECT_EQ(f.seconds, 0);
  EXPECT_EQ(f.money, 0);
  EXPECT_EQ(forecast_to_text(f), "");
}

TEST(RunForecast, LimitsNameWhatFits) {
  const RunForecast f = forecast_run(step(), kWork, {.watts = 100, .energy_source = "powercap"});  // 3,800 s, 0.1056 kWh
  EXPECT_TRUE(missed_limits(f, {}).empty());
  EXPECT_TRUE(missed_limits(f, {.seconds = 3816, .kwh = 0.106}).empty());
  const auto missed = missed_limits(f, {.seconds = 1800, .kwh = 0.01});
  ASSERT_EQ(missed.size(), 2u);
  EXPECT_EQ(missed[0], "budget.hours=0.5 and the run is predicted to take 1.06 (57m00s to 1h13m, 90 %): train.steps=852 would fit; or raise budget.hours, or take a smaller model");
  EXPECT_EQ(missed[1], "budget.energy=0.01 kWh and the run is predicted to take 0.106: train.steps=170 would fit; or raise budget.energy, or take a smaller model");
}

TEST(RunForecast, ALimitThatCannotBeComparedIsNotPassedOver) {
  const RunForecast dark = forecast_run(step(), kWork, {.energy_source = "n/a: no counter"});
  ASSERT_EQ(missed_limits(dark, {.seconds = 7200, .kwh = 1}).size(), 1u);
  EXPECT_EQ(missed_limits(dark, {.kwh = 1})[0], "budget.energy=1 cannot be compared: this machine's energy is n/a: no counter; leave it out");
  const auto untimed = missed_limits(RunForecast{}, {.seconds = 7200, .kwh = 1});
  ASSERT_EQ(untimed.size(), 2u);
  for (const std::string& sentence : untimed) EXPECT_NE(sentence.find("the time of a step is not known"), std::string::npos) << sentence;
}

}  // namespace
}  // namespace orrery
