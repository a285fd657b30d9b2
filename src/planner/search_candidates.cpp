// What a candidate's run takes, which of two is better, and which are on the front of time against money.
#include "planner/search_candidates.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "base/units.h"
#include "planner/goodput.h"

namespace orrery {
namespace {

bool uses_same_devices(const Candidate& a, const Candidate& b) {
  return a.job.cluster.num_devices == b.job.cluster.num_devices && a.parts.size() == b.parts.size() &&
         std::all_of(a.parts.begin(), a.parts.end(), [&](const DevicePart& part) { return std::any_of(b.parts.begin(), b.parts.end(), [&](const DevicePart& other) { return other.group == part.group; }); });
}

void sort_by_time(std::vector<Candidate>& points) {
  std::stable_sort(points.begin(), points.end(), [](const Candidate& a, const Candidate& b) { return a.run_seconds < b.run_seconds; });
}

}  // namespace

static double device_capacity(const AcceleratorSpec& device) {
  constexpr double kShare = 0.92, kContextBytes = 2.5 * 1073741824.0;  // the device's context and the collectives' buffers
  return device.memory_bytes * kShare - kContextBytes;
}

double MemoryBudget::capacity_bytes(const AcceleratorSpec& device) const {
  const double asked = bytes > 0 ? bytes : fraction * device.memory_bytes;
  return asked > 0 ? std::min(asked, device_capacity(device)) : device_capacity(device);
}

bool MemoryBudget::binds(const AcceleratorSpec& device) const { return capacity_bytes(device) < device_capacity(device); }

std::string MemoryBudget::text() const {
  return bytes > 0 ? fmt::format("budget.memory = {}", format_bytes(bytes)) : fraction > 0 ? fmt::format("budget.memory = {:g} %", 100 * fraction) : std::string();
}

double num_steps(const SearchRequest& request) {
  return request.total_tokens > 0 ? std::ceil(request.total_tokens / (request.global_batch * request.model.seq_len)) : 1;
}

void price_run(const SearchRequest& request, Candidate& candidate) {
  // A checkpoint streams beside the work except for what storage cannot take: 14 bytes a parameter.
  FailureModel failures{request.cluster.failures.device_mtbf_hours * 3600 / candidate.job.cluster.num_devices, count_parameters(request.model).total * 14 / (request.cluster.tiers.storage_gbytes_per_second * 1e9),
                        request.cluster.failures.restart_seconds};
  failures.restart_seconds += failures.save_seconds;  // reading it back
  candidate.checkpoint_interval_seconds = std::max(best_checkpoint_interval(failures), candidate.step.seconds);
  candidate.goodput = request.total_tokens > 0 ? goodput(failures, candidate.checkpoint_interval_seconds) : 1;
  candidate.run_seconds = num_steps(request) * candidate.step.seconds / candidate.goodput;
  double watts = 0, hourly = 0;
  for (const DevicePart& part : candidate.parts) {
    const auto group = static_cast<size_t>(part.group);
    TrainingJob local = candidate.job;
    local.cluster.device = part.cluster.device;
    StepCost step = candidate.parts.size() > 1 ? part.step : candidate.step;
    step.seconds = candidate.step.seconds;  // whoever is done earlier waits
    const double nodes = std::ceil(part.num_devices / static_cast<double>(request.cluster.devices[group].per_node));
    watts += part.num_devices * predict_device_watts(local, step) + nodes * request.cluster.prices.node_overhead_watts;
    hourly += part.num_devices * request.cluster.per_device_hour(group);
  }
  candidate.kwh = watts * request.cluster.prices.pue * candidate.run_seconds / 3.6e6;
  candidate.money = candidate.run_seconds / 3600 * hourly + candidate.kwh * request.cluster.prices.per_kwh;
  candidate.carbon_kg = candidate.kwh * request.cluster.prices.carbon_g_per_kwh / 1000;
  switch (request.objective) {
    case Objective::kTime: candidate.objective = candidate.run_seconds; break;
    case Objective::kCost: candidate.objective = candidate.money; break;
    case Objective::kEnergy: candidate.objective = candidate.kwh; break;
    case Objective::kMemory: candidate.objective = candidate.mapped_bytes > 0 ? static_cast<double>(candidate.mapped_bytes) : candidate.memory.total(); break;
  }
}

bool is_better(const Candidate& a, const Candidate& b) {
  if (a.objective != b.objective) return a.objective < b.objective;
  if (a.run_seconds != b.run_seconds) return a.run_seconds < b.run_seconds;
  const auto order_a = layout_order(a.job.layout), order_b = layout_order(b.job.layout);
  if (order_a != order_b) return order_a < order_b;
  return std::lexicographical_compare(a.parts.begin(), a.parts.end(), b.parts.begin(), b.parts.end(),
                                      [](const DevicePart& x, const DevicePart& y) { return std::tuple(x.group, -x.num_devices, x.num_ranks) < std::tuple(y.group, -y.num_devices, y.num_ranks); });
}

void drop_dear_sets(std::vector<Candidate>& points) {
  constexpr double kMargin = 1.15;
  sort_by_time(points);
  std::vector<Candidate> fastest, kept;
  std::vector<bool> may_win;
  double least = std::numeric_limits<double>::infinity();
  for (Candidate& c : points) {
    const auto set = std::find_if(fastest.begin(), fastest.end(), [&](const Candidate& other) { return uses_same_devices(c, other); });
    const auto index = static_cast<size_t>(set - fastest.begin());
    if (set == fastest.end()) {
      may_win.push_back(fastest.empty() || c.money < kMargin * least);
      least = std::min(least, c.money);
      fastest.push_back(c);
    }
    if (may_win[index]) kept.push_back(std::move(c));
  }
  points = std::move(kept);
}

void keep_front(std::vector<Candidate>& points) {
  sort_by_time(points);
  std::vector<Candidate> front;
  for (Candidate& c : points)
    if (front.empty() || (c.money < front.back().money && std::none_of(front.begin(), front.end(), [&](const Candidate& other) { return uses_same_devices(c, other); }))) front.push_back(std::move(c));
  points = std::move(front);
}

void use_devices_of(const SearchResult& result, Candidate& candidate) {
  for (DevicePart& part : candidate.parts) part.cluster.device = &result.devices[static_cast<size_t>(part.group)];
  candidate.job.cluster.device = candidate.parts.front().cluster.device;
}

std::vector<AxisSpan> axis_spans(const Candidate& candidate) {
  const JobLayout& l = candidate.job.layout;
  using Axis = std::pair<std::string_view, double>;
  const Axis data = {"data", l.dp}, pipeline = {"pipeline", l.pp};
  const std::array<Axis, 4> axes = {Axis{"tensor", l.tp}, Axis{"context", l.cp}, l.pipeline_inside ? pipeline : data, l.pipeline_inside ? data : pipeline};
  std::vector<AxisSpan> spans;
  double stride = 1;
  for (const auto& [axis, size] : axes) {
    if (size > 1) spans.push_back({axis, size, stride, std::clamp(std::floor(candidate.job.cluster.domain_size / stride), 1.0, size)});
    stride *= size;
  }
  return spans;
}

}  // namespace orrery
