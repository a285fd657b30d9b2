// The ops of a step that are not the model's: zeroing row-wise accumulators, meeting gradient buffers, the norm, clipping, update.
#pragma once

#include <vector>

#include "ir/block.h"
#include "parallel/data.h"

namespace orrery {

enum class OptimizerKind : uint8_t { kAdamW, kSgd, kLion };

struct OptimizerBlockOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  DType moment_dtype = DType::kF32;
};

int num_moments(OptimizerKind kind);  // AdamW 2, SGD with momentum 1, Lion 1

/// Fills the phases kZero, kMerge, kNorm and kOptimizer of a stage whose backward is built, for a rank that owns `owned` of each
/// parameter: it makes the squared sums of that part, and updates that part (zero_stage >= 1) or everything. The norm is taken per
/// logical tensor in blocks of 4,096 elements of its rows as the physical parameter stores them, in model order (NUMERICS rule 8).
/// The field kSquaredSums holds all ranks' block sums, then `num_exchanged` more f64 numbers that travel with them.
/// Returns the number of block sums.
int64_t build_optimizer_blocks(Stage& stage, const OptimizerBlockOptions& options, const std::vector<OwnedElements>& owned, int zero_stage, int64_t num_exchanged);

/// Whether some accumulator is written row by row, so that the schedule must zero a buffer before its first use.
bool needs_zeroed_gradients(const Stage& stage);

}  // namespace orrery
