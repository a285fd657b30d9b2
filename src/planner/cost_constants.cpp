// Priors and look-up; the fitted numbers are in cost_constants_data.cpp.
#include "planner/cost_constants.h"

#include <algorithm>

namespace orrery {

const std::array<ConstantPrior, kNumConstants>& constant_priors() {
  // Value and how far a fit may move it. Shares of peak from vendors' library figures, bytes from counting a layer's reads and writes,
  // latencies from library start-up times; wide where a program's host code decides.
  static const std::array<ConstantPrior, kNumConstants> kPriors = {{
      {"gemm_volta", 0.75, 0.15},        {"gemm_ampere", 0.92, 0.08},       {"gemm_hopper", 0.78, 0.08},      {"gemm_blackwell", 0.62, 0.12},
      {"gemm_cdna", 0.60, 0.12},         {"gemm_tpu", 0.75, 0.12},          {"fp8_hopper", 0.85, 0.10},       {"fp8_blackwell", 0.90, 0.12},
      {"fp4", 0.65, 0.15},               {"gemm_depth", 128, 0.3},          {"gemm_waves", 0.7, 0.25},
      {"attention_ampere", 0.45, 0.15},  {"attention_hopper", 0.42, 0.15},  {"attention_2023", 0.25, 0.15},   {"attention_blackwell", 0.48, 0.15},
      {"attention_unfused", 0.50, 0.2},  {"element_old", 34, 0.2},          {"element_modern", 40, 0.2},      {"element_compiled", 28, 0.2},
      {"softmax_bytes", 9, 0.2},         {"replicated_share", 0.40, 0.3},  {"link_share", 0.80, 0.12},
      {"network_share", 0.80, 0.12},     {"hop_old", 30e-6, 0.5},           {"hop_modern", 8e-6, 0.5},        {"network_latency", 40e-6, 0.4},
      {"tp_exposed_old", 0.95, 0.1},     {"tp_exposed_modern", 0.5, 0.25},  {"dp_exposed", 0.5, 0.3},         {"pp_exposed", 0.5, 0.3},
      {"ep_exposed", 0.5, 0.3},          {"cp_exposed", 0.2, 0.4},          {"fsdp_contention", 0.4, 0.3},    {"host_deepspeed", 0.95e-3, 0.25},
      {"host_megatron_2020", 0.7e-3, 0.3}, {"host_core", 0.4e-3, 0.3},      {"host_fsdp", 0.5e-3, 0.3},       {"host_collective", 40e-6, 0.4},
      {"host_moe", 1.5e-3, 0.4},         {"handoff_old", 1.0e-3, 0.4},      {"handoff_modern", 0.2e-3, 0.4},  {"permute_bytes", 8, 0.4},
      {"grouped_slowdown", 1.3, 0.2},    {"misaligned", 0.25, 0.4},         {"step_seconds", 5e-3, 0.5},      {"deterministic", 1.35, 0.15},
  }};
  return kPriors;
}

const CostConstants& default_constants() { return shipped_constants().front().constants; }

namespace {

/// nullptr: no fit has seen it.
const SourceConstants* known_source(std::string_view source) {
  for (const SourceConstants& entry : shipped_constants())
    if (!entry.source.empty() && entry.source == source) return &entry;
  return nullptr;
}

}  // namespace

const CostConstants& frozen_constants(std::string_view source) {
  const SourceConstants* known = known_source(source);
  return known ? known->constants : default_constants();
}

const IntervalFactors& frozen_interval(JobClass kind, std::string_view source) {
  const ClassIntervals& intervals = shipped_intervals(kind);
  return known_source(source) ? intervals.known : intervals.unseen;
}

JobClass classify(const TrainingJob& job) {
  if (job.model.num_experts > 0) return JobClass::kMixture;
  const bool early = job.stack == SoftwareStack::kMegatron2020 || job.stack == SoftwareStack::kMegatronDeepSpeed;
  if (early) return job.model.hidden <= 2048 ? JobClass::kLaunchBound : JobClass::kDenseEarly;
  return job.layout.zero == ZeroStage::kFull || job.stack == SoftwareStack::kFsdp2023 ? JobClass::kShardedDense : JobClass::kDenseModern;
}

std::string_view job_class_name(JobClass kind) {
  switch (kind) {
    case JobClass::kDenseModern: return "dense";
    case JobClass::kDenseEarly: return "dense, early software";
    case JobClass::kShardedDense: return "dense, fully sharded";
    case JobClass::kLaunchBound: return "launch-bound";
    case JobClass::kMixture: return "mixture of experts";
    case JobClass::kCount: break;
  }
  return "?";
}

}  // namespace orrery
