// Time, memory and power of a training job in closed form, in about a microsecond: every product by a shape law, attention,
// memory-bound work, collectives by hierarchy, host time per layer, pipeline fill, optimizer. The constants are few and fitted on
// published runs by bench/fit_cost_model.cpp. Not here: the exact bytes of Orrery's own runs (ir/memory_map.h).
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "planner/training_job.h"

namespace orrery {

/// Effective values: host and library time are folded into them, so they are not microbenchmarks.
enum class Constant : uint8_t {
  kGemmVolta, kGemmAmpere, kGemmHopper, kGemmBlackwell, kGemmCdna, kGemmTpu,  // share of peak that large products approach
  kFp8Hopper, kFp8Blackwell, kFp4,                                            // factor on that share
  kGemmDepth,      // K at which the share is half, on an A100
  kGemmWaves,      // waves of tiles lost per product
  kAttentionAmpere, kAttentionHopper, kAttention2023, kAttentionBlackwell, kAttentionUnfused,
  kElementOld, kElementModern, kElementCompiled,  // bytes per token and hidden element
  kSoftmaxBytes, kReplicatedShare,
  kLinkShare, kNetworkShare,
  kHopOld, kHopModern, kNetworkLatency,  // seconds
  kTpExposedOld, kTpExposedModern, kDpExposed, kPpExposed, kEpExposed, kCpExposed, kFsdpContention,
  kHostDeepSpeed, kHostMegatron2020, kHostCore, kHostFsdp, kHostCollective, kHostMoe,  // seconds a layer and pass
  kHandoffOld, kHandoffModern,                                                         // seconds
  kPermuteBytes, kGroupedSlowdown, kMisaligned, kStepSeconds, kDeterministic,
  kCount
};
inline constexpr size_t kNumConstants = static_cast<size_t>(Constant::kCount);

struct CostConstants {
  std::array<double, kNumConstants> value{};
  double operator[](Constant c) const { return value[static_cast<size_t>(c)]; }
};

/// Name and prior of a constant: the value that physics or a datasheet suggests and how far (natural log) a fit may move it.
struct ConstantPrior {
  std::string_view name;
  double value, log_sigma;
};
const std::array<ConstantPrior, kNumConstants>& constant_priors();

struct StepCost {
  double seconds = 0;
  // Shares that add up to `seconds` only where nothing overlaps; for explanations.
  double compute_seconds = 0, host_seconds = 0, communication_seconds = 0, bubble_seconds = 0, optimizer_seconds = 0;
  double model_flops_per_device = 0;  // without recomputation
  // What the step is made of, for a simulation of the pipeline. Of one rank and micro-batch, forward and backward together: a layer, the
  // head, the embedding, and what messages between stages keep a rank waiting for.
  double layer_seconds = 0, head_seconds = 0, embed_seconds = 0, handoff_seconds = 0;
  double forward_share = 0, weight_share = 0;  // of a layer: the forward pass, and the backward's half that makes gradients of weights
  double tail_seconds = 0;                     // gradient reduction, optimizer and what a step costs by itself
};

/// Pure and without allocation. The job's fields are positive and consistent (check_job).
StepCost predict_step(const TrainingJob& job, const CostConstants& constants);

/// Share of a pipeline's fill in which the schedule leaves a rank idle: with F = W = B/2, H1 a third, a V nothing.
double idle_share(const JobLayout& layout);

/// Bytes on the fullest rank: weights, gradients, optimizer, activations, temporary gathers. Not the allocator's reserve.
struct MemoryCost {
  double weights = 0, gradients = 0, optimizer = 0, activations = 0, temporary = 0;
  double host = 0;  // in host memory, not in total()
  double total() const { return weights + gradients + optimizer + activations + temporary; }
};
MemoryCost predict_memory(const TrainingJob& job);

/// What one rank of a pipeline holds.
struct StageContent {
  double layers = 0, moe_layers = 0;  // of them, those with experts
  double embeddings = 0;              // copies of the vocabulary matrix
  double in_flight = 1;               // micro-batches whose activations it keeps
  bool has_head = false;
};
MemoryCost predict_stage_memory(const TrainingJob& job, const StageContent& content);
/// Micro-batches, of all a rank's layers, whose activations pipeline rank `rank` keeps at the fullest moment.
double micro_batches_in_flight(const JobLayout& layout, double rank);

/// Watts of one device during a step, modelled: idle plus the share of time in which it computes.
double predict_device_watts(const TrainingJob& job, const StepCost& cost);

}  // namespace orrery
