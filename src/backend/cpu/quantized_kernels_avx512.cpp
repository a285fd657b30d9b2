#include "backend/cpu/quantized_kernels.inl"
#include "backend/cpu/quantized_kernels_isa.h"

namespace orrery::simd_avx512 {
namespace {

template <bool kLogic>
void loop(int64_t steps) {
  __m512i sum[12], x = _mm512_setzero_si512();
  for (__m512i& s : sum) s = x;
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (__m512i& s : sum) {
      __m512i y = x;
      if (kLogic) {
        y = _mm512_and_si512(x, s);
        __asm__ volatile("" : : "v"(y));
      }
      s = _mm512_dpbusd_epi32(s, x, x);
    }
    __asm__ volatile("" : "+v"(x));
  }
  for (__m512i& s : sum) __asm__ volatile("" : : "v"(s));
}

}  // namespace

void dot_loop(int64_t steps) { loop<false>(steps); }
void dot_and_logic_loop(int64_t steps) { loop<true>(steps); }

}  // namespace orrery::simd_avx512
