// The ops of a step that are not the model's: zeroing row-wise accumulators, meeting gradient buffers, the norm, clipping, update.
#pragma once

#include "ir/block.h"

namespace orrery {

enum class OptimizerKind : uint8_t { kAdamW, kSgd, kLion };

struct OptimizerBlockOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  DType moment_dtype = DType::kF32;
};

int num_moments(OptimizerKind kind);  // AdamW 2, SGD with momentum 1, Lion 1

/// Fills the phases kZero, kMerge and kOptimizer of a stage whose backward is built. The norm is taken per logical tensor in
/// blocks of 4,096 elements of its rows as the physical parameter stores them, in model order (NUMERICS rule 8).
void build_optimizer_blocks(Stage& stage, const OptimizerBlockOptions& options);

/// Whether some accumulator is written row by row, so that the schedule must zero a buffer before its first use.
bool needs_zeroed_gradients(const Stage& stage);

}  // namespace orrery
