#include "planner/search.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <tuple>

#include "base/error.h"
#include "base/units.h"
#include "planner/search_candidates.h"
#include "planner/search_families.h"

namespace orrery {
namespace {

constexpr double kLeastGoodput = 1e-3;  // a run that faults and restarts keep from more than that does not end
constexpr double kContextBytes = 2.5 * 1073741824.0;  // the device's context and the collectives' buffers

std::vector<int64_t> divisors(int64_t n, int64_t limit) {
  std::vector<int64_t> list;
  for (int64_t d = 1; d <= std::min(n, limit); ++d)
    if (n % d == 0) list.push_back(d);
  return list;
}

int64_t whole(double value) { return static_cast<int64_t>(value); }

struct Family {
  double best = std::numeric_limits<double>::infinity();
  Candidate candidate;
  double least_missing = std::numeric_limits<double>::infinity();  // bytes on the fullest rank
};

class Search {
 public:
  Search(const SearchRequest& request, SearchResult& result) : request_(request), result_(result) {
    result_ = {};
    for (size_t group = 0; group < request.cluster.devices.size(); ++group) {
      result_.devices.push_back(request.cluster.device_spec(group));
      result_.capacity_bytes.push_back(result_.devices.back().memory_bytes * request.memory_fraction - kContextBytes);
      counts_.push_back(request.cluster.devices[group].count);
    }
    host_capacity_ = request.cluster.tiers.host_gib_per_device * 1073741824.0;
    parameters_ = count_parameters(request.model);
  }

  /// Whether some layout of all the devices fits, whatever it takes.
  bool fits() {
    visit();
    return !result_.best.empty();
  }

  void run() {
    // Fewer devices may cost less or draw less; for time every device counts, so halves are tried only where they could win.
    for (;;) {
      visit();
      if (request_.objective == Objective::kTime && !result_.best.empty()) break;
      if (std::any_of(counts_.begin(), counts_.end(), [](int64_t count) { return count % 2 != 0; })) break;
      for (int64_t& count : counts_) count /= 2;
    }
    finish();
  }

 private:
  // Every set of groups: its devices as one pool, and pipelines over them in every order.
  void visit() {
    for (uint32_t mask = 1; mask < 1u << counts_.size(); ++mask) {
      std::vector<size_t> groups;
      for (size_t group = 0; group < counts_.size(); ++group)
        if (mask >> group & 1) groups.push_back(group);
      if (std::any_of(groups.begin(), groups.end(), [&](size_t group) { return counts_[group] == 0; })) continue;
      visit_pool(groups);
      if (groups.size() == 1) continue;
      do visit_pipelines(groups);
      while (std::next_permutation(groups.begin(), groups.end()));
    }
  }

  DevicePart part_of(size_t group, int64_t num_devices, int64_t num_ranks) const {
    const AcceleratorSpec& device = result_.devices[group];
    DevicePart part;
    part.group = static_cast<int32_t>(group), part.num_devices = static_cast<double>(num_devices), part.num_ranks = static_cast<int32_t>(num_ranks);
    part.capacity_bytes = result_.capacity_bytes[group];
    part.cluster = {.device = &device,
                    .num_devices = static_cast<double>(num_devices),
                    .domain_size = static_cast<double>(request_.cluster.domain_size(group)),
                    .link_bytes_per_second = device.link_bytes_per_second,
                    .network_bytes_per_second = device.network_bytes_per_second,
                    .host_bytes_per_second = request_.cluster.links.host_gbytes_per_second * 1e9};
    return part;
  }

