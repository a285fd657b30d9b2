// Legend: t, c, p, v, d, e degrees of tensor, context, pipeline, virtual, data and expert parallelism; T tokens of a micro-batch on
// a rank; h hidden, f feed-forward width.
#include "planner/cost_model.h"

#include <algorithm>
#include <cmath>

namespace orrery {
namespace {

using enum Constant;

constexpr double kTileElements = 128.0 * 128.0;  // of the output of a product, what one unit makes at a time
constexpr double kBackwardElement = 1.6;         // bytes moved backward over forward
constexpr double kFlashBackward = 2.6;           // attention recomputes its scores
constexpr double kSoftmaxBackward = 1.2;         // bytes of an unfused softmax with dropout: 11 a score backward, 9 forward
constexpr double kCastShare = 0.25;              // more bytes for casts to eight bits

/// max(a, b) with a soft corner: what the host issues and what the device does overlap, but not perfectly where they are equal.
double soft_max(double a, double b) {
  const double high = std::max(a, b), low = std::min(a, b);
  if (high <= 0) return 0;
  const double r = low / high, r2 = r * r, r4 = r2 * r2;
  return high * std::sqrt(std::sqrt(std::sqrt(1 + r4 * r4)));
}

struct Rates {
  double product_flops;  // of the format, at the asymptote
  double units, depth, waves, memory;
};

/// Seconds of an [m, k] x [k, n] product.
double product(const Rates& rates, double m, double n, double k) {
  const double waves = m * n / (rates.units * kTileElements);
  const double compute = 2 * m * n * k / rates.product_flops * (1 + rates.depth / k) * (1 + rates.waves / waves);
  return std::max(compute, 2 * (m * k + k * n + m * n) / rates.memory);
}

/// Seconds forward and in the two halves of the backward: gradients of what came in, gradients of weights.
struct Passes {
  double forward = 0, input = 0, weight = 0;
  double total() const { return forward + input + weight; }
  void scale(double factor) { forward *= factor, input *= factor, weight *= factor; }
};
Passes linear(const Rates& rates, double tokens, double out, double in) {
  return {product(rates, tokens, out, in), product(rates, tokens, in, out), product(rates, out, in, tokens)};
}
void add(Passes& sum, const Passes& part, double scale = 1) {
  sum.forward += scale * part.forward, sum.input += scale * part.input, sum.weight += scale * part.weight;
}

/// How much deeper a product must be than on an A100 to lose the same share: filling a unit's pipeline takes a time, not a number of
/// steps, so a faster unit loses more. Systolic arrays fill in as many steps as they have rows.
double depth_scale(const AcceleratorSpec& device) {
  if (device.generation == DeviceGeneration::kTpu || device.generation == DeviceGeneration::kCpu) return 1;
  constexpr double kAmpereUnit = 312e12 / 108;
  return device.bf16_flops / device.num_units / kAmpereUnit;
}

/// Bytes moved per logit by the loss, forward and backward. Early programs widen to f32 and take maximum, exponential, sum, quotient and
/// gradient in a kernel each; Megatron-core and FSDP's fuse some of them, a compiler nearly all.
double logit_bytes(SoftwareStack stack) {
  if (has_unfused_attention(stack)) return 48;
  return stack == SoftwareStack::kFsdp2023 || stack == SoftwareStack::kMegatronCore ? 32 : 14;
}

double generation_share(const CostConstants& k, DeviceGeneration generation) {
  switch (generation) {
    case DeviceGeneration::kVolta: return k[kGemmVolta];
    case DeviceGeneration::kAmpere: return k[kGemmAmpere];
    case DeviceGeneration::kHopper: return k[kGemmHopper];
    case DeviceGeneration::kBlackwell: return k[kGemmBlackwell];
    case DeviceGeneration::kCdna: return k[kGemmCdna];
    case DeviceGeneration::kTpu:
    case DeviceGeneration::kCpu: return k[kGemmTpu];
  }
  return k[kGemmHopper];
}

double product_flops(const TrainingJob& job, const CostConstants& k, NumberFormat format) {
  const AcceleratorSpec& device = *job.cluster.device;
  const double share = generation_share(k, device.generation) * job.cluster.power_scale;
  if (format == NumberFormat::kBf16 || device.fp8_flops <= 0) return device.bf16_flops * share;
  if (format == NumberFormat::kFp4 && device.fp4_flops > 0) return device.fp4_flops * share * k[kFp4];
  const bool hopper = device.generation == DeviceGeneration::kHopper;
  return device.fp8_flops * share * k[hopper ? kFp8Hopper : kFp8Blackwell];
}

double attention_flops(const TrainingJob& job, const CostConstants& k) {
  double share = k[kAttentionAmpere];
  const DeviceGeneration generation = job.cluster.device->generation;
  if (has_unfused_attention(job)) share = k[kAttentionUnfused];
  else if (generation == DeviceGeneration::kBlackwell) share = k[kAttentionBlackwell];
  else if (generation == DeviceGeneration::kHopper) share = k[job.stack == SoftwareStack::kFsdp2023 ? kAttention2023 : kAttentionHopper];
  return job.cluster.device->bf16_flops * share * job.cluster.power_scale;
}

struct Links {
  double link, network, hop, latency;
};

/// Seconds in which a ring over n ranks moves `bytes` once around ((n-1)/n of them per rank). `stride` ranks of the domain lie
/// between two members, so a group has domain/stride members in one domain. Across domains every device of the group in a domain
/// uses its own adapter and moves its part of the bytes.
double ring(const Links& links, double domain, double n, double stride, double bytes) {
  if (n <= 1) return 0;
  const double inside = std::clamp(std::floor(domain / stride), 1.0, n);
  double seconds = 0;
  if (inside > 1) seconds += (inside - 1) / inside * bytes / links.link + links.hop * (inside - 1);
  if (inside < n) {
    const double outside = n / inside;
    seconds += (outside - 1) / outside * bytes / inside / links.network + links.latency * std::log2(outside + 1);
  }
  return seconds;
}

}  // namespace

std::string_view pipeline_schedule_name(PipelineSchedule schedule) {
  switch (schedule) {
    case PipelineSchedule::kOneForwardOneBackward: return "1f1b";
    case PipelineSchedule::kGpipe: return "gpipe";
    case PipelineSchedule::kInterleaved: return "interleaved";
    case PipelineSchedule::kZeroBubbleH1: return "zb-h1";
    case PipelineSchedule::kZeroBubbleV: return "zb-v";
  }
  return "?";
}

ParameterCount count_parameters(const ModelShape& m) {
  ParameterCount count;
  const double q = m.num_heads * m.head_dim, kv = m.num_kv_heads * m.head_dim;
  if (m.kv_lora > 0) {
    const double q_width = m.num_heads * (m.head_dim + m.rope_dim);
    count.attention = (m.q_lora > 0 ? m.hidden * m.q_lora + m.q_lora * q_width : m.hidden * q_width) + m.hidden * (m.kv_lora + m.rope_dim) +
                      m.kv_lora * 2 * q + q * m.hidden;
  } else {
    count.attention = m.hidden * (q + 2 * kv) + q * m.hidden;
  }
  const double matrices = m.gated ? 3 : 2;
  count.dense_ffn = matrices * m.hidden * m.ffn_hidden;
  count.experts = matrices * m.hidden * m.expert_ffn * m.num_experts + m.hidden * m.num_experts;
  count.shared = matrices * m.hidden * m.shared_ffn;
  count.embedding = m.vocab * m.hidden * (m.tied_head ? 1 : 2);
  const double moe_layers = m.num_experts > 0 ? m.num_layers - m.dense_layers : 0;
  const double dense_layers = m.num_layers - moe_layers;
  count.total = m.num_layers * count.attention + dense_layers * count.dense_ffn + moe_layers * (count.experts + count.shared) + count.embedding;
  count.active = m.num_layers * count.attention + dense_layers * count.dense_ffn +
                 moe_layers * (matrices * m.hidden * m.expert_ffn * m.top_k + count.shared) + count.embedding;
  return count;
}

namespace {

// One layer of one micro-batch, what surrounds the layers, and the step that they make; members are the job's abbreviations.
class StepModel {
 public:
  StepModel(const TrainingJob& job, const CostConstants& constants)
      : job_(job), k_(constants), m_(job.model), l_(job.layout), old_(has_unfused_attention(job.stack)), fp8_(job.format != NumberFormat::kBf16), fsdp_(l_.zero == ZeroStage::kFull && l_.dp > 1),
        tokens_(l_.micro_batch * m_.seq_len / l_.cp), q_(m_.num_heads * m_.head_dim), kv_(m_.num_kv_heads * m_.head_dim), memory_(job.cluster.device->memory_bytes_per_second),
        domain_(job.cluster.domain_size), moe_share_(m_.num_experts > 0 ? (m_.num_layers - m_.dense_layers) / m_.num_layers : 0),
        rates_{product_flops(job, k_, job.format), static_cast<double>(job.cluster.device->num_units), k_[kGemmDepth] * depth_scale(*job.cluster.device), k_[kGemmWaves], memory_}, bf16_(rates_),
        links_{job.cluster.link_bytes_per_second * k_[kLinkShare], job.cluster.network_bytes_per_second * k_[kNetworkShare], k_[old_ ? kHopOld : kHopModern], k_[kNetworkLatency]},
        count_(count_parameters(m_)) {
    bf16_.product_flops = product_flops(job, k_, NumberFormat::kBf16);
  }

