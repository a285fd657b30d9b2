// kRingAttention and its gradient: keys and values go round the ring of context ranks, block by block, while each rank attends to the block
// that it has; the gradients of keys and values go round with them and end where they belong.
// Source  Liu et al. 2023, "Ring Attention with Blockwise Transformers", arXiv:2310.01889; balanced order: Brandon et al. 2023, "Striped
//         Attention", arXiv:2311.09431. Differs: two chunks a rank, r and 2n - 1 - r, instead of stripes, so that blocks of keys stay whole.
#pragma once

#include "backend/kernel.h"
#include "comm/communicator.h"

namespace orrery {

/// `shapes` as at run time, or at their bounds. num_sequences: in the rows of q.
int64_t ring_attention_workspace_bytes(const DeviceSpec& device, const OpCall& shapes, int64_t num_ranks, int64_t num_sequences);

/// Bytes a rank sends, n ranks and B bytes of its keys and values: forward (n - 1) B; backward (n - 1) B and n times their gradients in f32.
/// The order in which blocks meet is that of the ring, from the rank's own backwards: for a given n the bits are always the same.
void run_ring_attention(Communicator& group, const KernelContext& context, const OpCall& call, std::string_view label);

}  // namespace orrery
