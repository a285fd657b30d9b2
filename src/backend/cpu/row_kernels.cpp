#include "backend/cpu/row_kernels.h"

#include "base/error.h"

namespace orrery {

namespace simd_avx2 {
extern const RowKernels kRowKernelsBf16, kRowKernelsF32;
}
namespace simd_avx512 {
extern const RowKernels kRowKernelsBf16, kRowKernelsF32;
}

const RowKernels& row_kernels(VectorIsa isa, DType compute_dtype) {
  ORRERY_CHECK(compute_dtype == DType::kBF16 || compute_dtype == DType::kF32, "compute dtype {}", dtype_name(compute_dtype));
  const bool bf16 = compute_dtype == DType::kBF16;
  if (isa == VectorIsa::kAvx512) return bf16 ? simd_avx512::kRowKernelsBf16 : simd_avx512::kRowKernelsF32;
  return bf16 ? simd_avx2::kRowKernelsBf16 : simd_avx2::kRowKernelsF32;
}

}  // namespace orrery
