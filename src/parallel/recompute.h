// Recompute (activation checkpointing): drops saved values from the forward's memory and makes them again in the backward, by the
// same ops, hence with the same bits.
#pragma once

#include "ir/block.h"
#include "parallel/recompute_choice.h"

namespace orrery {

enum class Recompute : uint8_t {
  kNone,       // save everything that the backward reads
  kSelective,  // make normalized rows and activation functions again: cheap ops, large outputs
  kFull,       // save only the residual stream at each layer's entrance
  kBudget,     // make again what frees most bytes for the time, as much as a budget asks for (recompute_choice.h)
};
constexpr int kRecomputeLevels = 64;

/// Rewrites the backward block: reads of a dropped value are redirected to a copy that cloned forward ops make just before its first
/// use. Run after fusion. kFull treats as kept: batch inputs, parameters, and each layer's residual input. kBudget:
/// apply_recompute_by_bytes with the first of its steps, `level` in kRecomputeLevels of them.
void apply_recompute(Stage& stage, Recompute policy);
void apply_recompute_by_bytes(Stage& stage, int level, const RecomputeCosts& costs);

}  // namespace orrery
