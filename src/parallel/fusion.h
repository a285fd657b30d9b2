// Fusion: rewrites sequences of ops into single ops that touch memory once. A fused op rounds where its parts round, so the bits
// do not change; models never write fused ops by hand.
#pragma once

#include "ir/block.h"

namespace orrery {

/// Forward: add + norm, linear + gelu, split + silu + mul (SwiGLU), split + rope + rope. Run before build_backward.
/// phase: kForward or kEval.
void fuse_forward(Stage& stage, Phase phase);

/// Backward: norm gradient + residual add, input gradient + gelu gradient. Run after build_backward.
void fuse_backward(Stage& stage);

/// Moves the loss's gradient into the forward, where the logits exist: one logits GEMM instead of two. The backward then starts
/// from the hidden gradient. Nothing to do for a stage without the loss.
void fuse_loss(Stage& stage);

/// A split whose parts, or a concat whose sources, are only touched by ops that take strided rows needs no copy: the parts become
/// views of the whole and the op goes. Run last: derivative rules and the other passes see splits and concats.
void remove_copies(Stage& stage);

}  // namespace orrery
