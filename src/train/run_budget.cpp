#include "train/run_budget.h"

#include <fmt/ranges.h>

#include "base/error.h"
#include "runtime/energy_counter.h"
#include "runtime/machine_probe.h"

namespace orrery {

RunForecast forecast_run(const RunSetup& setup, const StepPrediction& step) {
  RunWork work{.num_steps = setup.num_steps};
  if (setup.validation) {
    work.num_evaluations = num_evaluations(setup.num_steps, setup.config.train.eval_every);
    work.steps_per_evaluation = static_cast<double>(setup.validation->num_samples()) / static_cast<double>(setup.plan_options.global_batch_size);
  }
  RunPrices prices{.price_per_hour = setup.config.budget.price_per_hour.value_or(0)};
  if (const std::optional<MachineProbe> probe = kept_probe().probe) prices.watts = probe->busy_watts;
  const EnergyCounter counter;
  prices.energy_source = counter.readable() && prices.watts == 0 ? "not known before `orrery probe` has measured this machine's power" : counter.source();
  return forecast_run(step, work, prices);
}

void require_budget(const RunConfig& config, const RunForecast& forecast) {
  const std::vector<std::string> missed = missed_limits(forecast, {.seconds = 3600 * config.budget.hours.value_or(0), .kwh = config.budget.energy.value_or(0)});
  if (!missed.empty()) throw Error(ErrorCode::kInvalidConfig, "{}", fmt::join(missed, "\n"));
}

}  // namespace orrery
