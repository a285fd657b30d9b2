// Body of math_arrays_avx2.cpp and math_arrays_avx512.cpp.
#include "backend/cpu/vector_math.h"

namespace orrery::ORRERY_SIMD {
namespace {

template <F32x16 (*kFunction)(F32x16)>
void map(const float* x, float* y, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) { store_n(y + i, kFunction(load_n(x + i, n)), n); });
}
void to_bf16(const float* x, uint16_t* y, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) { store_n(y + i, load_n(x + i, n), n); });
}
void from_bf16(const uint16_t* x, float* y, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) { store_n(y + i, load_n(x + i, n), n); });
}
float sum(const float* x, int64_t count) {
  F32x16 total = zero();
  for_lanes(count, [&](int64_t i, int64_t n) { total = total + load_n(x + i, n); });
  return reduce_add(total);
}
float array_max(const float* x, int64_t count) {
  F32x16 top = splat(-__builtin_inff());
  for_lanes(count, [&](int64_t i, int64_t n) { top = max(top, select(first_lanes(n), load_n(x + i, n), top)); });
  return reduce_max(top);
}

}  // namespace

extern const MathArrays kMathArrays;
const MathArrays kMathArrays = {
    map<exp>,  map<exp_nonpositive>, map<exp2_nonpositive>, map<log>, map<tanh>, map<sigmoid>, map<silu>, map<silu_derivative>,
    map<gelu>, map<gelu_derivative>, to_bf16,  from_bf16, sum,          array_max};

}  // namespace orrery::ORRERY_SIMD
