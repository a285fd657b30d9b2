// dp2 by vdpbf16ps, which adds the odd product of a pair and then the even one to the accumulator, each with one rounding, and
// flushes denormals whatever the mode: what tile_gemm_blocks_avx512.cpp does with FMAs.
#include "backend/cpu/tile_gemm_blocks.inl"

namespace orrery {
namespace {

struct DotPairs {
  static constexpr bool kUnpacks = false;

  template <int R, bool kPacked>
  struct Rows {
    const uint16_t* a;
    int64_t row_step;
    ORRERY_MEMBER void prepare(const uint16_t* granule, int64_t step) { a = granule, row_step = step; }
    ORRERY_MEMBER __m512bh pair_of(int row, int64_t pair) const {
      int both;
      __builtin_memcpy(&both, a + row * row_step + pair * 2 * (kPacked ? simd_avx512::kPanel : 1), 4);
      return (__m512bh)_mm512_set1_epi32(both);
    }
  };

  template <int R, int P, typename A>
  ORRERY_MEMBER static void add(__m512 (&sum)[R][P], const A& rows, int64_t pair, const uint16_t* b, int64_t panel_stride) {
    __m512bh columns[P];
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) columns[p] = (__m512bh)_mm512_loadu_si512(b + p * panel_stride);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const __m512bh both = rows.pair_of(r, pair);
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], both, columns[p]);
    }
  }
};

template <typename Operation>
void loop(int64_t steps, Operation&& add) {
  __m512 sum[12], x = _mm512_setzero_ps();
  for (__m512& s : sum) s = x;
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (__m512& s : sum) add(s, x);
    __asm__ volatile("" : "+v"(x));
  }
  for (__m512& s : sum) __asm__ volatile("" : : "v"(s));
}

}  // namespace

void set_blocks_by_vdpbf16ps(TileGemm& table) { simd_avx512::set_blocked<DotPairs>(table); }

void vdpbf16ps_loop(int64_t steps) {
  loop(steps, [](__m512& sum, __m512 x) { sum = _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)x); });
}
void fma_loop(int64_t steps) {
  loop(steps, [](__m512& sum, __m512 x) { sum = _mm512_fmadd_ps(x, x, sum); });
}

}  // namespace orrery
