#include "backend/cpu/quantized_kernels.h"

namespace orrery {

namespace simd_avx2 {
extern const QuantizedKernels kQuantized;
}
namespace simd_avx512 {
extern const QuantizedKernels kQuantized;
}

const QuantizedKernels& quantized_kernels(VectorIsa isa) {
  return isa == VectorIsa::kAvx512 ? simd_avx512::kQuantized : simd_avx2::kQuantized;
}

}  // namespace orrery
