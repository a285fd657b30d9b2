#include "planner/search_families.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "base/units.h"

namespace orrery {

const std::array<std::string_view, kNumFamilies> kFamilyNames = {
    "no sharding (zero 0)", "sharded optimizer (zero 1)", "sharded gradients (zero 2)", "fully sharded (zero 3)", "pipeline parallel", "pipelines inside a domain", "stages on several kinds of devices", "replicas on several kinds of devices", "no pipeline", "no tensor parallelism",
    "tensor parallel inside a domain", "tensor parallel across domains", "context parallel", "expert parallel", "full recompute", "no recompute", "optimizer offloaded to the host",
    "schedule 1f1b", "schedule gpipe", "schedule interleaved", "schedule zb-h1", "schedule zb-v"};

std::vector<std::string_view> families_of(const Candidate& candidate) {
  std::vector<std::string_view> names;
  for_families(candidate, [&](size_t id) { names.push_back(kFamilyNames[id]); });
  return names;
}

void explain_families(SearchResult& result) {
  for (FamilyVerdict& verdict : result.families) {
    const Candidate& best = verdict.best;
    if (!verdict.feasible) {
      verdict.reason = fmt::format("does not fit{}{}: at least {} over on the fullest rank", result.memory_limit.empty() ? "" : " into ", result.memory_limit, format_bytes(verdict.missing_bytes));
      continue;
    }
    const double least = result.best.front().objective;
    if (best.objective <= least * (1 + 1e-12)) {
      verdict.reason = "holds the best layout";
      continue;
    }
    const StepCost& s = best.step;
    // The largest of what does not make progress.
    const std::pair<double, const char*> causes[] = {{s.bubble_seconds, "bubble"}, {s.communication_seconds, "communication"}, {s.optimizer_seconds, "optimizer"}, {s.host_seconds > s.compute_seconds ? s.host_seconds : 0, "host"}};
    const auto& cause = *std::max_element(std::begin(causes), std::end(causes));
    // Devices may cost nothing; what is dearer is not so by a share of that.
    const std::string worse = least > 0 ? fmt::format("{:.1f} % worse", 100 * (best.objective / least - 1)) : "worse";
    verdict.reason = fmt::format("{}: {}; {} {:.0f} % of the step", worse, layout_text(best.job.layout), cause.second, 100 * cause.first / s.seconds);
  }
  std::stable_sort(result.families.begin(), result.families.end(),
                   [](const auto& a, const auto& b) { return std::tuple(!a.feasible, a.best.objective) < std::tuple(!b.feasible, b.best.objective); });
}

}  // namespace orrery
