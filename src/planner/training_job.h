// One training job as the closed-form cost model sees it: the shape of a model, the layout, and the devices with their links.
// Plain numbers, no tensor and no plan; planner/cost_model.h prices it, planner/search.h makes many of them.
#pragma once

#include <cstdint>
#include <string_view>

#include "ir/parallel_context.h"
#include "topology/device_catalogue.h"

namespace orrery {

struct ModelShape {
  double num_layers = 0, hidden = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0, ffn_hidden = 0, vocab = 0, seq_len = 0;
  bool gated = false;           // SwiGLU and its kin: three matrices
  bool tied_head = false;
  double num_experts = 0, top_k = 0, expert_ffn = 0, shared_ffn = 0, dense_layers = 0;  // num_experts 0: dense
  double q_lora = 0, kv_lora = 0, rope_dim = 0;  // multi-head latent attention; kv_lora 0: none
  double window_layers = 0, window = 0;          // share of layers with a sliding window, and its tokens
};

/// Elements of one layer's attention, of a dense feed-forward, of the experts of a layer, of embedding and head together.
struct ParameterCount {
  double attention = 0, dense_ffn = 0, experts = 0, shared = 0, embedding = 0;
  double total = 0, active = 0;
};
ParameterCount count_parameters(const ModelShape& model);

/// Which program runs the job; eras differ in kernels (attention fused or not) and in host time per layer.
enum class SoftwareStack : uint8_t { kMegatron2020, kMegatronDeepSpeed, kMegatronCore, kFsdp2023, kFsdpCompiled, kDeterministic };
constexpr bool has_unfused_attention(SoftwareStack stack) { return stack == SoftwareStack::kMegatron2020 || stack == SoftwareStack::kMegatronDeepSpeed; }
enum class NumberFormat : uint8_t { kBf16, kFp8, kFp8Blocks, kFp4 };  // kFp8Blocks: a scale per 32 (MX)
enum class RecomputeKind : uint8_t { kNone, kSelective, kFull };
enum class ZeroStage : uint8_t { kNone, kOptimizer, kGradients, kFull };

/// Pipeline schedules by what they leave idle and keep alive (shared formulas: Narayanan et al. 2021; Qi et al. 2023, 2024).
enum class PipelineSchedule : uint8_t { kOneForwardOneBackward, kGpipe, kInterleaved, kZeroBubbleH1, kZeroBubbleV };
std::string_view pipeline_schedule_name(PipelineSchedule schedule);

struct JobLayout {
  double tp = 1, cp = 1, pp = 1, virtual_stages = 1, dp = 1, ep = 1;
  double micro_batch = 1, num_micro_batches = 1;
  bool sequence_parallel = false;
  ContextMethod context_method = ContextMethod::kRing;
  ZeroStage zero = ZeroStage::kNone;
  double shard_size = 1;  // ranks that ZeRO-3 shards over
  RecomputeKind recompute = RecomputeKind::kNone;
  PipelineSchedule schedule = PipelineSchedule::kOneForwardOneBackward;
  bool offload_optimizer = false;  // moments and master weights in host memory
  // Where ranks lie, the nearest first: tensor, context, data, pipeline; or, when a pipeline's ranks fit into one domain, tensor, context,
  // pipeline, data: messages between stages then stay inside and gradients go out.
  bool pipeline_inside = false;
  double stage_layers = 0;         // of a rank of a pipeline whose stages differ (mixed_pipeline.h); 0: num_layers / pp
};

/// The links as a hierarchy of two: inside a domain (NVLink, Infinity Fabric, a host's PCIe) and between domains.
struct JobCluster {
  const AcceleratorSpec* device = nullptr;
  double num_devices = 1, domain_size = 8;  // devices joined by the fast link
  double link_bytes_per_second = 0;         // per device, one direction
  double network_bytes_per_second = 0;      // per device, one direction; devices of a group on one node add up
  double host_bytes_per_second = 25e9;      // per device, to host memory
  double power_scale = 1;                   // board power over the usual one of its kind
};

struct TrainingJob {
  ModelShape model;
  JobLayout layout;
  JobCluster cluster;
  SoftwareStack stack = SoftwareStack::kMegatronCore;
  NumberFormat format = NumberFormat::kBf16;
  bool compiled_loss = false;  // the loss in few kernels, without f32 copies of the logits
  double gradient_bytes = 4;  // of a parameter where gradients are not sharded with weights: an f32 accumulator, or that beside a bf16 one
  double lanes = 1;  // of a run of this program: the sums of a step's gradients that are formed apart (NUMERICS rule 3); 1: all into one
};

/// Whether attention moves every score through memory. Megatron-core's deterministic mode has no fused kernel for latent attention.
inline bool has_unfused_attention(const TrainingJob& job) { return has_unfused_attention(job.stack) || (job.stack == SoftwareStack::kDeterministic && job.model.kv_lora > 0); }

}  // namespace orrery
