#include "backend/cpu/gemm_rows.h"

#include "base/error.h"

namespace orrery {

namespace simd_avx2 {
extern const GemmRows kGemmRowsBf16, kGemmRowsF32;
}
namespace simd_avx512 {
extern const GemmRows kGemmRowsBf16, kGemmRowsF32;
}

const GemmRows& gemm_rows(VectorIsa isa, DType compute_dtype) {
  ORRERY_CHECK(compute_dtype == DType::kBF16 || compute_dtype == DType::kF32, "compute dtype {}", dtype_name(compute_dtype));
  const bool bf16 = compute_dtype == DType::kBF16;
  if (isa == VectorIsa::kAvx512) return bf16 ? simd_avx512::kGemmRowsBf16 : simd_avx512::kGemmRowsF32;
  return bf16 ? simd_avx2::kGemmRowsBf16 : simd_avx2::kGemmRowsF32;
}

}  // namespace orrery
