#include "planner/search.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>

#include "base/error.h"
#include "base/units.h"
#include "planner/search_candidates.h"
#include "planner/search_families.h"
#include "planner/search_refusal.h"
#include "planner/search_space.h"

namespace orrery {
namespace {

constexpr double kLeastGoodput = 1e-3;  // a run that faults and restarts keep from more than that does not end

struct Family {
  double best = std::numeric_limits<double>::infinity();
  Candidate candidate;
  double least_missing = std::numeric_limits<double>::infinity();  // bytes on the fullest rank
};

class Search : public LayoutVisitor {
 public:
  Search(const SearchRequest& request, SearchResult& result) : request_(request), result_(result), space_(request, result) {
    result_ = {};
    for (size_t group = 0; group < request.cluster.devices.size(); ++group) {
      result_.devices.push_back(request.cluster.device_spec(group));
      result_.capacity_bytes.push_back(request.memory.capacity_bytes(result_.devices.back()));
      if (request.memory.binds(result_.devices.back())) result_.memory_limit = request.memory.text();
      counts_.push_back(request.cluster.devices[group].count);
    }
    host_capacity_ = request.cluster.tiers.host_gib_per_device * 1073741824.0;
    parameters_ = count_parameters(request.model);
  }

  /// Whether some layout of all the devices fits, whatever it takes.
  bool fits() {
    space_.visit_all(counts_, *this);
    return !result_.best.empty();
  }

  void run() {
    // Fewer devices may cost less or draw less; for time every device counts, so halves are tried only where they could win.
    for (;;) {
      space_.visit_all(counts_, *this);
      if (request_.objective == Objective::kTime && !result_.best.empty()) break;
      if (std::any_of(counts_.begin(), counts_.end(), [](int64_t count) { return count % 2 != 0; })) break;
      for (int64_t& count : counts_) count /= 2;
    }
    finish();
  }

  bool wants_batches(Candidate& c) override {
    // Weights, gradients and optimizer do not depend on what follows: when they alone are too much, so is everything below here.
    if (const double missing = request_.prune ? missing_states(c) : 0; missing > 0) {
      ++result_.pruned_by_memory;
      note_misfit(c, missing);
      return false;
    }
    // Nothing is faster than the model's own work at the peak of the products, on every device.
    if (request_.prune && result_.best.size() == static_cast<size_t>(kFinalists) && request_.objective == Objective::kTime) {
      if (num_steps(request_) * model_flops() / peak_flops(c) > worst_kept_) {
        ++result_.pruned_by_time;
        return false;
      }
    }
    return true;
  }

  void visit(Candidate& c) override {
    ++result_.considered;
    if (const double missing = place(c); missing > 0) {
      note_misfit(c, missing);
      return;
    }
    ++result_.scored;
    price_run(request_, c);
    if (c.goodput < kLeastGoodput) {
      misses_.best_goodput = std::max(misses_.best_goodput, c.goodput), misses_.ends_never = true;
      return;
    }
    note_family(c);
    const SearchMisses::Run run{c.run_seconds, c.money, c.kwh};
    if (!misses_.any_fits || run.seconds < misses_.fastest.seconds) misses_.fastest = run;
    if (!misses_.any_fits || run.money < misses_.cheapest.money) misses_.cheapest = run;
    if (!misses_.any_fits || run.kwh < misses_.thriftiest.kwh) misses_.thriftiest = run;
    misses_.any_fits = true;
    if (!request_.limits.allow(c.run_seconds, c.money, c.kwh)) return;
    keep(c);
    keep_point(c);
  }

 private:
  double model_flops() const {
    return request_.global_batch * request_.model.seq_len * 6 * (parameters_.active - parameters_.embedding / 2);
  }
  double peak_flops(const Candidate& c) const {
    double sum = 0;
    for (const DevicePart& part : c.parts) {
      const AcceleratorSpec& d = *part.cluster.device;
      sum += part.num_devices * std::max({d.bf16_flops, request_.format >= NumberFormat::kFp8 ? d.fp8_flops : 0, request_.format == NumberFormat::kFp4 ? d.fp4_flops : 0});
    }
    return sum;
  }