  // What cuts the model into equal parts: heads, columns of the MLP, and kv heads that are whole or shared by whole ranks.
  bool cuts_matrices(int64_t tp) const {
    const ModelShape& m = request_.model;
    const int64_t kv_heads = std::max<int64_t>(1, whole(m.num_kv_heads > 0 ? m.num_kv_heads : m.num_heads));
    const bool has_dense_mlp = m.num_experts == 0 || m.dense_layers > 0;
    return whole(m.num_heads) % tp == 0 && (kv_heads % tp == 0 || tp % kv_heads == 0) && (!has_dense_mlp || whole(m.ffn_hidden) % tp == 0);
  }
  std::vector<int64_t> tensor_degrees(int64_t limit) const {
    const FixedLayout& fixed = request_.fixed;
    std::vector<int64_t> list;
    for (const int64_t tp : fixed.tp > 0 ? std::vector{fixed.tp} : divisors(whole(request_.model.num_heads), request_.max_tensor_parallel))
      if (tp <= limit && cuts_matrices(tp)) list.push_back(tp);
    return list;
  }
  bool takes_pipeline(int64_t pp) const {
    if (request_.fixed.pp > 0 ? pp != request_.fixed.pp : pp > request_.max_pipeline_parallel) return false;
    return pp <= whole(request_.model.num_layers);
  }
  bool takes_replicas(int64_t dp) const { return (request_.fixed.dp == 0 || dp == request_.fixed.dp) && std::fmod(request_.global_batch, static_cast<double>(dp)) == 0; }

  template <typename Use>
  void for_context_degrees(Use use) const {
    const int64_t tokens = whole(request_.model.seq_len);
    const auto cuts_tokens = [&](int64_t cp) { return cp == 1 || tokens % (2 * cp) == 0; };
    if (const int64_t fixed = request_.fixed.cp; fixed > 0) {
      if (cuts_tokens(fixed)) use(fixed);
      return;
    }
    for (int64_t cp = 1; cp <= request_.max_context_parallel && cp * 4096 <= std::max<int64_t>(4096, tokens); cp *= 2)
      if (cuts_tokens(cp)) use(cp);
  }

  // Layouts whose replicas are each on devices of one kind.
  void visit_pool(const std::vector<size_t>& groups) {
    std::vector<DevicePart> parts;
    int64_t n = 0;
    for (const size_t group : groups) parts.push_back(part_of(group, counts_[group], 0)), n += counts_[group];
    // Collectives over all replicas go as fast as the slowest network.
    for (DevicePart& part : parts)
      for (const DevicePart& other : parts) part.cluster.network_bytes_per_second = std::min(part.cluster.network_bytes_per_second, other.cluster.network_bytes_per_second);
    for (const int64_t tp : tensor_degrees(n))
      for (const int64_t pp : divisors(n, whole(request_.model.num_layers))) {
        if (!takes_pipeline(pp) || n % (tp * pp) != 0) continue;
        for_context_degrees([&](int64_t cp) {
          if (n % (tp * pp * cp) != 0) return;
          if (groups.size() > 1 && std::any_of(groups.begin(), groups.end(), [&](size_t group) { return counts_[group] % (tp * pp * cp) != 0; })) return;
          const int64_t dp = n / (tp * pp * cp);
          if (takes_replicas(dp)) visit_degrees(parts, tp, pp, cp, dp);
        });
      }
  }

  // Pipelines whose stages are on the groups in this order, as many on each as it has room for.
  void visit_pipelines(const std::vector<size_t>& groups) {
    int64_t fewest = counts_[groups.front()];
    for (const size_t group : groups) fewest = std::min(fewest, counts_[group]);
    for (const int64_t tp : tensor_degrees(fewest))
      for_context_degrees([&](int64_t cp) {
        for (const int64_t dp : divisors(whole(request_.global_batch), fewest / (tp * cp))) {
          if (!takes_replicas(dp)) continue;
          const int64_t stage_devices = tp * cp * dp;
          std::vector<DevicePart> parts;
          int64_t pp = 0;
          for (const size_t group : groups) {
            const int64_t ranks = counts_[group] / stage_devices;
            parts.push_back(part_of(group, ranks * stage_devices, ranks));
            pp += ranks;
          }
          if (takes_pipeline(pp)) visit_degrees(parts, tp, pp, cp, dp);
        }
      });
  }

