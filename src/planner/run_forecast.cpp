#include "planner/run_forecast.h"

#include <fmt/format.h>

#include "base/units.h"

namespace orrery {
namespace {

constexpr std::string_view kNotTimed = "the time of a step is not known (ranks on several machines and layout = \"manual\" are not timed; ranks of one machine with layout = \"auto\" are)";
constexpr double kSecondsPerHour = 3600, kJoulesPerKwh = 3.6e6;

// 12,345: counts that a reader compares with the run file are not rounded.
std::string grouped(int64_t count) {
  std::string text = std::to_string(count);
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3) text.insert(static_cast<size_t>(at), 1, ',');
  return text;
}

// Steps that fit into `share` of the forecast.
int64_t steps_within(const RunForecast& forecast, double share) { return static_cast<int64_t>(share * static_cast<double>(forecast.work.num_steps)); }

std::string way_out(const RunForecast& forecast, double share, std::string_view key) {
  const int64_t steps = steps_within(forecast, share);
  return fmt::format("{}raise {}, or take a smaller model", steps > 0 ? fmt::format("train.steps={} would fit; or ", steps) : "", key);
}

}  // namespace

int64_t num_evaluations(int64_t num_steps, int64_t eval_every) {
  if (num_steps == 0) return 0;
  return eval_every == 0 ? 1 : (num_steps + eval_every - 1) / eval_every;
}

RunForecast forecast_run(const StepPrediction& step, const RunWork& work, const RunPrices& prices) {
  RunForecast forecast{.work = work, .prices = prices};
  if (!step.missing.empty() || step.seconds == 0) return forecast;
  double forward = 0, busy = 0;
  for (const PhaseSeconds& rank : step.ranks) forward += rank.forward, busy += rank.busy();
  forecast.evaluation_seconds = busy > 0 ? step.seconds * forward / busy * work.steps_per_evaluation * static_cast<double>(work.num_evaluations) : 0;
  forecast.seconds = step.seconds * static_cast<double>(work.num_steps) + forecast.evaluation_seconds;
  forecast.low = forecast.seconds * step.low / step.seconds, forecast.high = forecast.seconds * step.high / step.seconds;
  forecast.money = forecast.seconds / kSecondsPerHour * prices.price_per_hour;
  forecast.kwh = forecast.seconds * prices.watts / kJoulesPerKwh;
  return forecast;
}

std::string forecast_to_text(const RunForecast& f) {
  if (f.seconds == 0) return {};
  std::string text = fmt::format("run       {} step{}", grouped(f.work.num_steps), f.work.num_steps == 1 ? "" : "s");
  if (f.evaluation_seconds > 0) text += fmt::format(" and {} evaluation{} ({})", f.work.num_evaluations, f.work.num_evaluations == 1 ? "" : "s", format_duration(f.evaluation_seconds));
  text += fmt::format(": {} ({} to {}, 90 %)\n", format_duration(f.seconds), format_duration(f.low), format_duration(f.high));
  if (f.prices.price_per_hour > 0)
    text += fmt::format("cost      {:.2f} ({:.2f} to {:.2f}) at {:g} an hour\n", f.money, f.money * f.low / f.seconds, f.money * f.high / f.seconds, f.prices.price_per_hour);
  return text + (f.kwh > 0 ? fmt::format("energy    {:.3g} kWh of the processor, {:.0f} W as the probe measured them in products\n", f.kwh, f.prices.watts)
                           : fmt::format("energy    {}\n", f.prices.energy_source));
}

std::vector<std::string> missed_limits(const RunForecast& f, const RunLimits& limits) {
  std::vector<std::string> missed;
  if (limits.seconds > 0) {
    const double hours = limits.seconds / kSecondsPerHour;
    if (f.seconds == 0)
      missed.push_back(fmt::format("budget.hours={:g} cannot be compared: {}; leave it out", hours, kNotTimed));
    else if (f.seconds > limits.seconds)
      missed.push_back(fmt::format("budget.hours={:g} and the run is predicted to take {:.3g} ({} to {}, 90 %): {}", hours, f.seconds / kSecondsPerHour, format_duration(f.low),
                                   format_duration(f.high), way_out(f, limits.seconds / f.seconds, "budget.hours")));
  }
  if (limits.kwh > 0) {
    if (f.kwh == 0)
      missed.push_back(fmt::format("budget.energy={:g} cannot be compared: {}; leave it out", limits.kwh,
                                   f.seconds == 0 ? std::string(kNotTimed) : "this machine's energy is " + f.prices.energy_source));
    else if (f.kwh > limits.kwh)
      missed.push_back(fmt::format("budget.energy={:g} kWh and the run is predicted to take {:.3g}: {}", limits.kwh, f.kwh, way_out(f, limits.kwh / f.kwh, "budget.energy")));
  }
  return missed;
}

}  // namespace orrery
