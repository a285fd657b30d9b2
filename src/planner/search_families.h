// The families of layouts that "why not" tells apart: what a search notes the best of while it goes, and says afterwards.
#pragma once

#include <array>
#include <string_view>

#include "planner/search.h"

namespace orrery {

// What stands in "why not", and in this order.
enum : size_t { kZero, kPipeline = 4, kPipelineInside, kMixedPipeline, kMixedReplicas, kNoPipeline, kNoTensor, kTensorInside, kTensorAcross, kContext, kExpert, kRecompute, kNoRecompute, kOffload, kSchedule, kNumFamilies = kSchedule + 5 };
extern const std::array<std::string_view, kNumFamilies> kFamilyNames;

/// Calls use(id) for each family that the candidate belongs to.
template <typename Use>
void for_families(const Candidate& c, Use use) {
  const JobLayout& l = c.job.layout;
  use(kZero + static_cast<size_t>(l.zero));
  use(l.pp > 1 ? kPipeline : kNoPipeline);
  if (l.pipeline_inside) use(kPipelineInside);
  if (c.parts.size() > 1) use(c.is_mixed_pipeline() ? kMixedPipeline : kMixedReplicas);
  use(l.tp == 1 ? kNoTensor : l.tp <= c.job.cluster.domain_size ? kTensorInside : kTensorAcross);
  if (l.cp > 1) use(kContext);
  if (l.ep > 1) use(kExpert);
  if (l.recompute == RecomputeKind::kFull) use(kRecompute);
  if (l.recompute == RecomputeKind::kNone) use(kNoRecompute);
  if (l.offload_optimizer) use(kOffload);
  if (l.pp > 1) use(kSchedule + static_cast<size_t>(l.schedule));
}

}  // namespace orrery
