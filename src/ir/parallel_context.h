// Which part of each layer the rank computes that a block is built for. The model code reads it where it cuts a matrix or needs a sum.
#pragma once

#include <cstdint>

namespace orrery {

/// Ranks of a tensor group hold the same tokens and each a part of the heads, of the MLP's columns and of the vocabulary.
struct ParallelContext {
  int64_t tensor_size = 1;
  int64_t tensor_rank = 0;
  bool operator==(const ParallelContext&) const = default;
};

}  // namespace orrery