  double least_capacity(const Candidate& c) const {
    double least = c.parts.front().capacity_bytes;
    for (const DevicePart& part : c.parts) least = std::min(least, part.capacity_bytes);
    return least;
  }
  // Bytes by which the fullest rank does not fit, however its batch is cut; at most 0: it may fit.
  double missing_states(Candidate& c) const {
    if (c.is_mixed_pipeline()) {
      // A V has the head where the embedding is, all others at the other end.
      double missing = place_mixed_pipeline(c.job, c.parts, host_capacity_, /*states_only=*/true).missing_bytes;
      c.job.layout.schedule = PipelineSchedule::kZeroBubbleV;
      missing = std::min(missing, place_mixed_pipeline(c.job, c.parts, host_capacity_, /*states_only=*/true).missing_bytes);
      c.job.layout.schedule = PipelineSchedule::kOneForwardOneBackward;
      return missing;
    }
    const MemoryCost least = predict_memory(c.job);
    return std::max(least.weights + least.gradients + least.optimizer - least_capacity(c), least.host - host_capacity_);
  }

  // Memory and time of the step. Returns the bytes that are missing on the fullest rank; at most 0: it fits.
  double place(Candidate& c) const {
    if (c.is_mixed_pipeline()) {
      const PlacedStep placed = place_mixed_pipeline(c.job, c.parts, host_capacity_);
      c.step = placed.step, c.memory = placed.memory;
      return placed.fits ? 0 : std::max(1.0, placed.missing_bytes);
    }
    c.memory = predict_memory(c.job);
    const double missing = std::max(c.memory.total() - least_capacity(c), c.memory.host - host_capacity_);
    if (missing > 0) return missing;
    c.step = predict_step(c.job, default_constants());
    if (c.parts.size() == 1) {
      c.parts.front().step = c.step, c.parts.front().memory = c.memory;
      return missing;
    }
    TrainingJob local = c.job;
    for (DevicePart& part : c.parts) {
      local.cluster = part.cluster;
      part.step = predict_step(local, default_constants()), part.memory = c.memory;
      if (part.step.seconds > c.step.seconds) c.step = part.step;
    }
    return missing;
  }

  // Of each set of devices the fastest layout with and without a pipeline, and the fastest with more and more room: the exact map of the first may
  // not fit, or its pipeline be slower than the closed form says.
  void keep_point(const Candidate& c) {
    uint32_t kinds = 0;
    double filled = 0;
    for (const DevicePart& part : c.parts) kinds |= 1u << part.group, filled = std::max(filled, part.memory.total() / part.capacity_bytes);
    auto& points = pareto_[{c.job.cluster.num_devices, kinds}];
    for (size_t i = 0; i < kFilled.size(); ++i) {
      Candidate& point = points[c.job.layout.pp > 1 ? kFilled.size() + i : i];
      if (filled <= kFilled[i] && (point.run_seconds == 0 || c.run_seconds < point.run_seconds)) point = c;
    }
  }

  // result_.best is a heap with the worst kept candidate on top.
  void keep(const Candidate& c) {
    auto& best = result_.best;
    if (best.size() == static_cast<size_t>(kFinalists)) {
      if (!is_better(c, best.front())) return;
      std::pop_heap(best.begin(), best.end(), is_better);
      best.back() = c;
    } else {
      best.push_back(c);
    }
    std::push_heap(best.begin(), best.end(), is_better);
    if (request_.objective == Objective::kTime) worst_kept_ = best.front().objective;
  }

  void note_family(const Candidate& c) {
    for_families(c, [&](size_t id) {
      Family& family = families_[id];
      if (c.objective < family.best) family.best = c.objective, family.candidate = c;
    });
  }
  void note_misfit(const Candidate& c, double missing) {
    misses_.least_missing_bytes = std::min(misses_.least_missing_bytes, missing);
    for_families(c, [&](size_t id) { families_[id].least_missing = std::min(families_[id].least_missing, missing); });
  }

  void finish() {
    auto& best = result_.best;
    std::sort_heap(best.begin(), best.end(), is_better);
    if (best.empty()) refuse_search(request_, result_, space_, misses_);
    for (const auto& [devices, points] : pareto_)
      for (size_t i = 0; i < points.size(); ++i)
        if (points[i].run_seconds > 0 && (i == 0 || layout_order(points[i].job.layout) != layout_order(points[i - 1].job.layout) || points[i].run_seconds != points[i - 1].run_seconds)) result_.pareto.push_back(points[i]);
    std::sort(result_.pareto.begin(), result_.pareto.end(), [](const auto& a, const auto& b) { return a.run_seconds < b.run_seconds; });
    for (std::vector<Candidate>* list : {&best, &result_.pareto})
      for (Candidate& c : *list) {
        const IntervalFactors interval = shipped_intervals(classify(c.job)).unseen;
        c.low_seconds = c.step.seconds * interval.low, c.high_seconds = c.step.seconds * interval.high;
      }
    for (size_t id = 0; id < families_.size(); ++id) {
      const Family& family = families_[id];
      const bool feasible = std::isfinite(family.best);
      if (feasible || std::isfinite(family.least_missing)) result_.families.push_back({std::string(kFamilyNames[id]), "", feasible, family.candidate, family.least_missing});
    }
    explain_families(result_);
  }

