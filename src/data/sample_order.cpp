#include "data/sample_order.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/philox.h"

namespace orrery {

WindowPermutation::WindowPermutation(uint64_t count, Key key)
    : count_(count), key_(key), half_bits_(std::max(1, (static_cast<int>(std::bit_width(count - 1)) + 1) / 2)) {
  ORRERY_CHECK(count > 0);
}

uint64_t WindowPermutation::round_trip(uint64_t value) const {
  const PhiloxStream stream(key_.seed, RandomPurpose::kDataOrder, key_.source, key_.epoch);
  const uint64_t half_mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_, right = value & half_mask;
  for (uint64_t round = 0; round < 8; ++round) {
    const uint64_t mixed = left ^ (stream.group(round << 32 | right)[0] & half_mask);
    left = right;
    right = mixed;
  }
  return left << half_bits_ | right;
}

uint64_t WindowPermutation::operator()(uint64_t index) const {
  ORRERY_CHECK(index < count_, "index={} count={}", index, count_);
  do index = round_trip(index);
  while (index >= count_);
  return index;
}

namespace {

constexpr uint64_t kExactPeriodMax = 131072;
constexpr uint64_t kRoundedPeriod = 65536;
constexpr double kMicro = 1e6;

// Empty when the weights are not all (nearly) multiples of 1e-6 with a short reduced period.
std::vector<uint64_t> exact_units(std::span<const double> weights) {
  std::vector<uint64_t> units;
  uint64_t divisor = 0;
  for (double weight : weights) {
    const double micro = weight * kMicro;
    const double rounded = std::nearbyint(micro);
    if (rounded < 1 || rounded > 1e15 || std::abs(micro - rounded) > 1e-9 * rounded) return {};
    units.push_back(static_cast<uint64_t>(rounded));
    divisor = std::gcd(divisor, units.back());
  }
  uint64_t period = 0;
  for (uint64_t& unit : units) period += unit /= divisor;
  return period <= kExactPeriodMax ? units : std::vector<uint64_t>{};
}

std::vector<uint64_t> rounded_units(std::span<const double> weights) {
  double total = 0;
  for (double weight : weights) total += weight;
  // One unit for each source first; the rest by largest remainder.
  const double rest = static_cast<double>(kRoundedPeriod - weights.size());
  std::vector<uint64_t> units;
  std::vector<std::pair<double, size_t>> remainders;
  uint64_t given = 0;
  for (size_t k = 0; k < weights.size(); ++k) {
    const double wanted = std::max(0.0, weights[k] / total * static_cast<double>(kRoundedPeriod) - 1);
    remainders.emplace_back(wanted, k);
  }
  double wanted_total = 0;
  for (const auto& [wanted, k] : remainders) wanted_total += wanted;
  for (auto& [wanted, k] : remainders) {
    const double share = wanted_total > 0 ? wanted * rest / wanted_total : 0;
    units.push_back(1 + static_cast<uint64_t>(share));
    given += units.back();
    wanted = -(share - std::floor(share));  // the largest remainder sorts first, then the lower index
  }
  std::sort(remainders.begin(), remainders.end());
  for (size_t i = 0; given < kRoundedPeriod; ++i, ++given) ++units[remainders[i % remainders.size()].second];
  return units;
}

}  // namespace

Mixture::Mixture(std::span<const double> weights) {
  if (weights.empty() || weights.size() > 1024)
    throw Error(ErrorCode::kInvalidConfig, "a mixture of {} sources, wanted 1 to 1024", weights.size());
  for (double weight : weights)
    if (!(weight > 0) || !std::isfinite(weight))
      throw Error(ErrorCode::kInvalidConfig,
                  "a source has weight {}, wanted a positive number; leave the source out to skip it", weight);
  if (weights.size() == 1) {
    units_ = {1};
  } else {
    units_ = exact_units(weights);
    if (units_.empty()) units_ = rounded_units(weights);
  }
  period_ = std::accumulate(units_.begin(), units_.end(), uint64_t{0});
  fill_table();
}

// Everything is multiplied by m = 2K - 2 to stay in integers. All values stay below 2^17 * 2^17 * 2^11.
void Mixture::fill_table() {
  const auto period = static_cast<int64_t>(period_);
  const size_t num_sources = units_.size();
  steps_.resize(period_);
  std::vector<int64_t> taken(num_sources, 0);
  const int64_t m = num_sources == 1 ? 1 : 2 * static_cast<int64_t>(num_sources) - 2;
  for (int64_t t = 1; t <= period; ++t) {
    size_t best = num_sources;
    int64_t best_deadline = 0;
    for (size_t k = 0; k < num_sources; ++k) {
      const auto units = static_cast<int64_t>(units_[k]);
      if (m * (t * units - taken[k] * period) < period && num_sources > 1) continue;
      const int64_t debt_limit = (m * (taken[k] + 1) - 1) * period;
      const int64_t deadline = (debt_limit + m * units - 1) / (m * units);
      if (best == num_sources || deadline < best_deadline) {
        best = k;
        best_deadline = deadline;
      }
    }
    ORRERY_CHECK(best < num_sources, "step {} of {}", t, period);
    steps_[t - 1] = {static_cast<uint32_t>(best), static_cast<uint32_t>(taken[best]++)};
  }
  for (size_t k = 0; k < num_sources; ++k)
    ORRERY_CHECK(taken[k] == static_cast<int64_t>(units_[k]), "source {}: {} of {}", k, taken[k], units_[k]);
}

Mixture::Pick Mixture::pick(uint64_t global_sample) const {
  const Step& step = steps_[global_sample % period_];
  return {step.source, global_sample / period_ * units_[step.source] + step.ordinal};
}

}  // namespace orrery
