#include "backend/cpu/paged_decode.h"

namespace orrery {

PagedDecode paged_decode(const KernelContext& context, DType dtype, DType cache_dtype, int64_t head_dim, const CpuFeatures& features) {
  const bool here = context.isa == VectorIsa::kAvx512 && head_dim % 32 == 0 && head_dim <= kPagedDecodeMaxHead;
  if (!here) return nullptr;
  if (cache_dtype == DType::kI8) return dtype == DType::kF32 ? kPagedDecodeInt8F32 : kPagedDecodeInt8Bf16;
  if (dtype == DType::kF32) return kPagedDecodeF32;
  return features.avx512_bf16 && context.arithmetic == Arithmetic::kDp2 && context.native_arithmetic ? kPagedDecodeBf16 : nullptr;
}

}  // namespace orrery
