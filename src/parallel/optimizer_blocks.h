// The ops of a step that are not the model's: zeroing row-wise accumulators, meeting gradient buffers, the norm, clipping, update.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ir/block.h"
#include "ir/parallel_context.h"
#include "model/model_config.h"
#include "parallel/data.h"

namespace orrery {

enum class OptimizerKind : uint8_t { kAdamW, kSgd, kLion };

struct OptimizerBlockOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  DType moment_dtype = DType::kF32;
};

int num_moments(OptimizerKind kind);  // AdamW 2, SGD with momentum 1, Lion 1

/// Where the block sums of each logical tensor of the whole model stand, by tensor index, and how many there are in all: the norm is taken
/// per tensor in blocks of 4,096 elements of its rows as the physical parameter stores them, in model order (NUMERICS rule 8). Where tensor
/// ranks have parts of a tensor, each has room for the blocks of its part, the ranks one after the other; what several hold counts on the
/// first holder alone.
struct NormBlocks {
  std::vector<int64_t> first, num_elements;
  std::vector<int64_t> rank_blocks;  // room of one tensor rank
  int64_t count = 0;
  ParallelContext parallel;
};
NormBlocks norm_blocks(std::span<const LogicalTensor> tensors, const ParallelContext& parallel);

/// Fills the phases kZero and kMerge of each chunk, kNorm and kOptimizer of a rank whose backwards are built and that owns `owned` of each
/// parameter: it sums what its holders have parts of the gradient of, makes the squared sums of that part, and updates that part (zero_stage >= 1) or all of what it owns a part of in
/// `updated`. The field kSquaredSums holds all ranks' block sums, then `num_exchanged` more f64 numbers that travel with them.
void build_optimizer_blocks(Stage& stage, const OptimizerBlockOptions& options, const NormBlocks& blocks, const std::vector<OwnedElements>& owned,
                            const std::vector<OwnedElements>& updated, int64_t num_exchanged);

}  // namespace orrery
