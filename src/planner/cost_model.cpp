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

bool old_stack(SoftwareStack stack) { return stack == SoftwareStack::kMegatron2020 || stack == SoftwareStack::kMegatronDeepSpeed; }

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

struct Pair {
  double forward = 0, backward = 0;
};
/// A linear layer: forward, gradient of the input, gradient of the weight.
Pair linear(const Rates& rates, double tokens, double out, double in) {
  return {product(rates, tokens, out, in), product(rates, tokens, in, out) + product(rates, out, in, tokens)};
}
void add(Pair& sum, Pair part, double scale = 1) {
  sum.forward += scale * part.forward;
  sum.backward += scale * part.backward;
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
  const double factor = k[hopper ? kFp8Hopper : kFp8Blackwell] * (format == NumberFormat::kFp8Blocks ? k[kFp8Blocks] : 1);
  return device.fp8_flops * share * factor;
}

double attention_flops(const TrainingJob& job, const CostConstants& k) {
  double share = k[kAttentionAmpere];
  const DeviceGeneration generation = job.cluster.device->generation;
  if (old_stack(job.stack)) share = k[kAttentionUnfused];
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

StepCost predict_step(const TrainingJob& job, const CostConstants& k, const CalibrationFactors& factors) {
  const ModelShape& m = job.model;
  const JobLayout& l = job.layout;
  const AcceleratorSpec& device = *job.cluster.device;
  const bool old = old_stack(job.stack), fp8 = job.format != NumberFormat::kBf16;
  const bool fsdp = l.zero == ZeroStage::kFull && l.dp > 1;
  const double t = l.tp, h = m.hidden, tokens = l.micro_batch * m.seq_len / l.cp;
  const double memory = device.memory_bytes_per_second / factors.memory;

  Rates rates{product_flops(job, k, job.format) / factors.compute, static_cast<double>(device.num_units), k[kGemmDepth], k[kGemmWaves], memory};
  Rates bf16 = rates;
  bf16.product_flops = product_flops(job, k, NumberFormat::kBf16) / factors.compute;

  // --- one layer of one micro-batch: attention part, dense feed-forward, mixture ---
  const double q = m.num_heads * m.head_dim, kv = m.num_kv_heads * m.head_dim;
  Pair attention;
  if (m.kv_lora > 0) {
    const double q_width = m.num_heads * (m.head_dim + m.rope_dim);
    if (m.q_lora > 0) add(attention, linear(rates, tokens, m.q_lora, h)), add(attention, linear(rates, tokens, q_width / t, m.q_lora));
    else add(attention, linear(rates, tokens, q_width / t, h));
    add(attention, linear(rates, tokens, m.kv_lora + m.rope_dim, h));
    add(attention, linear(rates, tokens, 2 * q / t, m.kv_lora));
  } else {
    add(attention, linear(rates, tokens, (q + 2 * std::max(kv, t * m.head_dim)) / t, h));
  }
  add(attention, linear(rates, tokens, h, q / t));
  // Scores and values: 4 T s per head element. A fused kernel skips the masked half; an unfused one moves every score through memory.
  const double window_share = m.window > 0 ? m.window_layers * std::min(1.0, 2 * m.window / m.seq_len) + (1 - m.window_layers) : 1;
  const double score_dim = m.kv_lora > 0 ? m.head_dim + m.rope_dim / 2 : m.head_dim;
  const double score_flops = 4 * tokens * m.seq_len * m.num_heads * score_dim / t;
  double score_forward, score_backward;
  if (old) {
    const double bytes = k[kSoftmaxBytes] * tokens * m.seq_len * m.num_heads / t;
    score_forward = score_flops / attention_flops(job, k) * factors.compute + bytes / memory;
    score_backward = 2 * score_forward;
  } else {
    score_forward = score_flops / 2 * window_share / attention_flops(job, k) * factors.compute;
    score_backward = kFlashBackward * score_forward;
  }
  if (std::fmod(m.head_dim, 8) != 0) score_forward *= 1 + 4 * k[kMisaligned], score_backward *= 1 + 4 * k[kMisaligned];
  if (std::fmod(h / t, 64) != 0 && m.num_experts == 0) attention.forward *= 1 + k[kMisaligned], attention.backward *= 1 + k[kMisaligned];

  const double element_width = k[job.stack == SoftwareStack::kFsdpCompiled ? kElementCompiled : old ? kElementOld : kElementModern] * (fp8 ? 1 + k[kCastShare] : 1);
  // Without sequence parallelism a share of the element-wise work (norms, dropout, residuals) is the same on every tensor rank.
  const double split = l.sequence_parallel || t == 1 ? 1 / t : k[kReplicatedShare] + (1 - k[kReplicatedShare]) / t;
  const double active_ffn = m.num_experts > 0 ? m.expert_ffn * m.top_k + m.shared_ffn : m.ffn_hidden;
  const double element_attention = element_width * tokens * h * split / memory;
  const double element_ffn = element_width * tokens * active_ffn / 4 * split / memory;

  const double up = m.gated ? 2 : 1;
  auto feed_forward = [&](double width) {
    Pair pair;
    add(pair, linear(rates, tokens, up * width / t, h));
    add(pair, linear(rates, tokens, h, width / t));
    if (std::fmod(width / t, 64) != 0) pair.forward *= 1 + k[kMisaligned], pair.backward *= 1 + k[kMisaligned];
    return pair;
  };
  Pair dense, mixture;
  const double moe_layers = m.num_experts > 0 ? m.num_layers - m.dense_layers : 0;
  if (moe_layers < m.num_layers) dense = feed_forward(m.ffn_hidden);
  double permute = 0;
  if (moe_layers > 0) {
    const double local_experts = std::max(1.0, m.num_experts / l.ep);
    const double rows = std::max(1.0, tokens * m.top_k / local_experts / t * (l.ep > 1 ? 1 : t) * (l.ep >= m.num_experts ? 1 : 1));
    // The products of one expert, one after the other: few rows each, and its weights are read whatever the rows.
    Pair expert;
    add(expert, linear(rates, rows, up * m.expert_ffn, h));
    add(expert, linear(rates, rows, h, m.expert_ffn));
    add(mixture, expert, local_experts * k[kGroupedSlowdown] / std::max(1.0, l.ep > 1 ? 1.0 : t));
    if (m.shared_ffn > 0) add(mixture, feed_forward(m.shared_ffn));
    add(mixture, linear(bf16, tokens / t, m.num_experts, h));
    permute = k[kPermuteBytes] * tokens / t * m.top_k * h * 2 / memory;
  }

  // --- collectives of one layer ---
  Links links{job.cluster.link_bytes_per_second * k[kLinkShare] / factors.communication, job.cluster.network_bytes_per_second * k[kNetworkShare] / factors.communication,
              k[old ? kHopOld : kHopModern] * factors.communication, k[kNetworkLatency] * factors.communication};
  const double domain = job.cluster.domain_size;
  const double message = tokens * h * 2;
  const double tp_collective = ring(links, domain, t, 1, 2 * message) * k[l.sequence_parallel ? kTpExposedModern : kTpExposedOld];
  double cp_layer = 0;
  if (l.cp > 1) {
    const double kv_bytes = m.seq_len * l.micro_batch * 2 * (m.kv_lora > 0 ? q : kv) / t * 2;
    cp_layer = 3 * ring(links, domain, l.cp, t, kv_bytes) * k[kCpExposed];
  }
  double ep_layer = 0;
  if (moe_layers > 0 && l.ep > 1) {
    const double bytes = tokens / t * m.top_k * h * (fp8 ? 1.5 : 2);
    const double inside = std::clamp(domain, 1.0, l.ep);  // expert groups are laid out first inside a domain
    const double direct = bytes * ((inside - 1) / l.ep / links.link + (1 - inside / l.ep) / links.network) + links.hop * 2;
    ep_layer = 4 * direct * k[kEpExposed];
  }

  // --- layer times, forward and backward with what is computed again ---
  const bool full = l.recompute == RecomputeKind::kFull;
  const double forwards = full ? 2 : 1;
  auto device_seconds = [&](const Pair& feed, double extra_element) {
    const double forward = attention.forward + score_forward + feed.forward + element_attention + element_ffn + extra_element;
    const double backward = attention.backward + score_backward + feed.backward + kBackwardElement * (element_attention + element_ffn + extra_element);
    double again = 0;
    if (full) again = forward;
    if (l.recompute == RecomputeKind::kSelective) again = job.stack == SoftwareStack::kFsdpCompiled ? 0.5 * (attention.forward + feed.forward) : old || job.stack == SoftwareStack::kMegatron2020 ? score_forward : 0;
    return forward + backward + again;
  };
  const double host_layer = job.stack == SoftwareStack::kMegatronDeepSpeed ? k[kHostDeepSpeed]
                            : job.stack == SoftwareStack::kMegatron2020    ? k[kHostMegatron2020]
                            : job.stack == SoftwareStack::kFsdp2023 || job.stack == SoftwareStack::kFsdpCompiled ? k[kHostFsdp] : k[kHostCore];
  const double collectives = t > 1 ? 2 * forwards + 2 : 0;
  const double host = (host_layer * (forwards + 1.3) + k[kHostCollective] * collectives) * factors.launch;
  const double tp_layer = collectives * tp_collective;
  const double dense_device = device_seconds(dense, 0), mixture_device = moe_layers > 0 ? device_seconds(mixture, permute) : 0;
  const double dense_layer = soft_max(dense_device + tp_layer + cp_layer, host);
  const double mixture_layer = moe_layers > 0 ? soft_max(mixture_device + tp_layer + cp_layer + ep_layer, host + k[kHostMoe] * (forwards + 1) * factors.launch) : 0;

  // --- parameters per rank ---
  const ParameterCount count = count_parameters(m);
  const double layers_per_stage = m.num_layers / l.pp, slow_layers = std::ceil(layers_per_stage - 1e-9);
  const double moe_share = moe_layers / m.num_layers;
  double layer = dense_layer * (1 - moe_share) + mixture_layer * moe_share;
  const double layer_params = (count.attention + (1 - moe_share) * count.dense_ffn + moe_share * count.shared) / t;
  const double expert_params = moe_share * count.experts / l.ep / (l.ep > 1 ? 1 : t);
  const double embedding_params = count.embedding / t / (l.pp > 1 ? 2 : 1);

  // FSDP gathers a layer's weights forward and backward and scatters its gradients, beside the computing.
  double gather = 0;
  if (fsdp) {
    gather = ring(links, domain, l.shard_size, t * l.cp, layer_params * 6) + ring(links, domain, std::max(1.0, l.shard_size / l.ep), t * l.cp * l.ep, expert_params * 6);
    layer = soft_max(layer + k[kFsdpContention] * gather, gather);
  }

  // --- the head on the last stage, embedding on the first ---
  Pair head = linear(bf16, tokens, m.vocab / t, h);
  const double head_seconds = head.forward + head.backward + 14 * tokens * m.vocab / t / memory;
  const double embed_seconds = 6 * tokens * h * 2 / memory / (l.sequence_parallel ? t : 1);

  // --- pipeline ---
  const double stage_mean = layer * layers_per_stage + (head_seconds + embed_seconds) / l.pp;
  double stage_slow = layer * slow_layers + (l.pp == 1 ? head_seconds + embed_seconds : 0);
  if (l.pp > 1) {
    // An uneven split gives the last stage fewer layers, which then holds the head.
    const double last_layers = std::max(0.0, m.num_layers - slow_layers * (l.pp - 1));
    stage_slow = std::max(stage_slow, layer * (last_layers > 0 ? last_layers : layers_per_stage) + head_seconds);
  }
  double handoff = 0;
  if (l.pp > 1) {
    const double bytes = message / (l.sequence_parallel ? t : 1) * 2 * l.virtual_stages;
    const bool crosses = t * l.cp * l.dp >= domain || t * l.cp * l.pp * l.dp > domain;
    handoff = (k[old ? kHandoffOld : kHandoffModern] * (factors.launch) + bytes / (crosses ? links.network : links.link)) * k[kPpExposed];
  }
  // A V-shaped schedule crosses every boundary twice; with F = W = B/2, H1 leaves a third of the fill idle and V none of it.
  const bool v_shape = l.schedule == PipelineSchedule::kZeroBubbleV;
  if (v_shape) handoff *= 2;
  const double idle_share = v_shape ? 0 : l.schedule == PipelineSchedule::kZeroBubbleH1 ? 1.0 / 3 : 1 / l.virtual_stages;
  const double steady = l.num_micro_batches * (stage_slow + handoff);
  const double fill = (l.pp - 1) * idle_share * (stage_mean + handoff);

  // --- gradients and optimizer ---
  const double rank_params = layers_per_stage * layer_params + embedding_params, rank_experts = layers_per_stage * expert_params;
  double reduce = 0;
  if (l.dp * l.cp > 1 && !fsdp) {
    const double bytes_per_param = l.zero == ZeroStage::kNone ? 4 : 6;
    reduce = ring(links, domain, l.dp * l.cp, t, rank_params * bytes_per_param);
    if (rank_experts > 0) reduce += ring(links, domain, std::max(1.0, l.dp * l.cp / l.ep), t * l.ep, rank_experts * bytes_per_param);
    reduce *= k[kDpExposed];
  }
  const double owners = l.zero == ZeroStage::kNone ? 1 : l.zero == ZeroStage::kFull ? l.shard_size : l.dp * l.cp;
  const double expert_owners = l.zero == ZeroStage::kNone ? 1 : std::max(1.0, owners / l.ep);
  // Reads and writes of weight, master, two moments and gradient; offloaded, the 12 bytes of state cross to the host and back.
  const double optimizer = (rank_params / owners + rank_experts / expert_owners) * (30 / memory + (l.offload_optimizer ? 24 / job.cluster.host_bytes_per_second : 0));

  StepCost cost;
  const double nodes = std::max(1.0, job.cluster.num_devices / std::min(domain, 8.0));
  double scale = factors.overall * (1 + k[kJitter] * std::log2(nodes));
  if (job.stack == SoftwareStack::kDeterministic) scale *= k[kDeterministic];
  cost.seconds = (steady + fill + reduce + optimizer + k[kStepSeconds] * factors.launch) * scale;
  const double layer_count = l.num_micro_batches * layers_per_stage;
  cost.compute_seconds = layer_count * (dense_device * (1 - moe_share) + mixture_device * moe_share) + l.num_micro_batches * (head_seconds + embed_seconds) / l.pp;
  cost.host_seconds = layer_count * host;
  cost.communication_seconds = layer_count * (tp_layer + cp_layer + moe_share * ep_layer + gather) + reduce + l.num_micro_batches * handoff;
  cost.steady_seconds = steady * scale, cost.bubble_seconds = fill * scale;
  cost.optimizer_seconds = optimizer;
  const double rank_tokens = l.num_micro_batches * tokens;
  cost.model_flops_per_device = rank_tokens * (6 * (count.active - (m.tied_head ? 0 : count.embedding / 2)) + 6 * m.num_layers * m.seq_len * m.num_heads * score_dim) / t / l.pp;
  return cost;
}

MemoryCost predict_memory(const TrainingJob& job) {
  const ModelShape& m = job.model;
  const JobLayout& l = job.layout;
  const ParameterCount count = count_parameters(m);
  const bool old = old_stack(job.stack);
  const double t = l.tp, tokens = l.micro_batch * m.seq_len / l.cp, h = m.hidden;
  const double moe_layers = m.num_experts > 0 ? m.num_layers - m.dense_layers : 0;
  const double per_stage = std::ceil(m.num_layers / l.pp - 1e-9), moe_share = m.num_layers > 0 ? moe_layers / m.num_layers : 0;
  const double layer_params = (count.attention + (1 - moe_share) * count.dense_ffn + moe_share * count.shared) / t;
  const double one_embedding = m.vocab * h / t;

  // The bytes of a stage with `embeddings` copies of the vocabulary matrix and `in_flight` micro-batches.
  auto stage = [&](double layers, double moe_in_stage, double embeddings, double in_flight, bool has_head) {
    MemoryCost cost;
    const double dense = layers * layer_params + embeddings * one_embedding;
    const double experts = moe_in_stage * count.experts / l.ep / (l.ep > 1 ? 1 : t);
    const double replicas = std::max(1.0, l.dp * l.cp), expert_replicas = std::max(1.0, replicas / l.ep);
    auto add_states = [&](double params, double ranks) {
      const bool sharded = l.zero == ZeroStage::kFull;
      const double shard = sharded ? std::max(1.0, std::min(l.shard_size, ranks)) : 1;
      if (sharded) {
        cost.weights += 4 * params / shard, cost.gradients += 4 * params / shard, cost.optimizer += 8 * params / shard;
      } else {
        cost.weights += 2 * params;
        cost.gradients += job.gradient_bytes * params / (l.zero == ZeroStage::kGradients ? ranks : 1);
        cost.optimizer += 12 * params / (l.zero == ZeroStage::kNone ? 1 : ranks);
      }
    };
    add_states(dense, replicas);
    add_states(experts, expert_replicas);
    if (l.offload_optimizer) cost.host = cost.optimizer, cost.optimizer = 0;
    // Bytes saved per token and layer (Korthikanti et al. 2022, table 2; with fused attention the scores are not kept).
    const double kv_share = (m.num_kv_heads > 0 ? m.num_kv_heads / m.num_heads : 1), q_share = m.num_heads * m.head_dim / h;
    double split_part, shared_part;
    if (old) {
      split_part = h * (8 + 4 * m.ffn_hidden / h + 8) + 5 * m.num_heads * m.seq_len;
      shared_part = 10 * h;
    } else {
      const double ffn = m.num_experts > 0 ? moe_share * (m.expert_ffn * m.top_k + m.shared_ffn) + (1 - moe_share) * m.ffn_hidden : m.ffn_hidden;
      const double ffn_bytes = (m.gated ? 6 : 4) * ffn;
      split_part = h * (4 * q_share + 4 * q_share * kv_share) + ffn_bytes + (m.num_experts > 0 ? moe_share * m.top_k * 4 * h : 0);
      if (m.kv_lora > 0) split_part += 2 * (m.q_lora + m.kv_lora) + 4 * m.num_heads * m.rope_dim;
      shared_part = 8 * h;
    }
    double layer_bytes = tokens * (split_part / t + shared_part / (l.sequence_parallel ? t : 1));
    double working = 0;
    if (l.recompute == RecomputeKind::kFull) {
      working = layer_bytes;
      layer_bytes = tokens * 2 * h / (l.sequence_parallel ? t : 1);
    } else if (l.recompute == RecomputeKind::kSelective) {
      if (old) layer_bytes -= tokens * 5 * m.num_heads * m.seq_len / t;
      else if (job.stack == SoftwareStack::kFsdpCompiled) layer_bytes *= 0.36;  // products and attention are kept, what lies between is made again
    }
    cost.activations = in_flight * layers * layer_bytes + working;
    // Logits and their gradient; PyTorch's own loss holds an f32 copy, its softmax and its gradient beside the bf16 logits.
    const bool own_loss = job.stack == SoftwareStack::kFsdpCompiled || job.stack == SoftwareStack::kFsdp2023;
    if (has_head) cost.temporary += tokens * m.vocab / t * (own_loss ? 14 : old ? 8 : 6);
    if (l.zero == ZeroStage::kFull && l.dp > 1) cost.temporary += 2 * 2 * std::max(layer_params + moe_share * count.experts / l.ep, one_embedding);
    return cost;
  };
  const double moe_in_stage = std::min(per_stage, std::ceil(moe_layers / l.pp - 1e-9));
  if (l.pp == 1) return stage(m.num_layers, moe_layers, m.tied_head ? 1 : 2, 1, true);
  const double in_flight = l.schedule == PipelineSchedule::kGpipe ? l.num_micro_batches : std::min(l.num_micro_batches, l.pp) * (l.virtual_stages > 1 ? 1 + (l.pp - 1) / (l.pp * l.virtual_stages) : 1);
  // A V puts the first and the last stage on rank 0: embedding, head and logits.
  const bool v_shape = l.schedule == PipelineSchedule::kZeroBubbleV;
  const MemoryCost first = stage(per_stage, std::min(moe_in_stage, std::max(0.0, per_stage - m.dense_layers)), v_shape && !m.tied_head ? 2 : 1, in_flight, v_shape);
  const double last_layers = m.num_layers - per_stage * (l.pp - 1) > 0 ? m.num_layers - per_stage * (l.pp - 1) : per_stage;
  const MemoryCost last = stage(last_layers, std::min(moe_in_stage, last_layers), 1, 1, true);
  return first.total() >= last.total() ? first : last;
}

double predict_device_watts(const TrainingJob& job, const StepCost& cost) {
  const AcceleratorSpec& device = *job.cluster.device;
  // A device draws most of its limit while products run and a third of the span while it waits for a link or the host.
  constexpr double kBusy = 0.92, kWaiting = 0.35;
  const double busy = cost.seconds > 0 ? std::min(1.0, cost.compute_seconds / cost.seconds) : 0;
  return device.idle_watts + (device.power_watts * job.cluster.power_scale - device.idle_watts) * (kBusy * busy + kWaiting * (1 - busy));
}

}  // namespace orrery