  const SearchRequest& request_;
  SearchResult& result_;
  LayoutSpace space_;
  ParameterCount parameters_;
  std::vector<int64_t> counts_;  // devices of each group in use
  double host_capacity_ = 0, worst_kept_ = std::numeric_limits<double>::infinity();
  SearchMisses misses_;
  std::array<Family, kNumFamilies> families_;
  static constexpr std::array kFilled = {1.0, 0.85, 0.65};  // shares of the memory
  std::map<std::pair<double, uint32_t>, std::array<Candidate, 2 * kFilled.size()>> pareto_;  // by devices and their kinds
};

}  // namespace

bool some_layout_fits(const SearchRequest& request) {
  SearchResult result;
  return Search(request, result).fits();
}

void search_layouts(const SearchRequest& request, SearchResult& result) {
  if (request.global_batch < 1 || request.model.num_layers < 1 || request.model.hidden < 1 || request.model.num_heads < 1 || request.model.seq_len < 1)
    throw Error(ErrorCode::kInvalidConfig, "the search needs layers, hidden size, heads, sequence length and global batch of at least 1; found {} layers, hidden {}, {} heads, {} tokens, batch {}",
                request.model.num_layers, request.model.hidden, request.model.num_heads, request.model.seq_len, request.global_batch);
  Search(request, result).run();
  if (!request.front || request.objective != Objective::kTime || request.total_tokens <= 0 || !request.cluster.has_prices()) return drop_dear_sets(result.pareto);
  // For time every device counts, so the search above saw one number of them; the front of time against money has more points.
  constexpr int kHalvings = 5;
  SearchRequest fewer = request;
  fewer.front = false, fewer.limits = {};
  SearchResult other;
  const auto halves = [](const DevicesSection& hosts) { return hosts.count % (2 * hosts.per_node) == 0; };
  for (int i = 0; i < kHalvings && std::all_of(fewer.cluster.devices.begin(), fewer.cluster.devices.end(), halves); ++i) {
    for (DevicesSection& hosts : fewer.cluster.devices) hosts.count /= 2;
    try {
      search_layouts(fewer, other);
    } catch (const Error&) {
      break;  // too small to hold the model
    }
    for (Candidate& point : other.pareto) {
      use_devices_of(result, point);
      result.pareto.push_back(std::move(point));
    }
  }
  drop_dear_sets(result.pareto);
}

void replan_after_loss(SearchRequest request, size_t group, int64_t lost_nodes, SearchResult& result) {
  DevicesSection& hosts = request.cluster.devices.at(group);
  const int64_t per_node = hosts.per_node, all = hosts.count, left = std::max<int64_t>(0, all - lost_nodes * per_node);
  const bool has_others = request.cluster.num_devices() > all;
  if (left < 1 && !has_others) throw Error(ErrorCode::kInvalidConfig, "{} hosts of {} devices lost: none of {} devices is left", lost_nodes, per_node, all);
  // Using every device that is left may leave only odd degrees, which can be slower than fewer devices. So the largest count of whole
  // hosts that some layout can use competes with the multiples of a sixteenth of the largest power of two: at most 17 searches more.
  request.front = false;
  auto try_count = [&](int64_t n, SearchResult& into) {
    hosts.count = n;
    try {
      search_layouts(request, into);
      return has_others || into.best.front().job.cluster.num_devices == static_cast<double>(n);
    } catch (const Error&) {
      if (n <= per_node) throw;
      return false;
    }
  };
  int64_t chosen = left;
  while (!try_count(chosen, result) && chosen > per_node) chosen -= std::min(per_node, chosen - 1);
  Candidate best = result.best.front();
  const int64_t power = left > 0 ? static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(left))) : 0;
  const int64_t step = std::max(per_node, power / 16);
  SearchResult other;
  for (int64_t n = left / step * step; n >= power && n > per_node; n -= step)
    if (n % per_node == 0 && try_count(n, other) && is_better(other.best.front(), best)) best = other.best.front(), chosen = n;
  hosts.count = chosen;
  search_layouts(request, result);  // again: a job points at the devices of its own result
}

}  // namespace orrery
