#include "backend/cpu/quantized_kernels.h"

#include "backend/cpu/loop_seconds.h"
#include "backend/cpu/quantized_kernels_isa.h"

namespace orrery {

namespace {

// An Intel core multiplies and unpacks on the same two ports, so unpacking once pays; a Zen 4 has two others, which have nothing else to do.
QuantizedKernels avx512_kernels() {
  QuantizedKernels kernels = simd_avx512::kQuantized;
  using namespace simd_avx512;
  if (cpu_features().avx512 && loop_seconds(dot_and_logic_loop) > 1.5 * loop_seconds(dot_loop)) kernels.unpacks = true;
  return kernels;
}

}  // namespace

const QuantizedKernels& quantized_kernels(const KernelContext& context) {
  static const QuantizedKernels amx = quantized_kernels_amx_native(), avx512 = avx512_kernels();
  if (context.isa == VectorIsa::kAvx2) return simd_avx2::kQuantized;
  return context.native_arithmetic && cpu_features().amx_int8 ? amx : avx512;
}

}  // namespace orrery
