#include "planner/search_space.h"

#include <algorithm>
#include <cmath>

namespace orrery {
namespace {

int64_t whole(double value) { return static_cast<int64_t>(value); }

}  // namespace

std::vector<int64_t> divisors(int64_t n, int64_t limit) {
  std::vector<int64_t> list;
  for (int64_t d = 1; d <= std::min(n, limit); ++d)
    if (n % d == 0) list.push_back(d);
  return list;
}

bool LayoutSpace::cuts_matrices(int64_t tp) const {
  const ModelShape& m = request_.model;
  const int64_t kv_heads = std::max<int64_t>(1, whole(m.num_kv_heads > 0 ? m.num_kv_heads : m.num_heads));
  const bool has_dense_mlp = m.num_experts == 0 || m.dense_layers > 0;
  return whole(m.num_heads) % tp == 0 && (kv_heads % tp == 0 || tp % kv_heads == 0) && (!has_dense_mlp || whole(m.ffn_hidden) % tp == 0);
}

std::vector<int64_t> LayoutSpace::tensor_degrees(int64_t limit) const {
  const FixedLayout& fixed = request_.fixed;
  std::vector<int64_t> list;
  for (const int64_t tp : fixed.tp > 0 ? std::vector{fixed.tp} : divisors(whole(request_.model.num_heads), request_.max_tensor_parallel))
    if (tp <= limit && cuts_matrices(tp)) list.push_back(tp);
  return list;
}

bool LayoutSpace::takes_pipeline(int64_t pp) const {
  if (request_.fixed.pp > 0 ? pp != request_.fixed.pp : pp > request_.max_pipeline_parallel) return false;
  return pp <= whole(request_.model.num_layers);
}

bool LayoutSpace::cuts_heads(int64_t tp, int64_t cp) const {
  const ModelShape& m = request_.model;
  if (request_.fixed.context_method != ContextMethod::kUlysses) return true;
  const int64_t kv_heads = std::max<int64_t>(1, whole(m.num_kv_heads > 0 ? m.num_kv_heads : m.num_heads) / tp);
  return whole(m.num_heads) / tp % cp == 0 && kv_heads % cp == 0;
}

bool LayoutSpace::takes_replicas(int64_t dp) const { return (request_.fixed.dp == 0 || dp == request_.fixed.dp) && std::fmod(request_.global_batch, static_cast<double>(dp)) == 0; }

template <typename Use>
void LayoutSpace::for_context_degrees(int64_t tp, Use use) const {
  const int64_t tokens = whole(request_.model.seq_len);
  const auto cuts = [&](int64_t cp) { return cp == 1 || (tokens % (2 * cp) == 0 && cuts_heads(tp, cp)); };
  if (const int64_t fixed = request_.fixed.cp; fixed > 0) {
    if (cuts(fixed)) use(fixed);
    return;
  }
  for (int64_t cp = 1; cp <= request_.max_context_parallel && cp * 4096 <= std::max<int64_t>(4096, tokens); cp *= 2)
    if (cuts(cp)) use(cp);
}

bool LayoutSpace::any_model_degrees(int64_t n, const std::function<bool(int64_t)>& use) const {
  for (const int64_t tp : tensor_degrees(n))
    for (const int64_t pp : divisors(n, whole(request_.model.num_layers))) {
      bool found = false;
      if (takes_pipeline(pp)) for_context_degrees(tp, [&](int64_t cp) { found = found || (n % (tp * pp * cp) == 0 && use(n / (tp * pp * cp))); });
      if (found) return true;
    }
  return false;
}

void LayoutSpace::visit_all(const std::vector<int64_t>& counts, LayoutVisitor& visitor) {
  counts_ = counts, visitor_ = &visitor;
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

DevicePart LayoutSpace::part_of(size_t group, int64_t num_devices, int64_t num_ranks) const {
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

// Layouts whose replicas are each on devices of one kind.
void LayoutSpace::visit_pool(const std::vector<size_t>& groups) {
  std::vector<DevicePart> parts;
  int64_t n = 0;
  for (const size_t group : groups) parts.push_back(part_of(group, counts_[group], 0)), n += counts_[group];
  // Collectives over all replicas go as fast as the slowest network.
  for (DevicePart& part : parts)
    for (const DevicePart& other : parts) part.cluster.network_bytes_per_second = std::min(part.cluster.network_bytes_per_second, other.cluster.network_bytes_per_second);
  for (const int64_t tp : tensor_degrees(n))
    for (const int64_t pp : divisors(n, whole(request_.model.num_layers))) {
      if (!takes_pipeline(pp) || n % (tp * pp) != 0) continue;
      for_context_degrees(tp, [&](int64_t cp) {
        if (n % (tp * pp * cp) != 0) return;
        if (groups.size() > 1 && std::any_of(groups.begin(), groups.end(), [&](size_t group) { return counts_[group] % (tp * pp * cp) != 0; })) return;
        const int64_t dp = n / (tp * pp * cp);
        if (takes_replicas(dp)) visit_degrees(parts, tp, pp, cp, dp);
      });
    }
}

// Pipelines whose stages are on the groups in this order, as many on each as it has room for.
void LayoutSpace::visit_pipelines(const std::vector<size_t>& groups) {
  int64_t fewest = counts_[groups.front()];
  for (const size_t group : groups) fewest = std::min(fewest, counts_[group]);
  for (const int64_t tp : tensor_degrees(fewest))
    for_context_degrees(tp, [&](int64_t cp) {
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

void LayoutSpace::visit_degrees(const std::vector<DevicePart>& parts, int64_t tp, int64_t pp, int64_t cp, int64_t dp) {
  std::vector<int64_t> expert_degrees = {1};
  if (request_.model.num_experts > 0)
    for (const int64_t d : divisors(whole(request_.model.num_experts), dp * cp))
      if (d > 1 && (dp * cp) % d == 0) expert_degrees.push_back(d);
  for (const int64_t ep : expert_degrees) {
    Candidate c;
    JobLayout& l = c.job.layout;
    l.tp = static_cast<double>(tp), l.pp = static_cast<double>(pp), l.cp = static_cast<double>(cp), l.dp = static_cast<double>(dp), l.ep = static_cast<double>(ep);
    l.context_method = request_.fixed.context_method;
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

void LayoutSpace::visit_sharding(Candidate& c) {
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

void LayoutSpace::visit_batches(Candidate& c) {
  JobLayout& l = c.job.layout;
  const double per_replica = request_.global_batch / l.dp;
  // The least that follows: what does not fit even so is not cut further.
  l.micro_batch = 1, l.num_micro_batches = 1, l.recompute = RecomputeKind::kFull, l.virtual_stages = 1;
  l.schedule = PipelineSchedule::kOneForwardOneBackward, l.sequence_parallel = l.tp > 1;
  if (!visitor_->wants_batches(c)) return;
  if (const auto fixed = static_cast<double>(request_.fixed.micro_batch); fixed > 0) {
    if (std::fmod(per_replica, fixed) == 0) visit_micro_batch(c, fixed);
    return;
  }
  for (double micro = 1; micro <= per_replica && micro <= 64 && std::fmod(per_replica, micro) == 0; micro *= 2) visit_micro_batch(c, micro);
}

void LayoutSpace::visit_micro_batch(Candidate& c, double micro) {
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
        visitor_->visit(c);
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

}  // namespace orrery
