// What the op files of this folder share: the lists they give to the kernel table, and small helpers to cut rows among threads.
#pragma once

#include <span>

#include "backend/kernel.h"

namespace orrery {

// One list per file, joined in kernel_table.cpp.
std::span<const KernelEntry> elementwise_kernels();
std::span<const KernelEntry> norm_kernels();
std::span<const KernelEntry> rope_kernels();
std::span<const KernelEntry> gather_kernels();
std::span<const KernelEntry> optimizer_kernels();
std::span<const KernelEntry> attention_kernel_entries();
std::span<const KernelEntry> paged_attention_entries();

/// Address of row `row` of a view.
inline std::byte* row_at(const TensorView& view, int64_t row) {
  return view.data + row * view.row_stride * dtype_bytes(view.dtype);
}

/// Below this many bytes an op runs on the calling thread: waking another costs as much.
constexpr int64_t kBytesWorthAThread = 16384;

/// Rows that together hold at least kBytesWorthAThread: the granule of a cut by rows.
inline int64_t row_granule(int64_t row_bytes) { return row_bytes <= 0 ? 1 : (kBytesWorthAThread + row_bytes - 1) / row_bytes; }

}  // namespace orrery
