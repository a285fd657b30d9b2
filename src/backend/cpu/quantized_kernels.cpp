#include "backend/cpu/quantized_kernels.h"

#include "backend/cpu/quantized_kernels_isa.h"

namespace orrery {

const QuantizedKernels& quantized_kernels(const KernelContext& context) {
  static const QuantizedKernels amx = quantized_kernels_amx_native();
  if (context.isa == VectorIsa::kAvx2) return simd_avx2::kQuantized;
  return context.native_arithmetic && cpu_features().amx_int8 ? amx : simd_avx512::kQuantized;
}

}  // namespace orrery