  StepCost cost() const {
    const double t = l_.tp;
    // --- layers: what devices compute, what ranks exchange, what the host issues ---
    const Passes attention = attention_part();
    Passes dense, mixture;
    if (moe_share_ < 1) dense = device_layer(attention, feed_forward(m_.ffn_hidden), 0);
    if (moe_share_ > 0) mixture = device_layer(attention, mixture_part(), k_[kPermuteBytes] * tokens_ / t * m_.top_k * m_.hidden * 2 / memory_);
    const double tp_layer = num_collectives() * tensor_collective(), cp_layer = context_exchange(), ep_layer = expert_exchange(), host = host_layer();
    const double dense_layer = soft_max(dense.total() + tp_layer + cp_layer, host);
    const double mixture_layer = moe_share_ > 0 ? soft_max(mixture.total() + tp_layer + cp_layer + ep_layer, host + k_[kHostMoe] * (forwards() + 1)) : 0;
    double layer = dense_layer * (1 - moe_share_) + mixture_layer * moe_share_;

    // FSDP gathers a layer's weights forward and backward and scatters its gradients, beside the computing.
    const double layer_params = (count_.attention + (1 - moe_share_) * count_.dense_ffn + moe_share_ * count_.shared) / t;
    const double expert_params = moe_share_ * count_.experts / l_.ep / (l_.ep > 1 ? 1 : t);
    if (old_ && l_.num_micro_batches > 1) layer += accumulation_seconds(layer_params + expert_params);
    double gather = 0;
    if (fsdp_) {
      gather = ring(links_, domain_, l_.shard_size, t * l_.cp, layer_params * 6) + ring(links_, domain_, std::max(1.0, l_.shard_size / l_.ep), t * l_.cp * l_.ep, expert_params * 6);
      layer = soft_max(layer + k_[kFsdpContention] * gather, gather);
    }

    // --- the head on the last stage, embedding on the first ---
    const double head = linear(bf16_, tokens_, m_.vocab / t, m_.hidden).total() + logit_bytes(job_.stack) * tokens_ * m_.vocab / t / memory_;
    const double embed = 6 * tokens_ * m_.hidden * 2 / memory_ / (l_.sequence_parallel ? t : 1);

    // --- pipeline ---
    const double layers_per_stage = l_.stage_layers > 0 ? l_.stage_layers : m_.num_layers / l_.pp, slow_layers = std::ceil(layers_per_stage - 1e-9);
    const double stage_mean = layer * layers_per_stage + (head + embed) / l_.pp;
    double stage_slow = layer * slow_layers + (l_.pp == 1 ? head + embed : 0);
    if (l_.pp > 1) {
      // An uneven split gives the last stage fewer layers, which then holds the head.
      const double last_layers = std::max(0.0, m_.num_layers - slow_layers * (l_.pp - 1));
      stage_slow = std::max(stage_slow, layer * (last_layers > 0 ? last_layers : layers_per_stage) + head);
    }
    const double handoff = handoff_seconds();
    const double steady = l_.num_micro_batches * (stage_slow + handoff);
    const double fill = (l_.pp - 1) * idle_share(l_) * (stage_mean + handoff);

    // --- gradients and optimizer ---
    const double rank_params = layers_per_stage * layer_params + count_.embedding / t / (l_.pp > 1 ? 2 : 1), rank_experts = layers_per_stage * expert_params;
    const double reduce = gradient_reduction(rank_params, rank_experts), optimizer = optimizer_seconds(rank_params, rank_experts);

    StepCost cost;
    const double scale = job_.stack == SoftwareStack::kDeterministic ? k_[kDeterministic] : 1;
    const double tail = reduce + optimizer + k_[kStepSeconds];
    cost.seconds = (steady + fill + tail) * scale;
    const double layer_count = l_.num_micro_batches * layers_per_stage;
    cost.compute_seconds = layer_count * (dense.total() * (1 - moe_share_) + mixture.total() * moe_share_) + l_.num_micro_batches * (head + embed) / l_.pp;
    cost.host_seconds = layer_count * host;
    cost.communication_seconds = layer_count * (tp_layer + cp_layer + moe_share_ * ep_layer + gather) + reduce + l_.num_micro_batches * handoff;
    cost.bubble_seconds = fill * scale;
    cost.optimizer_seconds = optimizer;
    cost.layer_seconds = layer * scale, cost.head_seconds = head * scale, cost.embed_seconds = embed * scale, cost.handoff_seconds = handoff * scale, cost.tail_seconds = tail * scale;
    const Passes& usual = moe_share_ > 0.5 ? mixture : dense;
    cost.forward_share = usual.forward / usual.total(), cost.weight_share = usual.weight / usual.total();
    const double rank_tokens = l_.num_micro_batches * tokens_;
    cost.model_flops_per_device =
        rank_tokens * (6 * (count_.active - (m_.tied_head ? 0 : count_.embedding / 2)) + 6 * m_.num_layers * m_.seq_len * m_.num_heads * score_dim()) / t / l_.pp;
    return cost;
  }

