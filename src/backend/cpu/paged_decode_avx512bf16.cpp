// The decode kernel of paged_decode.h over bf16, summed by vdpbf16ps.
#include "backend/cpu/paged_decode_rows.inl"

namespace orrery::ORRERY_SIMD {
namespace {

ORRERY_INLINE __m512bh pairs(__m512i a) { return (__m512bh)a; }

struct DotPairs {
  using Number = uint16_t;
  using Query = uint16_t;

  ORRERY_MEMBER static const uint16_t* in_queries(const uint16_t* q, int64_t, std::byte*) { return q; }

  ORRERY_MEMBER static F32x16 add_word(F32x16 sum, F32x16 keys, const uint16_t* q) {
    return {_mm512_dpbf16_ps(sum.v, pairs(_mm512_castps_si512(keys.v)), pairs(_mm512_set1_epi32(word_at(q))))};
  }

  // o holds, for 32 numbers of the head, first the lower and then the upper four of each eight: what interleaving two rows gives.
  template <int C>
  ORRERY_MEMBER static void add_values(const BlockRows<uint16_t>& block, const BlockRows<uint16_t>& behind, int64_t column, int64_t H, const float (&p)[C][B], const float (&shrink)[C], bool first,
                                float* o) {
    alignas(64) uint16_t rounded[C][B];
    for (int c = 0; c < C; ++c)
      for (int64_t s = 0; s < B; s += kLanes) store(rounded[c] + s, load(p[c] + s));
    for (int64_t h = 0; h < H; h += 32) {
      __m512 low[C], high[C];
      for (int c = 0; c < C; ++c) {
        low[c] = first ? _mm512_setzero_ps() : (load(o + c * H + h) * splat(shrink[c])).v;
        high[c] = first ? _mm512_setzero_ps() : (load(o + c * H + h + 16) * splat(shrink[c])).v;
      }
      for (int64_t s = 0; s < block.rows; s += 2) {  // what would come behind is zero
        prefetch_behind(behind.values[s] + column + h);
        prefetch_behind(behind.values[s + 1] + column + h);
        const __m512i even = _mm512_loadu_si512(block.values[s] + column + h);
        const __m512i odd = s + 1 < block.rows ? _mm512_loadu_si512(block.values[s + 1] + column + h) : _mm512_setzero_si512();
        const __m512bh lower = pairs(_mm512_unpacklo_epi16(even, odd)), upper = pairs(_mm512_unpackhi_epi16(even, odd));
        for (int c = 0; c < C; ++c) {
          const __m512bh both = pairs(_mm512_set1_epi32(word_at(rounded[c] + s)));
          low[c] = _mm512_dpbf16_ps(low[c], both, lower);
          high[c] = _mm512_dpbf16_ps(high[c], both, upper);
        }
      }
      for (int c = 0; c < C; ++c) {
        _mm512_storeu_ps(o + c * H + h, low[c]);
        _mm512_storeu_ps(o + c * H + h + 16, high[c]);
      }
    }
  }

  ORRERY_MEMBER static void in_order(const float* o, int64_t H, float* out) { deinterleave(o, H, out); }
};

}  // namespace
}  // namespace orrery::ORRERY_SIMD

namespace orrery {
const PagedDecode kPagedDecodeVdpbf16ps = ORRERY_SIMD::decode<ORRERY_SIMD::DotPairs>;
}  // namespace orrery
