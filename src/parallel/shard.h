// ZeRO-2 and 3: gradients, and weights, that ranks keep in shards while a step runs; and weights that are offloaded. Here is where units take turns: which slot each has, and
// the gathers and reductions between the compute actions, with what waits for what, op by op. What follows the last backward is data.h's.
// Source  Rajbhandari et al. 2020, "ZeRO", arXiv:1910.02054; Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277. Differs: sums meet in the lane
// tree (NUMERICS rule 4); memory for units in flight is planned, and what waits for it is in the schedule.
#pragma once

#include <vector>

#include "ir/block.h"
#include "ir/parameter_unit.h"
#include "ir/schedule.h"
#include "parallel/data.h"

namespace orrery {

/// Gives the units of a rank their slots. Layers take turns: in two slots for gradients, so that one is reduced while the next is made; in
/// 1 + prefetch for weights, so that as many are gathered ahead. What stands before the layers shares slots with what stands behind them;
/// the weights of a tied matrix stay once they are gathered. `partial_lanes`: a lane takes several micro-batches, over which its sum needs its
/// place, so each unit has its gradients' slot to itself; likewise weights that are not resharded. `offload_weights`: weights have slots without shards.
void assign_slots(const Stage& stage, std::vector<ParameterUnit>& units, const DataParallel& data, bool partial_lanes, bool offload_weights);

/// What the blocks of `stage` do with units that have slots.
UnitUses unit_uses(const Stage& stage, const std::vector<ParameterUnit>& units);

/// Puts AG and RS between the compute actions of a schedule with rounds. AG of a unit comes when its slot is free, before the first op that
/// reads it, and not when it is there still; RS as soon as the last op of a round has added to the unit. Ops that write a slot wait for
/// the reduction of what was in it. The order of the collectives is that in which they can begin, the same on all ranks of a shard group.
/// `gather`: AG, or EP where weights come from what they are offloaded to alone.
///   Bytes a rank sends, n shards and P elements: RS 4 P (n-1)/n a round; AG weight bytes (n-1)/n each time.
void shard_schedule(Schedule& schedule, const UnitUses& uses, int prefetch, ActionKind gather = ActionKind::kAllGatherParameters);

}  // namespace orrery
