// Bytes of a training job in closed form: what a stage of its pipeline holds, and the fullest rank.
#include <algorithm>
#include <cmath>

#include "planner/cost_model.h"

namespace orrery {

constexpr double kCoreLogitBytes = 10;

// Accumulators of a parameter's gradient that a rank has at the same time, of its lanes and their partial sums: the peak of a binary counter
// (parallel/lanes.h). Shards are summed as they come.
static double gradient_buffers(const TrainingJob& job) {
  const JobLayout& l = job.layout;
  if (job.lanes <= 1 || l.zero == ZeroStage::kGradients || l.zero == ZeroStage::kFull) return 1;
  const double of_rank = std::ceil(std::max(1.0, job.lanes / l.dp));
  return l.num_micro_batches > of_rank ? std::floor(std::log2(of_rank)) + 1 : std::max(1.0, std::floor(std::log2(l.num_micro_batches)));
}

MemoryCost predict_stage_memory(const TrainingJob& job, const StageContent& content) {
  const ModelShape& m = job.model;
  const JobLayout& l = job.layout;
  const ParameterCount count = count_parameters(m);
  const bool old = has_unfused_attention(job.stack);
  const double t = l.tp, tokens = l.micro_batch * m.seq_len / l.cp, h = m.hidden;
  const double moe_layers = m.num_experts > 0 ? m.num_layers - m.dense_layers : 0;
  const double moe_share = m.num_layers > 0 ? moe_layers / m.num_layers : 0;
  const double layer_params = (count.attention + (1 - moe_share) * count.dense_ffn + moe_share * count.shared) / t;
  const double one_embedding = m.vocab * h / t;

  MemoryCost cost;
  const double dense = content.layers * layer_params + content.embeddings * one_embedding;
  const double experts = content.moe_layers * count.experts / l.ep / (l.ep > 1 ? 1 : t);
  const double replicas = std::max(1.0, l.dp * l.cp), expert_replicas = std::max(1.0, replicas / l.ep);
  auto add_states = [&](double params, double ranks) {
    const bool sharded = l.zero == ZeroStage::kFull;
    const double shard = sharded ? std::max(1.0, std::min(l.shard_size, ranks)) : 1;
    if (sharded) {
      cost.weights += 4 * params / shard, cost.gradients += 4 * params / shard, cost.optimizer += 8 * params / shard;
    } else {
      cost.weights += 2 * params;
      cost.gradients += gradient_buffers(job) * job.gradient_bytes * params / (l.zero == ZeroStage::kGradients ? ranks : 1);
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
    if (has_unfused_attention(job)) split_part += 2 * m.num_heads * m.seq_len;
    if (m.kv_lora > 0) split_part += 2 * (m.q_lora + m.kv_lora) + 4 * m.num_heads * m.rope_dim;
    shared_part = 8 * h;
    if (job.stack == SoftwareStack::kDeterministic && !m.gated) shared_part += 2 * h;  // Megatron's default dropout after both halves: masks of a byte
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
  cost.activations = content.in_flight * content.layers * layer_bytes + working;
  // bf16 logits beside what the loss holds: PyTorch's an f32 copy, its softmax and its gradient; Megatron-core's a softmax and a
  // gradient in f32, unless they are fused; compiled, little more than the gradient.
  const bool own_loss = job.stack == SoftwareStack::kFsdpCompiled || job.stack == SoftwareStack::kFsdp2023;
  if (content.has_head) cost.temporary += tokens * m.vocab / t * (job.compiled_loss ? 7 : own_loss ? 14 : old ? 8 : kCoreLogitBytes);
  if (l.zero == ZeroStage::kFull && l.dp > 1) cost.temporary += 2 * 2 * std::max(layer_params + moe_share * count.experts / l.ep, one_embedding);
  return cost;
}

double micro_batches_in_flight(const JobLayout& l, double rank) {
  switch (l.schedule) {
    case PipelineSchedule::kGpipe: return l.num_micro_batches;
    case PipelineSchedule::kInterleaved:
    case PipelineSchedule::kOneForwardOneBackward:
      // Chunks' forwards of the warm-up and the one that follows: (p - r - 1) twice and a round of p for each chunk but the last.
      if (l.virtual_stages > 1) return std::min(l.num_micro_batches, l.pp) * (1 + (l.pp - 1 - 2 * rank) / (l.pp * l.virtual_stages));
      return std::min(l.num_micro_batches, l.pp - rank);
    // All ranks keep as many as 1F1B's first does (Qi et al. 2023, 2024).
    case PipelineSchedule::kZeroBubbleH1:
    case PipelineSchedule::kZeroBubbleV: break;
  }
  return std::min(l.num_micro_batches, l.pp);
}

MemoryCost predict_memory(const TrainingJob& job) {
  const ModelShape& m = job.model;
  const JobLayout& l = job.layout;
  const double moe_layers = m.num_experts > 0 ? m.num_layers - m.dense_layers : 0;
  const double per_stage = std::ceil(m.num_layers / l.pp - 1e-9), moe_in_stage = std::min(per_stage, std::ceil(moe_layers / l.pp - 1e-9));
  if (l.pp == 1) return predict_stage_memory(job, {.layers = m.num_layers, .moe_layers = moe_layers, .embeddings = m.tied_head ? 1.0 : 2.0, .in_flight = 1, .has_head = true});
  // A V puts the first and the last stage on rank 0: embedding, head and logits.
  const bool v_shape = l.schedule == PipelineSchedule::kZeroBubbleV;
  const MemoryCost first = predict_stage_memory(job, {.layers = per_stage,
                                                      .moe_layers = std::min(moe_in_stage, std::max(0.0, per_stage - m.dense_layers)),
                                                      .embeddings = v_shape && !m.tied_head ? 2.0 : 1.0,
                                                      .in_flight = micro_batches_in_flight(l, 0),
                                                      .has_head = v_shape});
  const double last_layers = m.num_layers - per_stage * (l.pp - 1) > 0 ? m.num_layers - per_stage * (l.pp - 1) : per_stage;
  const MemoryCost last = predict_stage_memory(job, {.layers = last_layers, .moe_layers = std::min(moe_in_stage, last_layers), .embeddings = 1, .in_flight = 1, .has_head = true});
  return first.total() >= last.total() ? first : last;
}

}  // namespace orrery
