#include "backend/cpu/paged_decode.h"

#include "backend/cpu/tile_gemm.h"

namespace orrery {

PagedDecode paged_decode(const KernelContext& context, DType dtype, DType cache_dtype, int64_t head_dim) {
  const bool here = context.isa == VectorIsa::kAvx512 && head_dim % 32 == 0 && head_dim <= kPagedDecodeMaxHead;
  if (!here) return nullptr;
  if (cache_dtype == DType::kI8) return dtype == DType::kF32 ? kPagedDecodeInt8F32 : kPagedDecodeInt8Bf16;
  if (dtype == DType::kF32) return kPagedDecodeF32;
  switch (context.arithmetic) {
    case Arithmetic::kAmx32: return nullptr;
    case Arithmetic::kDp2: return sums_by_vdpbf16ps(context) ? kPagedDecodeDp2 : kPagedDecodeDp2ByFma;
    case Arithmetic::kFma1: break;
  }
  return kPagedDecodeFma1;
}

}  // namespace orrery