 private:
  double forwards() const { return l_.recompute == RecomputeKind::kFull ? 2 : 1; }
  double score_dim() const { return m_.kv_lora > 0 ? m_.head_dim + m_.rope_dim / 2 : m_.head_dim; }

  // The products around the scores.
  Passes attention_part() const {
    const double t = l_.tp, h = m_.hidden;
    Passes part;
    if (m_.kv_lora > 0) {
      const double q_width = m_.num_heads * (m_.head_dim + m_.rope_dim);
      if (m_.q_lora > 0) add(part, linear(rates_, tokens_, m_.q_lora, h)), add(part, linear(rates_, tokens_, q_width / t, m_.q_lora));
      else add(part, linear(rates_, tokens_, q_width / t, h));
      add(part, linear(rates_, tokens_, m_.kv_lora + m_.rope_dim, h));
      add(part, linear(rates_, tokens_, 2 * q_ / t, m_.kv_lora));
    } else {
      add(part, linear(rates_, tokens_, (q_ + 2 * std::max(kv_, t * m_.head_dim)) / t, h));
    }
    add(part, linear(rates_, tokens_, h, q_ / t));
    if (std::fmod(h / t, 64) != 0 && m_.num_experts == 0) part.scale(1 + k_[kMisaligned]);
    return part;
  }

