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

/// Which part of the model's update is a rank's.
struct RankUpdate {
  std::vector<OwnedElements> owned;    // by parameter: what it takes the norm of
  std::vector<OwnedElements> updated;  // what it keeps the state of and updates: the same (zero_stage >= 1), or all of a parameter
  bool takes_norm = true;              // false: another replica of the shards does
  bool gradient_shards = false, weight_shards = false;  // what is owned lies apart: Value::kShardRole
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

/// Fills the phase kMerge of each chunk, kNorm and kOptimizer of a rank whose backwards are built; in kNorm it also sums what its
/// holders have parts of the gradient of. The field kSquaredSums holds all ranks' block sums, then `num_exchanged` more f64 numbers that travel
/// with them. With gradient shards there is nothing to merge. What is accumulated row by row is zeroed in its backward, just before: its
/// memory may be something else's until then.
void build_optimizer_blocks(Stage& stage, const OptimizerBlockOptions& options, const NormBlocks& blocks, const RankUpdate& rank, int64_t num_exchanged);

}  // namespace orrery
