// The ops of a step that are not the model's: zeroing row-wise accumulators, meeting gradient buffers, the norm, clipping, update.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ir/block.h"
#include "ir/offload.h"
#include "ir/parallel_context.h"
#include "model/model_config.h"
#include "parallel/data.h"

namespace orrery {

// A piece of offloaded state as runs have it: long enough for a disk's full rate; three slots of it are small beside a layer.
inline constexpr int64_t kOffloadPieceBytes = 8 << 20;

enum class OptimizerKind : uint8_t { kAdamW, kSgd, kLion };

struct OptimizerBlockOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  DType moment_dtype = DType::kF32;
  int gradient_delay = 0;  // 1: W(t + 1) = W(t) - u(gradient at W(t - 1)), PipeDream-2BW's recipe (NUMERICS rule 15)
  int64_t offload_piece_bytes = 0;  // the state lies elsewhere between its updates, in pieces of about so much; 0: it stays in the arena
  bool offload_weights = false;     // with the state: its pieces have the weights too, which come unit by unit where they are read
  bool newest_whole = false;        // with a delay: every rank has all of the newest weights, and keeps all of them when they are updated
  bool newest_apart() const { return gradient_delay > 0 || offload_weights; }
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
NormBlocks norm_blocks(const ModelConfig& model, const ParallelContext& parallel);

/// Fills the phase kMerge of each chunk, kNorm and kOptimizer of a rank whose backwards are built; in kNorm it also sums what its
/// holders have parts of the gradient of. The field kSquaredSums holds all ranks' block sums, then `num_exchanged` more f64 numbers that travel
/// with them. With gradient shards there is nothing to merge. What is accumulated row by row is zeroed in its backward, just before: its
/// memory may be something else's until then.
/// With a gradient delay the compute weights become those of the last update, the newest ones, just before these are updated: forwards and
/// backwards of step t then find W(t - 1), and a skipped step counts as an update by nothing.
/// Returns the pieces of the state, in the order of their updates, where it is offloaded; the ops' state is then in their slots.
StateOffload build_optimizer_blocks(Stage& stage, const OptimizerBlockOptions& options, const NormBlocks& blocks, const RankUpdate& rank, int64_t num_exchanged);

}  // namespace orrery
