#include "backend/cpu/math_arrays.h"

namespace orrery {

namespace simd_avx2 {
extern const MathArrays kMathArrays;
}
namespace simd_avx512 {
extern const MathArrays kMathArrays;
}

const MathArrays& math_arrays(VectorIsa isa) {
  return isa == VectorIsa::kAvx512 ? simd_avx512::kMathArrays : simd_avx2::kMathArrays;
}

}  // namespace orrery
