#include "backend/cpu/paged_decode.h"

namespace orrery {

PagedDecode paged_decode(const KernelContext& context, DType dtype, int64_t head_dim) {
  const bool here = context.isa == VectorIsa::kAvx512 && cpu_features().avx512_bf16 && head_dim % 32 == 0 && head_dim <= 256;
  if (!here) return nullptr;
  if (dtype == DType::kF32) return kPagedDecodeF32;
  return context.arithmetic == Arithmetic::kDp2 && context.native_arithmetic ? kPagedDecodeBf16 : nullptr;
}

}  // namespace orrery
