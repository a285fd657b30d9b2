// The one list of CPU kernels: each file's entries, joined explicitly, because static initialisers vanish from static archives.
#include <array>

#include "backend/cpu/gemm_kernels.h"
#include "backend/cpu/ops.h"
#include "backend/cpu/quantized_linear.h"
#include "backend/kernel.h"

namespace orrery {
namespace {

constexpr int kNumKinds = static_cast<int>(OpKind::kCount);

struct KernelTable {
  std::array<std::array<const KernelEntry*, 2>, kNumKinds> entries{};

  void add(std::span<const KernelEntry> list) {
    for (const KernelEntry& entry : list) {
      const KernelEntry*& slot = entries[static_cast<int>(entry.kind)][entry.dtype == DType::kF32];
      ORRERY_CHECK(slot == nullptr, "two kernels for {} {}", op_name(entry.kind), dtype_name(entry.dtype));
      slot = &entry;
    }
  }
};

const KernelTable& kernel_table() {
  static const KernelTable table = [] {
    KernelTable filled;
    filled.add(elementwise_kernels());
    filled.add(norm_kernels());
    filled.add(rope_kernels());
    filled.add(gather_kernels());
    filled.add(optimizer_kernels());
    filled.add(attention_kernel_entries());
    filled.add(paged_attention_entries());
    filled.add(linear_kernels());
    filled.add(quantized_kernel_entries());
    filled.add(linear_grad_weight_kernels());
    filled.add(cross_entropy_kernels());
    return filled;
  }();
  return table;
}

}  // namespace

const KernelEntry& cpu_kernel(OpKind kind, DType compute_dtype) {
  const bool known = compute_dtype == DType::kF32 || compute_dtype == DType::kBF16;
  const KernelEntry* entry = known ? kernel_table().entries[static_cast<int>(kind)][compute_dtype == DType::kF32] : nullptr;
  if (entry == nullptr)
    throw Error(ErrorCode::kUnsupported,
                "no CPU kernel for op {} in {}; compute in bf16 or f32, or leave out the feature that needs it", op_name(kind),
                dtype_name(compute_dtype));
  return *entry;
}

}  // namespace orrery