  void visit_degrees(const std::vector<DevicePart>& parts, int64_t tp, int64_t pp, int64_t cp, int64_t dp) {
    std::vector<int64_t> expert_degrees = {1};
    if (request_.model.num_experts > 0)
      for (const int64_t d : divisors(whole(request_.model.num_experts), dp * cp))
        if (d > 1 && (dp * cp) % d == 0) expert_degrees.push_back(d);
    for (const int64_t ep : expert_degrees) {
      Candidate c;
      JobLayout& l = c.job.layout;
      l.tp = static_cast<double>(tp), l.pp = static_cast<double>(pp), l.cp = static_cast<double>(cp), l.dp = static_cast<double>(dp), l.ep = static_cast<double>(ep);
      c.job.model = request_.model;
      c.job.format = request_.format, c.job.lanes = request_.lanes;
      c.job.stack = SoftwareStack::kMegatronCore;
      c.parts = parts;
      c.job.cluster = parts.front().cluster;
      c.job.cluster.num_devices = 0;
      for (const DevicePart& part : parts) {
        c.job.cluster.num_devices += part.num_devices;
        c.job.cluster.domain_size = std::min(c.job.cluster.domain_size, part.cluster.domain_size);
      }
      visit_sharding(c);
    }
  }

  void visit_sharding(Candidate& c) {
    JobLayout& l = c.job.layout;
    const double replicas = l.dp * l.cp;
    for (const ZeroStage zero : {ZeroStage::kNone, ZeroStage::kOptimizer, ZeroStage::kGradients, ZeroStage::kFull}) {
      const FixedLayout& fixed = request_.fixed;
      if (fixed.zero ? zero != *fixed.zero : zero != ZeroStage::kNone && replicas == 1) continue;
      if (!fixed.zero && zero >= ZeroStage::kGradients && l.pp > 1) continue;  // gradients would be reduced once a micro-batch
      l.zero = zero;
      std::vector<double> shards = {replicas};
      const double in_domain = std::max(1.0, std::floor(c.job.cluster.domain_size / l.tp));
      if (zero == ZeroStage::kFull && fixed.shard_size > 0) {
        if (std::fmod(l.dp, static_cast<double>(fixed.shard_size)) != 0) continue;
        shards = {static_cast<double>(fixed.shard_size)};
      } else if (zero == ZeroStage::kFull && in_domain > 1 && in_domain < replicas && std::fmod(replicas, in_domain) == 0) {
        shards.push_back(in_domain);
      }
      for (const double shard : shards) {
        l.shard_size = shard;
        for (const bool offload : {false, true}) {
          if (offload != fixed.offload_optimizer.value_or(offload)) continue;
          l.offload_optimizer = offload;
          l.pipeline_inside = false;
          visit_batches(c);
          // The other place for pipelines differs only where a domain holds a whole one and not all of them.
          l.pipeline_inside = l.pp > 1 && !c.is_mixed_pipeline() && l.tp * l.cp * l.pp <= c.job.cluster.domain_size && c.job.cluster.num_devices > c.job.cluster.domain_size;
          if (l.pipeline_inside) visit_batches(c);
        }
      }
    }
  }

  void visit_batches(Candidate& c) {
    JobLayout& l = c.job.layout;
    const double per_replica = request_.global_batch / l.dp;
    // Weights, gradients and optimizer do not depend on what follows: when they alone are too much, so is everything below here.
    l.micro_batch = 1, l.num_micro_batches = 1, l.recompute = RecomputeKind::kFull, l.virtual_stages = 1;
    l.schedule = PipelineSchedule::kOneForwardOneBackward, l.sequence_parallel = l.tp > 1;
    if (const double missing = request_.prune ? missing_states(c) : 0; missing > 0) {
      ++result_.pruned_by_memory;
      note_misfit(c, missing);
      return;
    }
    // Nothing is faster than the model's own work at the peak of the products, on every device.
    if (request_.prune && result_.best.size() == static_cast<size_t>(kFinalists) && request_.objective == Objective::kTime) {
      if (num_steps(request_) * model_flops() / peak_flops(c) > worst_kept_) {
        ++result_.pruned_by_time;
        return;
      }
    }
    if (const auto fixed = static_cast<double>(request_.fixed.micro_batch); fixed > 0) {
      if (std::fmod(per_replica, fixed) == 0) visit_micro_batch(c, fixed);
      return;
    }
    for (double micro = 1; micro <= per_replica && micro <= 64 && std::fmod(per_replica, micro) == 0; micro *= 2) visit_micro_batch(c, micro);
  }

