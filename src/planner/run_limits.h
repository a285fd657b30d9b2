// What a run may take at most, whether of this machine (run_forecast.h) or of a described cluster (search.h).
#pragma once

namespace orrery {

/// 0: no limit. Money is in the unit of the prices.
struct RunLimits {
  double seconds = 0, money = 0, kwh = 0;

  bool allow(double run_seconds, double run_money, double run_kwh) const {
    const auto within = [](double limit, double taken) { return limit == 0 || taken <= limit; };
    return within(seconds, run_seconds) && within(money, run_money) && within(kwh, run_kwh);
  }
};

}  // namespace orrery
