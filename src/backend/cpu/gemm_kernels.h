// The matrix products of the CPU backend: their entries in the kernel table, and the product with a weight that was packed once
// and is kept, for serving.
#pragma once

#include <span>

#include "backend/kernel.h"

namespace orrery {

// The matrix products, one list per file, joined in kernel_table.cpp.
std::span<const KernelEntry> linear_kernels();
std::span<const KernelEntry> linear_grad_weight_kernels();
std::span<const KernelEntry> cross_entropy_kernels();

/// Bytes of workspace in which the cross-entropy with gradients keeps logits between its two passes, beside what it borrows from
/// the gradient it is about to write; what does not fit is computed twice.
constexpr int64_t kKeptLogitsBytes = 100 << 20;
/// kLinearCrossEntropy, its gradient and both, with another bound on what is kept.
/// Bits: equal for every bound.
int64_t cross_entropy_workspace_bytes(const DeviceSpec& device, DType dtype, const OpCall& call, int64_t kept_bytes = kKeptLogitsBytes);
void cross_entropy(const KernelContext& context, DType dtype, const OpCall& call, int64_t kept_bytes = kKeptLogitsBytes);

/// Bytes of the packed form of a weight [n, k]: panels of 16 rows, n padded to 16 and k to 32 (f32: k as it is).
int64_t packed_weight_bytes(DType dtype, int64_t n, int64_t k);
/// packed (64-byte aligned, packed_weight_bytes) = weight [N, K] in panels.
void pack_weight(const KernelContext& context, const TensorView& weight, std::byte* packed);
int64_t linear_packed_workspace_bytes(const DeviceSpec& device, DType dtype, int64_t m, int64_t n, int64_t k);
/// The packed form as a product with few rows reads it.
ReadAhead packed_weight_stream(DType dtype, int64_t n, int64_t k, const std::byte* packed);
/// y [M, N] = x [M, K] weight^T (+ bias [N]), as kLinear; y in x's dtype or in f32.
/// Cost  with few rows, one read of the packed weight: it runs at memory speed up to 16 rows.
/// Bits: equal to kLinear's for every M (NUMERICS rule 13).
void linear_packed(const KernelContext& context, const TensorView& x, const std::byte* packed, int64_t n, const TensorView* bias,
                   const TensorView& y, std::span<std::byte> workspace);

}  // namespace orrery
