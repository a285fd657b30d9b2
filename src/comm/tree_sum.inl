// Body of tree_sum_avx2.cpp and tree_sum_avx512.cpp.
#include "backend/cpu/simd.h"
#include "comm/tree_sum.h"

namespace orrery::ORRERY_SIMD {
namespace {

void add(const float* a, const float* b, float* sum, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) { store_n(sum + i, load_n(a + i, n) + load_n(b + i, n), n); });
}
void from_bf16(const uint16_t* x, float* y, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) { store_n(y + i, load_n(x + i, n), n); });
}
void to_bf16(const float* x, uint16_t* y, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) { store_n(y + i, load_n(x + i, n), n); });
}

}  // namespace

extern const TreeSumKernels kTreeSumKernels;
const TreeSumKernels kTreeSumKernels = {add, from_bf16, to_bf16};

}  // namespace orrery::ORRERY_SIMD
