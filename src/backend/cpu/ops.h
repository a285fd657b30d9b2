// What the op files of this folder share: the lists they give to the kernel table, and small helpers to cut rows among threads.
#pragma once

#include <algorithm>
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

/// A thread takes part in an op for at least so many bytes: a microsecond of most ops, and several times what its coming costs (0.2 to 0.7 us).
constexpr int64_t kBytesWorthAThread = 6144;

/// Calls body(begin, end) for [0, num_rows) in ranges as equal as can be, one for each thread that has kBytesWorthAThread.
template <typename Body>
void parallel_rows(ThreadPool& pool, int64_t num_rows, int64_t row_bytes, Body&& body) {
  const int64_t parts = std::min<int64_t>({pool.num_threads(), num_rows, num_rows * row_bytes / kBytesWorthAThread});
  if (num_rows == 0) return;
  if (parts <= 1) return body(int64_t{0}, num_rows);
  pool.run([&](int thread_index, int) {
    if (thread_index < parts) body(num_rows * thread_index / parts, num_rows * (thread_index + 1) / parts);
  });
}

}  // namespace orrery
