// Copies between the arena and what is slower and larger, as actions of the copy stream.
// Source  Rajbhandari et al. 2021, "ZeRO-Infinity", arXiv:2104.07857, section 5.2. Differs: pieces cross no rank, and planned slots take turns.
#pragma once

#include <cstdint>
#include <vector>

#include "ir/block.h"
#include "ir/offload.h"
#include "ir/schedule.h"

namespace orrery {

/// Puts the copies of the state's pieces beside OPT: EU brings a piece, as early as its slot is free, OU takes it back once it is updated, and OPT
/// waits for a piece before the first op that needs it. The first pieces wait for nothing in the step: they come while it computes.
///   Bytes  every piece is read once a step and written once.
void offload_state(Schedule& schedule, const StateOffload& offload);

/// What of each layer leaves between forward and backward: what both touch, the ends of the chunk excepted, which travel. The last layers of a
/// chunk stay, for their backward comes at once. A copy away has the time of the next layer's forward; one back begins with the backward of the layer
/// behind it. `file_begin`: where the first group lies.
std::vector<ActivationGroup> activation_groups(const Stage& stage, const Schedule& schedule, int64_t file_begin);

/// Puts OF of each group behind its forward and EF behind its backward, in whose middles they run and are waited for.
///   Bytes  every group is written once a micro-batch and read once.
void offload_activations(Schedule& schedule, const std::vector<ActivationGroup>& groups);

}  // namespace orrery
