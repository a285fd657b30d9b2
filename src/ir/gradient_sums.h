// The association of gradient sums, followed symbolically: what a gradient buffer holds is a hash of the tree of additions that made
// it. The verifier compares it with the lane tree, the interpreter with another execution.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "ir/schedule.h"

namespace orrery {

inline uint64_t mix_hash(uint64_t a, uint64_t b) {
  uint64_t x = (a ^ (b + 0x9E3779B97F4A7C15ull)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 29)) * 0x94D049BB133111EBull;
  return x ^ (x >> 32);
}
/// Not symmetric: the order of the operands counts.
inline uint64_t sum_hash(uint64_t lower, uint64_t upper) { return mix_hash(lower * 0xD6E8FEB86659FD93ull + 1, upper); }

/// The gradient of one sequence of the global batch, and the sum over `num_lanes` lanes, a node of the lane tree, as NUMERICS rules 3 and 4 make
/// it of them.
inline uint64_t sequence_hash(int64_t sequence) { return mix_hash(0x9E3779B97F4A7C15ull, static_cast<uint64_t>(sequence) + 1); }
inline uint64_t lane_tree_hash(int64_t first_lane, int64_t num_lanes, int64_t sequences_per_lane) {
  if (num_lanes > 1)
    return sum_hash(lane_tree_hash(first_lane, num_lanes / 2, sequences_per_lane), lane_tree_hash(first_lane + num_lanes / 2, num_lanes / 2, sequences_per_lane));
  uint64_t sum = sequence_hash(first_lane * sequences_per_lane);
  for (int64_t i = 1; i < sequences_per_lane; ++i) sum = sum_hash(sum, sequence_hash(first_lane * sequences_per_lane + i));
  return sum;
}

/// What a micro-batch leaves in its buffer: `addends`, one a sequence, in the association of action.merges, on top of `destination` when
/// the action adds to it. Nothing when the merges do not fit the addends.
inline std::optional<uint64_t> folded_sum(const Action& action, uint64_t destination, const std::vector<uint64_t>& addends) {
  if (action.merges.size() != addends.size()) return std::nullopt;
  std::vector<uint64_t> stack;
  if (action.add_to_destination) stack.push_back(destination);
  for (size_t i = 0; i < addends.size(); ++i) {
    stack.push_back(addends[i]);
    if (action.merges[i] >= stack.size()) return std::nullopt;
    for (int merge = 0; merge < action.merges[i]; ++merge) {
      const uint64_t upper = stack.back();
      stack.pop_back();
      stack.back() = sum_hash(stack.back(), upper);
    }
  }
  if (stack.size() != 1) return std::nullopt;
  return stack.front();
}

/// A stage's gradients are written in up to three parts, which meet in the same tree but not at the same time: the head's by the loss
/// in F of the last stage, then what I writes and what W writes. B writes the last two at once.
enum class GradientPart : uint8_t { kForward, kInput, kWeight };

inline bool writes_part(ActionKind kind, bool last_stage, GradientPart part) {
  switch (part) {
    case GradientPart::kForward: return last_stage && kind == ActionKind::kForward;
    case GradientPart::kInput: return kind == ActionKind::kBackward || kind == ActionKind::kBackwardInput;
    case GradientPart::kWeight: return kind == ActionKind::kBackward || kind == ActionKind::kBackwardWeight;
  }
  return false;
}

}  // namespace orrery
