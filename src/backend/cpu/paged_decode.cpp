#include "backend/cpu/paged_decode.h"

#include "backend/cpu/tile_gemm.h"

namespace orrery {

PagedDecode paged_decode(const KernelContext& context, DType dtype, DType cache_dtype, int64_t head_dim) {
  if (head_dim % 32 != 0 || head_dim > kPagedDecodeMaxHead) return nullptr;
  const auto of_isa = [&](PagedDecode avx2, PagedDecode avx512) { return context.isa == VectorIsa::kAvx512 ? avx512 : avx2; };
  if (cache_dtype == DType::kI8)
    return dtype == DType::kF32 ? of_isa(simd_avx2::kPagedDecodeInt8F32, simd_avx512::kPagedDecodeInt8F32) : of_isa(simd_avx2::kPagedDecodeInt8Bf16, simd_avx512::kPagedDecodeInt8Bf16);
  if (dtype == DType::kF32) return of_isa(simd_avx2::kPagedDecodeF32, simd_avx512::kPagedDecodeF32);
  switch (context.arithmetic) {
    case Arithmetic::kAmx32: return nullptr;
    case Arithmetic::kDp2: return sums_by_vdpbf16ps(context) ? kPagedDecodeVdpbf16ps : of_isa(simd_avx2::kPagedDecodeDp2, simd_avx512::kPagedDecodeDp2);
    case Arithmetic::kFma1: break;
  }
  return of_isa(simd_avx2::kPagedDecodeFma1, simd_avx512::kPagedDecodeFma1);
}

}  // namespace orrery
