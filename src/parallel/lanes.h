// One rank's schedule with gradient accumulation over lanes: which micro-batch writes which gradient buffer, and how partial sums
// meet, so that the result is the same bits for every micro-batch size (NUMERICS rules 3 and 4).
#pragma once

#include <cstdint>

#include "ir/schedule.h"

namespace orrery {

struct LaneSchedule {
  int64_t global_batch_size = 1;  // sequences
  int64_t lanes = 1;              // power of two, divides global_batch_size
  int64_t micro_batch_size = 1;   // sequences; a micro-batch never holds part of two lanes, so the last of a lane may be short
};

/// F0 B0 F1 B1 ... with merges of gradient buffers as a binary counter over the lane index asks for, then OPT.
/// A micro-batch of at least one lane holds 2^k whole lanes, the largest power that fits; a smaller one holds part of a lane.
/// Gradient buffers used: holding L lanes with micro-batches of l whole lanes max(1, log2(L / l)); smaller than a lane log2(L) + 1.
/// `needs_zero`: some accumulators are written row by row (embedding), so a Z action precedes each first use of a buffer.
/// Errors: kInvalidConfig when lanes is not a power of two or does not divide the batch.
Schedule lane_schedule(const LaneSchedule& options, bool needs_zero);

}  // namespace orrery
