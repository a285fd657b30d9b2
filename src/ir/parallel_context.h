// Which part of each layer the rank computes that a block is built for. The model code reads it where it cuts a matrix, shares tokens or
// needs a sum.
#pragma once

#include <cstdint>
#include <string_view>

namespace orrery {

/// How attention crosses context ranks: keys and values go round a ring, or ranks exchange tokens for heads.
enum class ContextMethod : uint8_t { kRing, kUlysses };
constexpr std::string_view context_method_name(ContextMethod method) { return method == ContextMethod::kRing ? "ring" : "ulysses"; }

/// Ranks of a tensor group have each a part of the heads, of the MLP's columns and of the vocabulary. They hold the same tokens; with
/// sequence_parallel each has its share of every sequence's tokens between the products. Ranks of a context group have the same
/// matrices, and each a share of every sequence's tokens throughout: chunks r and 2n - 1 - r of 2n, so that causal attention is the same
/// work for all.
struct ParallelContext {
  int64_t tensor_size = 1;
  int64_t tensor_rank = 0;
  int64_t context_size = 1;
  int64_t context_rank = 0;
  bool sequence_parallel = false;
  ContextMethod context_method = ContextMethod::kRing;

  /// The parts of a layer in one line: context ranks of a tensor rank are neighbours.
  int64_t num_parts() const { return tensor_size * context_size; }
  int64_t part() const { return tensor_rank * context_size + context_rank; }
  bool shares_tokens() const { return sequence_parallel && tensor_size > 1; }
  bool operator==(const ParallelContext&) const = default;
};

}  // namespace orrery
