// Reverse-mode differentiation of a forward block: each op's rule emits backward ops, collectives included later.
// Seed: the gradient of the sum of all token losses is 1 and is never stored (NUMERICS rule 7).
#pragma once

#include "ir/block.h"

namespace orrery {

/// Builds the backward block of `stage`, one chunk, from its forward block, which ends in kLinearCrossEntropy or, in a stage of a pipeline,
/// at boundaries[0].output, whose gradient is then an input; the gradient of boundaries[0].input is a result. Parameter gradients are
/// kGradient values (created here, one per parameter and accumulator, f32); activation gradients have the compute dtype. A value
/// used twice gets its gradients added with kAdd in reverse order of use. Cost: linear in the number of ops.
/// Errors: kUnsupported for an op without a rule.
void build_backward(Stage& stage);

/// The accumulator of (parameter, accumulator) in the destination (role 0) or source (role 1) buffer; created on first use.
ValueId gradient_value(Stage& stage, int32_t parameter, int32_t accumulator, int32_t buffer_role = 0);

}  // namespace orrery