  // Scores and values: 4 T s per head element. A fused kernel skips the masked half; an unfused one moves every score through memory.
  Passes scores() const {
    const double t = l_.tp;
    const double window_share = m_.window > 0 ? m_.window_layers * std::min(1.0, 2 * m_.window / m_.seq_len) + (1 - m_.window_layers) : 1;
    const double flops = 4 * tokens_ * m_.seq_len * m_.num_heads * score_dim() / t;
    Passes part;
    if (has_unfused_attention(job_)) {
      const double bytes = k_[kSoftmaxBytes] * tokens_ * m_.seq_len * m_.num_heads / t;
      const double products = flops / attention_flops(job_, k_);
      part.forward = products + bytes / memory_;
      part.input = 2 * products + kSoftmaxBackward * bytes / memory_;
    } else {
      part.forward = flops / 2 * window_share / attention_flops(job_, k_);
      part.input = kFlashBackward * part.forward;
    }
    if (std::fmod(m_.head_dim, 8) != 0) part.scale(1 + 4 * k_[kMisaligned]);
    return part;
  }

  Passes feed_forward(double width) const {
    const double t = l_.tp;
    Passes part;
    add(part, linear(rates_, tokens_, (m_.gated ? 2 : 1) * width / t, m_.hidden));
    add(part, linear(rates_, tokens_, m_.hidden, width / t));
    if (std::fmod(width / t, 64) != 0) part.scale(1 + k_[kMisaligned]);
    return part;
  }

