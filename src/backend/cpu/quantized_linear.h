// The product with a weight that stays quantized, and rows of a quantized table: the quantized forms of kLinearPacked and kEmbeddingPacked.
#pragma once

#include "backend/kernel.h"

namespace orrery {

struct QuantizedKernels;

int64_t quantized_linear_workspace_bytes(const DeviceSpec& device, int64_t m, int64_t k);
/// kLinearPacked with segments. Cost: with few rows one read of the packed weight. Bits: a row's do not depend on the other rows, nor on
/// threads or instruction set; the arithmetic is in quantized_kernels.h.
void quantized_linear(const KernelContext& context, const OpCall& call);
/// The panels of such a weight, for OpCall::next_weights: what threads ask for at the end of the product before. Empty where its segments have panels of
/// several sizes.
ReadAhead quantized_weight_stream(const PackedLinearAttributes& shape, const std::byte* packed);
/// The same by given kernels, which the processor must be able to run.
void quantized_linear_by(const QuantizedKernels& kernels, const KernelContext& context, const OpCall& call);

std::span<const KernelEntry> quantized_kernel_entries();

}  // namespace orrery
