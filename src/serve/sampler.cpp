#include "serve/sampler.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/philox.h"
#include "base/portable_math.h"

namespace orrery {

int32_t Sampler::draw(std::span<const float> logits, int64_t position) {
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i)
    if (!std::isnan(logits[i])) candidates_.push_back({logits[i], static_cast<int32_t>(i)});
  ORRERY_CHECK(!candidates_.empty(), "every logit is NaN");
  const auto more_likely = [](const Candidate& a, const Candidate& b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); };
  if (options_.temperature <= 0) return std::min_element(candidates_.begin(), candidates_.end(), more_likely)->id;

  size_t count = candidates_.size();
  if (options_.top_k > 0) count = std::min(count, static_cast<size_t>(options_.top_k));
  // The order fixes which token a draw means, so it is total: by logit, then id.
  if (count < candidates_.size())
    std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<int64_t>(count), candidates_.end(), more_likely);
  else
    std::sort(candidates_.begin(), candidates_.end(), more_likely);
  const double top = candidates_[0].logit;
  const auto weight = [&](const Candidate& candidate) {
    const double exponent = (static_cast<double>(candidate.logit) - top) / options_.temperature;
    return exponent < -700 ? 0.0 : portable_exp(exponent);
  };
  double total = 0;
  for (size_t i = 0; i < count; ++i) total += weight(candidates_[i]);
  if (options_.top_p < 1) {
    double kept = 0;
    size_t needed = 0;
    while (needed < count && kept < options_.top_p * total) kept += weight(candidates_[needed++]);
    count = std::max<size_t>(1, needed);
    total = 0;
    for (size_t i = 0; i < count; ++i) total += weight(candidates_[i]);
  }
  const PhiloxStream stream(options_.seed, RandomPurpose::kSample, 0, 0);
  const auto words = stream.group(static_cast<uint64_t>(position));
  const double uniform = (static_cast<double>(words[0]) * 0x1p32 + words[1]) * 0x1p-64;
  double left = uniform * total;
  for (size_t i = 0; i + 1 < count; ++i) {
    left -= weight(candidates_[i]);
    if (left < 0) return candidates_[i].id;
  }
  return candidates_[count - 1].id;
}

}  // namespace orrery