  void visit_micro_batch(Candidate& c, double micro) {
    JobLayout& l = c.job.layout;
    const FixedLayout& fixed = request_.fixed;
    const double layers_per_stage = request_.model.num_layers / l.pp;
    l.micro_batch = micro, l.num_micro_batches = request_.global_batch / l.dp / micro;
    for (const RecomputeKind recompute : {RecomputeKind::kNone, RecomputeKind::kSelective, RecomputeKind::kFull}) {
      if (fixed.recompute ? recompute != *fixed.recompute : recompute == RecomputeKind::kSelective) continue;
      l.recompute = recompute;
      for (const bool sequence : {true, false}) {
        if (sequence != fixed.sequence_parallel.value_or(sequence) && l.tp > 1) continue;
        if (!sequence && l.tp == 1) continue;
        if (sequence && std::fmod(request_.model.seq_len / l.cp, l.tp) != 0) continue;
        l.sequence_parallel = sequence && l.tp > 1;
        auto with_schedule = [&](PipelineSchedule schedule, double virtual_stages) {
          if (l.pp > 1 && schedule != fixed.schedule.value_or(schedule)) return;
          if (schedule == PipelineSchedule::kInterleaved && fixed.virtual_stages > 1 && virtual_stages != static_cast<double>(fixed.virtual_stages)) return;
          l.schedule = schedule, l.virtual_stages = virtual_stages;
          score(c);
        };
        with_schedule(PipelineSchedule::kOneForwardOneBackward, 1);
        if (l.pp == 1) continue;
        with_schedule(PipelineSchedule::kGpipe, 1);
        with_schedule(PipelineSchedule::kZeroBubbleH1, 1);
        if (layers_per_stage >= 2) with_schedule(PipelineSchedule::kZeroBubbleV, 1);
        // Unequal ranks cut their layers into unequal stages anyway.
        const bool mixed = c.is_mixed_pipeline();
        if ((mixed || std::fmod(request_.model.num_layers, l.pp) == 0) && std::fmod(l.num_micro_batches, l.pp) == 0)
          for (double v = 2; v <= layers_per_stage && v <= std::max<double>(12, static_cast<double>(fixed.virtual_stages)); ++v)
            if (mixed || std::fmod(layers_per_stage, v) == 0) with_schedule(PipelineSchedule::kInterleaved, v);
      }
    }
  }

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

  void score(Candidate& c) {
    ++result_.considered;
    if (const double missing = place(c); missing > 0) {
      note_misfit(c, missing);
      return;
    }
    ++result_.scored;
    price_run(request_, c);
    if (c.goodput < kLeastGoodput) {
      best_goodput_ = std::max(best_goodput_, c.goodput), ends_never_ = true;
      return;
    }
    note_family(c);
    if (!fastest_ || c.run_seconds < fastest_seconds_) fastest_ = true, fastest_seconds_ = c.run_seconds;
    if (!cheapest_ || c.money < least_money_) cheapest_ = true, least_money_ = c.money;
    if ((request_.deadline_seconds > 0 && c.run_seconds > request_.deadline_seconds) || (request_.budget > 0 && c.money > request_.budget)) return;
    keep(c);
    keep_point(c);
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
    least_missing_ = std::min(least_missing_, missing);
    for_families(c, [&](size_t id) { families_[id].least_missing = std::min(families_[id].least_missing, missing); });
  }

