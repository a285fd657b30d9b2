// The per-instruction-set halves of quantized_kernels.cpp.
#pragma once

#include "backend/cpu/quantized_kernels.h"

namespace orrery {

namespace simd_avx2 {
extern const QuantizedKernels kQuantized;
}
namespace simd_avx512 {
extern const QuantizedKernels kQuantized;
}
QuantizedKernels quantized_kernels_amx_native();

}  // namespace orrery
