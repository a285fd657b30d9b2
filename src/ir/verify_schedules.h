// Checks the schedules of all ranks together before any of them runs, independently of what made them. Memory inside a rank is
// verify.h's part; here a slot or a gradient buffer is one thing.
#pragma once

#include <string>
#include <vector>

#include "ir/schedule_graph.h"

namespace orrery {

/// What is wrong with the schedules, one sentence each that names rank and action, empty when they verify:
///   - fields in range; every send has one receive of as many bytes and the reverse; the collectives of a group come in the same order
///     with the same bytes on all its ranks;
///   - nothing waits for itself across streams and ranks, whether or not a transport buffers messages;
///   - every stage runs each micro-batch forward once and backward once (B, or I and then W), after the stage before it, or behind it;
///   - a slot is not given to a micro-batch while another still uses it, and all actions of a micro-batch on a stage name one slot;
///   - what reaches OPT are the sums of all sequences of the rank's lanes,
///     in the association that NUMERICS rules 3 and 4 fix, in every part of a stage's gradients (what F, I and W write);
///   - where gradients leave round by round: each RS finds the round's node of the lane tree in the unit's gradients, and nothing writes there
///     before it has ended; the sums that owners keep are joined as the tree does, the same on all ranks of a group, to those of its lanes;
///   - an op that reads gathered weights finds its unit in the slot, from when it starts to when it ends;
///   - where steps carry, all of this over several steps, and that no sum, slot or message of one is taken for another's;
///   - what is offloaded leaves and comes back in time: verify_offload.h;
///   - OPT comes once, last of its rank's compute.
/// Ranks that hold the same stage are replicas: each runs all of its own micro-batches.
std::vector<std::string> verify_schedules(const std::vector<Schedule>& ranks, const ScheduleContext& context);

}  // namespace orrery