  // The products of one expert after the other: few rows each, and its weights are read whatever the rows.
  Passes mixture_part() const {
    const double t = l_.tp, local_experts = std::max(1.0, m_.num_experts / l_.ep);
    const double rows = std::max(1.0, tokens_ * m_.top_k / local_experts / t * (l_.ep > 1 ? 1 : t));
    Passes expert, part;
    add(expert, linear(rates_, rows, (m_.gated ? 2 : 1) * m_.expert_ffn, m_.hidden));
    add(expert, linear(rates_, rows, m_.hidden, m_.expert_ffn));
    add(part, expert, local_experts * k_[kGroupedSlowdown] / std::max(1.0, l_.ep > 1 ? 1.0 : t));
    if (m_.shared_ffn > 0) add(part, feed_forward(m_.shared_ffn));
    add(part, linear(bf16_, tokens_ / t, m_.num_experts, m_.hidden));
    return part;
  }

  // What the device does for a layer, forward and backward; what is computed again counts as the backward's first half.
  Passes device_layer(const Passes& attention, const Passes& feed, double permute) const {
    const double width = k_[job_.stack == SoftwareStack::kFsdpCompiled ? kElementCompiled : old_ ? kElementOld : kElementModern] * (fp8_ ? 1 + kCastShare : 1);
    // Without sequence parallelism a share of the element-wise work (norms, dropout, residuals) is the same on every tensor rank.
    const double t = l_.tp, split = l_.sequence_parallel || t == 1 ? 1 / t : k_[kReplicatedShare] + (1 - k_[kReplicatedShare]) / t;
    const double active_ffn = m_.num_experts > 0 ? m_.expert_ffn * m_.top_k + m_.shared_ffn : m_.ffn_hidden;
    const double element = width * tokens_ * (m_.hidden + active_ffn / 4) * split / memory_ + permute;
    const Passes score = scores();
    Passes part{attention.forward + score.forward + feed.forward + element, attention.input + score.input + feed.input + kBackwardElement * element, attention.weight + feed.weight};
    if (l_.recompute == RecomputeKind::kFull) part.input += part.forward;
    if (l_.recompute == RecomputeKind::kSelective) {
      if (job_.stack == SoftwareStack::kFsdpCompiled) part.input += 0.5 * (attention.forward + feed.forward);
      else if (old_) part.input += score.forward;
    }
    return part;
  }

  // Adding a micro-batch's gradients to those before it, in kernels of their own: read, read and write, in the accumulator's type. Later
  // programs do it in the epilogue of the product that makes them.
  double accumulation_seconds(double params) const { return (job_.gradient_bytes > 4 ? 10 : 6) * params / memory_; }

