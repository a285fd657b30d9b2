#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "gemm_loops.h"

namespace orrery::bench {

float fma_register_loop(int64_t steps) {
  __m512 sum[12];
  for (auto& s : sum) s = _mm512_set1_ps(1.0f);
  const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (int64_t i = 0; i < steps; ++i) {
    for (auto& s : sum) s = _mm512_fmadd_ps(a, s, b);
    __asm__ volatile("" : : : );
  }
  __m512 total = sum[0];
  for (int i = 1; i < 12; ++i) total = _mm512_add_ps(total, sum[i]);
  return _mm512_reduce_add_ps(total);
}

int32_t dot_register_loop(int64_t steps) {
  __m512i sum[12];
  for (auto& s : sum) s = _mm512_set1_epi32(1);
  __m512i a = _mm512_set1_epi8(1);
  for (int64_t i = 0; i < steps; ++i) {
    for (auto& s : sum) s = _mm512_dpbusd_epi32(s, a, a);
    __asm__ volatile("" : "+v"(a));
  }
  __m512i total = sum[0];
  for (int i = 1; i < 12; ++i) total = _mm512_add_epi32(total, sum[i]);
  return _mm512_reduce_add_epi32(total);
}

uint64_t read_loop(const void* data, int64_t bytes) {
  const auto* p = static_cast<const char*>(data);
  __m512i sum[8];
  for (auto& s : sum) s = _mm512_setzero_si512();
  for (int64_t i = 0; i < bytes; i += 512)
    for (int j = 0; j < 8; ++j) sum[j] = _mm512_xor_si512(sum[j], _mm512_load_si512(p + i + j * 64));
  for (int j = 1; j < 8; ++j) sum[0] = _mm512_xor_si512(sum[0], sum[j]);
  return static_cast<uint64_t>(_mm512_reduce_add_epi64(sum[0]));
}

}  // namespace orrery::bench
