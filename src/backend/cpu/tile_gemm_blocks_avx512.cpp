// dp2 and fma1 by f32 FMAs in blocks of registers: for processors without vdpbf16ps, and for those whose FMAs are the faster way to the same
// bits. The cores of Intel's Xeons start a vdpbf16ps every other cycle (16 multiply-adds a cycle) and two FMAs in each (32).
//
// A granule of the rows of a is unpacked to f32 in a corner of L1, evens and odds apart, and broadcast from there: two of the 26 cycles of
// a pair's 48 FMAs. b is unpacked as it is loaded.
#include "backend/cpu/tile_gemm_blocks.inl"

namespace orrery::simd_avx512 {
namespace {

template <bool kOddFirst>
struct DotByFma {
  static constexpr bool kUnpacks = true;

  ORRERY_MEMBER static __m512 even(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
  ORRERY_MEMBER static __m512 odd(__m512i pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u)))); }

  // Row by row [R][16 pairs]; of packed rows pair by pair [16 pairs][16 rows].
  template <int R, bool kPacked>
  struct Rows {
    alignas(64) float evens[kPacked ? 16 : R][16], odds[kPacked ? 16 : R][16];

    ORRERY_MEMBER void prepare(const uint16_t* a, int64_t row_step) {
#pragma GCC unroll 1  // unrolled, it takes its addresses and numbers from the stack: the sums need all registers
      for (int i = 0; i < (kPacked ? 16 : R); ++i) {
        const __m512i pairs = kPacked ? _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << R) - 1), a + i * 2 * kPanel) : _mm512_loadu_si512(a + i * row_step);
        _mm512_store_ps(evens[i], even(pairs));
        _mm512_store_ps(odds[i], odd(pairs));
      }
    }
    ORRERY_MEMBER __m512 even_of(int row, int64_t pair) const { return _mm512_set1_ps(kPacked ? evens[pair][row] : evens[row][pair]); }
    ORRERY_MEMBER __m512 odd_of(int row, int64_t pair) const { return _mm512_set1_ps(kPacked ? odds[pair][row] : odds[row][pair]); }
  };

  template <int R, int P, typename A>
  ORRERY_MEMBER static void add(__m512 (&sum)[R][P], const A& rows, int64_t pair, const uint16_t* b, int64_t panel_stride) {
#pragma GCC unroll 2
    for (int turn = 0; turn < 2; ++turn) {
      const bool odds = (turn == 0) == kOddFirst;
      __m512 columns[P];
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) {
        const __m512i pairs = _mm512_loadu_si512(b + p * panel_stride);
        columns[p] = odds ? odd(pairs) : even(pairs);
      }
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const __m512 x = odds ? rows.odd_of(r, pair) : rows.even_of(r, pair);
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) sum[r][p] = _mm512_fmadd_ps(x, columns[p], sum[r][p]);
      }
    }
  }
};

}  // namespace

void set_blocks_by_fma(TileGemm& table, Arithmetic arithmetic) {
  if (arithmetic == Arithmetic::kDp2) set_blocked<DotByFma<true>>(table);
  if (arithmetic == Arithmetic::kFma1) set_blocked<DotByFma<false>>(table);
}

}  // namespace orrery::simd_avx512
