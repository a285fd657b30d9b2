// The per-instruction-set halves of quantized_kernels.cpp.
#pragma once

#include "backend/cpu/quantized_kernels.h"

namespace orrery {

namespace simd_avx2 {
extern const QuantizedKernels kQuantized;
}
namespace simd_avx512 {
extern const QuantizedKernels kQuantized;
/// So many times twelve independent vpdpbusd, alone and with as many vpandd.
void dot_loop(int64_t steps);
void dot_and_logic_loop(int64_t steps);
}
QuantizedKernels quantized_kernels_amx_native();

}  // namespace orrery
