#include <immintrin.h>

#include "runtime/memory_bandwidth.h"

namespace orrery {

uint64_t read_all_bytes_avx2(const std::byte* data, size_t bytes) {
  // Eight independent sums keep enough loads in flight to be limited by memory, not by the adder's latency.
  __m256i sums[8] = {};
  for (size_t at = 0; at < bytes; at += 256) {
    for (int i = 0; i < 8; ++i) {
      sums[i] = _mm256_xor_si256(sums[i], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + at + 32 * i)));
    }
  }
  __m256i all = sums[0];
  for (int i = 1; i < 8; ++i) all = _mm256_xor_si256(all, sums[i]);
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), all);
  return lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3];
}

}  // namespace orrery