  void finish() {
    auto& best = result_.best;
    std::sort_heap(best.begin(), best.end(), is_better);
    if (best.empty()) fail();
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

  [[noreturn]] void fail() const {
    const std::string devices = devices_text(request_.cluster);
    const std::string fixed = request_.fixed.text();
    const std::string where = fixed.empty() ? devices : devices + " with " + fixed;
    if (fastest_)
      throw Error(ErrorCode::kInvalidConfig, "no layout meets the limits: wanted {}{}{}; the fastest layout takes {}{}; give it more time or money, or more devices than {}",
                  request_.deadline_seconds > 0 ? "at most " + format_duration(request_.deadline_seconds) : "", request_.deadline_seconds > 0 && request_.budget > 0 ? " and " : "",
                  request_.budget > 0 ? "at most " + money_text(request_.budget) : "", format_duration(fastest_seconds_),
                  request_.cluster.has_prices() ? ", the cheapest costs " + money_text(least_money_) : "", where);
    if (ends_never_)
      throw Error(ErrorCode::kInvalidConfig, "no run ends: {} have a fault every {}, and failures.restart_seconds = {} with reading a checkpoint back leave {:.2g} of the time for work; "
                  "fewer devices, a larger failures.device_mtbf_hours, a faster restart or faster tiers.storage_gbytes_per_second would do",
                  where, format_duration(request_.cluster.failures.device_mtbf_hours * 3600 / static_cast<double>(request_.cluster.num_devices())), request_.cluster.failures.restart_seconds, best_goodput_);
    if (std::isfinite(least_missing_)) {
      const size_t grown = roomiest_group();
      const int64_t count = smallest_that_fits(grown);
      const bool several = result_.devices.size() > 1;
      const std::string name(result_.devices[grown].name);
      throw Error(ErrorCode::kInvalidConfig, "the model does not fit: {:.1f} B parameters need {} more than the fullest of {} has for tensors ({}{}); {}", parameters_.total / 1e9, format_bytes(least_missing_),
                  where, several ? "at most " : "", format_bytes(std::max(0.0, result_.capacity_bytes[grown])),
                  count == 0  ? fmt::format("no number of {} that global_batch_size = {} can use would hold it: more sequences, shorter ones, {}or devices with more memory", several ? name : "them", request_.global_batch,
                                            fixed.empty() ? "" : "fewer fixed sizes, ")
                  : several   ? fmt::format("the smallest cluster with more {} that would hold it has of them {}", name, count)
                              : fmt::format("the smallest cluster of them that would hold it has {}", count));
    }
    throw Error(ErrorCode::kInvalidConfig, "no layout divides global_batch_size = {} over {}: {} heads ({} kv), {} layers, {} tokens a sequence; {}", request_.global_batch, where, request_.model.num_heads,
                request_.model.num_kv_heads > 0 ? request_.model.num_kv_heads : request_.model.num_heads, request_.model.num_layers, request_.model.seq_len, what_divides());
  }

  // Every (tp, pp, cp) whose ranks divide n devices, until `use` says true.
  bool any_model_degrees(int64_t n, const std::function<bool(int64_t)>& use) const {
    for (const int64_t tp : tensor_degrees(n))
      for (const int64_t pp : divisors(n, whole(request_.model.num_layers))) {
        bool found = false;
        if (takes_pipeline(pp)) for_context_degrees([&](int64_t cp) { found = found || (n % (tp * pp * cp) == 0 && use(n / (tp * pp * cp))); });
        if (found) return true;
      }
    return false;
  }

  /// What would divide: sizes, a batch for these devices, devices for this batch.
  std::string what_divides() const {
    const FixedLayout& fixed = request_.fixed;
    const ModelShape& m = request_.model;
    if (fixed.tp > 0 && !cuts_matrices(fixed.tp)) {
      std::vector<int64_t> valid;
      for (const int64_t tp : divisors(whole(m.num_heads), whole(m.num_heads)))
        if (cuts_matrices(tp)) valid.push_back(tp);
      return fmt::format("tensor_parallel_size = {} does not cut heads, kv heads and the {} columns of the MLP alike; use one of {}", fixed.tp, m.ffn_hidden, fmt::join(valid, ", "));
    }
    if (fixed.pp > whole(m.num_layers)) return fmt::format("pipeline_parallel_size = {} is more than the layers; use at most {}", fixed.pp, m.num_layers);
    if (fixed.cp > 1 && whole(m.seq_len) % (2 * fixed.cp) != 0) return fmt::format("context_parallel_size = {} does not cut a sequence into {} chunks; use a seq_len that is a multiple of that", fixed.cp, 2 * fixed.cp);
    if (fixed.dp > 0 && std::fmod(request_.global_batch, static_cast<double>(fixed.dp)) != 0) return fmt::format("data_parallel_size = {} does not divide the batch; use a batch that is a multiple of it", fixed.dp);
    if (request_.cluster.devices.size() > 1) return "a batch that is a multiple of the devices of each kind, or of a large part of them, helps";
    const DevicesSection& hosts = request_.cluster.devices.front();
    std::vector<std::string> ways;
    int64_t least = 0;
    any_model_degrees(hosts.count, [&](int64_t dp) {
      if (takes_replicas(dp) || fixed.dp == 0) least = least == 0 ? dp : std::min(least, dp);
      return false;
    });
    if (least > 0) ways.push_back(fmt::format("a global_batch_size that is a multiple of {}", least));
    for (int64_t n = hosts.count - hosts.per_node; n > 0; n -= hosts.per_node)
      if (any_model_degrees(n, [&](int64_t dp) { return takes_replicas(dp); })) {
        ways.push_back(fmt::format("{} of the devices", n));
        break;
      }
    if (ways.empty()) return fixed.text().empty() ? "another number of devices would do" : "leave some of these sizes out, or use another number of devices";
    return fmt::format("use {}", fmt::join(ways, ", or "));
  }

  size_t roomiest_group() const {
    const auto most = std::max_element(result_.capacity_bytes.begin(), result_.capacity_bytes.end());
    return static_cast<size_t>(most - result_.capacity_bytes.begin());
  }

  /// The fewest devices of the group in whole hosts that some layout fits on: twice as many until one does, then by halves between. 0: none.
  int64_t smallest_that_fits(size_t group) const {
    SearchRequest more = request_;
    more.objective = Objective::kTime, more.deadline_seconds = more.budget = 0;
    DevicesSection& devices = more.cluster.devices[group];
    SearchResult other;
    const auto fits_on = [&](int64_t hosts) {
      devices.count = hosts * devices.per_node;
      return Search(more, other).fits();
    };
    constexpr int kDoublings = 20;
    int64_t low = std::max<int64_t>(1, devices.count / devices.per_node), high = low;
    for (int i = 0; i < kDoublings; ++i, low = high)
      if (fits_on(high *= 2)) {
        while (high - low > 1) {
          const int64_t middle = low + (high - low) / 2;
          (fits_on(middle) ? high : low) = middle;
        }
        return high * devices.per_node;
      }
    return 0;
  }

  const SearchRequest& request_;
  SearchResult& result_;
  ParameterCount parameters_;
  std::vector<int64_t> counts_;  // devices of each group in use
  double host_capacity_ = 0, worst_kept_ = std::numeric_limits<double>::infinity();
  double least_missing_ = std::numeric_limits<double>::infinity();
  bool fastest_ = false, cheapest_ = false;
  double fastest_seconds_ = 0, least_money_ = 0, best_goodput_ = 0;
  bool ends_never_ = false;
  std::array<Family, kNumFamilies> families_;
  static constexpr std::array kFilled = {1.0, 0.85, 0.65};  // shares of the memory
  std::map<std::pair<double, uint32_t>, std::array<Candidate, 2 * kFilled.size()>> pareto_;  // by devices and their kinds
};

}  // namespace

void search_layouts(const SearchRequest& request, SearchResult& result) {
  if (request.global_batch < 1 || request.model.num_layers < 1 || request.model.hidden < 1 || request.model.num_heads < 1 || request.model.seq_len < 1)
    throw Error(ErrorCode::kInvalidConfig, "the search needs layers, hidden size, heads, sequence length and global batch of at least 1; found {} layers, hidden {}, {} heads, {} tokens, batch {}",
                request.model.num_layers, request.model.hidden, request.model.num_heads, request.model.seq_len, request.global_batch);
  Search(request, result).run();
  if (!request.front || request.objective != Objective::kTime || request.total_tokens <= 0 || !request.cluster.has_prices()) return drop_dear_sets(result.pareto);
  // For time every device counts, so the search above saw one number of them; the front of time against money has more points.
  constexpr int kHalvings = 5;
  SearchRequest fewer = request;
  fewer.front = false, fewer.deadline_seconds = fewer.budget = 0;
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