  double num_collectives() const { return l_.tp > 1 ? 2 * forwards() + 2 : 0; }
  double message_bytes() const { return tokens_ * m_.hidden * 2; }
  double tensor_collective() const { return ring(links_, domain_, l_.tp, 1, 2 * message_bytes()) * k_[l_.sequence_parallel ? kTpExposedModern : kTpExposedOld]; }
  double context_exchange() const {
    if (l_.cp <= 1) return 0;
    if (l_.context_method == ContextMethod::kUlysses) return head_exchange();
    const double kv_bytes = m_.seq_len * l_.micro_batch * 2 * (m_.kv_lora > 0 ? q_ : kv_) / l_.tp * 2;
    return 3 * ring(links_, domain_, l_.cp, l_.tp, kv_bytes) * k_[kCpExposed];
  }
  // Ulysses (Jacobs et al. 2023, arXiv:2309.14509): before attention q, k and v leave for the ranks that have their heads, behind it the output comes back; their
  // gradients the other way. A rank keeps 1/cp of each; nothing is computed meanwhile.
  double head_exchange() const {
    const double width = 2 * q_ / l_.tp + 2 * std::max((m_.kv_lora > 0 ? q_ : kv_) / l_.tp, m_.head_dim), bytes = tokens_ * width * 2;
    const double inside = std::clamp(std::floor(domain_ / l_.tp), 1.0, l_.cp);
    const double moved = bytes * ((inside - 1) / l_.cp / links_.link + (1 - inside / l_.cp) / links_.network);
    constexpr double kCalls = 4;
    return (forwards() + 1) * (moved + kCalls * (inside < l_.cp ? links_.latency : links_.hop));
  }
  double expert_exchange() const {
    if (moe_share_ <= 0 || l_.ep <= 1) return 0;
    const double bytes = tokens_ / l_.tp * m_.top_k * m_.hidden * (fp8_ ? 1.5 : 2);
    const double inside = std::clamp(domain_, 1.0, l_.ep);  // expert groups are laid out first inside a domain
    const double direct = bytes * ((inside - 1) / l_.ep / links_.link + (1 - inside / l_.ep) / links_.network) + links_.hop * 2;
    return 4 * direct * k_[kEpExposed];
  }
  double host_layer() const {
    const double pass = job_.stack == SoftwareStack::kMegatronDeepSpeed ? k_[kHostDeepSpeed]
                        : job_.stack == SoftwareStack::kMegatron2020    ? k_[kHostMegatron2020]
                        : job_.stack == SoftwareStack::kFsdp2023 || job_.stack == SoftwareStack::kFsdpCompiled ? k_[kHostFsdp] : k_[kHostCore];
    return pass * (forwards() + 1.3) + k_[kHostCollective] * num_collectives();
  }
  // Of a rank and micro-batch: all its chunks' messages; a V-shaped schedule crosses every boundary twice.
  double handoff_seconds() const {
    if (l_.pp <= 1) return 0;
    const double ranks = l_.tp * l_.cp * (l_.pipeline_inside ? 1 : l_.dp), bytes = message_bytes() / (l_.sequence_parallel ? l_.tp : 1) * 2 * l_.virtual_stages;
    const bool crosses = ranks >= domain_ || ranks * l_.pp > domain_;
    const double once = (k_[old_ ? kHandoffOld : kHandoffModern] + bytes / (crosses ? links_.network : links_.link)) * k_[kPpExposed];
    return l_.schedule == PipelineSchedule::kZeroBubbleV ? 2 * once : once;
  }
  double gradient_reduction(double rank_params, double rank_experts) const {
    if (l_.dp * l_.cp <= 1 || fsdp_) return 0;
    const double bytes_per_param = l_.zero == ZeroStage::kNone ? 4 : 6;
    const double between = l_.pipeline_inside ? l_.pp : 1;  // stages lie between two replicas
    double seconds = ring(links_, domain_, l_.dp * l_.cp, l_.tp * between, rank_params * bytes_per_param);
    if (rank_experts > 0) seconds += ring(links_, domain_, std::max(1.0, l_.dp * l_.cp / l_.ep), l_.tp * l_.ep * between, rank_experts * bytes_per_param);
    return seconds * k_[kDpExposed];
  }
  // Reads and writes of weight, master, two moments and gradient; offloaded, the 12 bytes of state cross to the host and back.
  double optimizer_seconds(double rank_params, double rank_experts) const {
    const double owners = l_.zero == ZeroStage::kNone ? 1 : l_.zero == ZeroStage::kFull ? l_.shard_size : l_.dp * l_.cp;
    const double expert_owners = l_.zero == ZeroStage::kNone ? 1 : std::max(1.0, owners / l_.ep);
    return (rank_params / owners + rank_experts / expert_owners) * (30 / memory_ + (l_.offload_optimizer ? 24 / job_.cluster.host_bytes_per_second : 0));
  }

  const TrainingJob& job_;
  const CostConstants& k_;
  const ModelShape& m_;
  const JobLayout& l_;
  const bool old_, fp8_, fsdp_;
  const double tokens_, q_, kv_, memory_, domain_, moe_share_;
  const Rates rates_;
  Rates bf16_;
  const Links links_;
  const ParameterCount count_;
};

}  // namespace

double idle_share(const JobLayout& layout) {
  if (layout.schedule == PipelineSchedule::kZeroBubbleV) return 0;
  return layout.schedule == PipelineSchedule::kZeroBubbleH1 ? 1.0 / 3 : 1 / layout.virtual_stages;
}

StepCost predict_step(const TrainingJob& job, const CostConstants& constants) { return StepModel(job, constants).cost(); }

double predict_device_watts(const TrainingJob& job, const StepCost& cost) {
  const AcceleratorSpec& device = *job.cluster.device;
  // A device draws most of its limit while products run and a third of the span while it waits for a link or the host.
  constexpr double kBusy = 0.92, kWaiting = 0.35;
  const double busy = cost.seconds > 0 ? std::min(1.0, cost.compute_seconds / cost.seconds) : 0;
  return device.idle_watts + (device.power_watts * job.cluster.power_scale - device.idle_watts) * (kBusy * busy + kWaiting * (1 - busy));
}

}  // namespace orrery
