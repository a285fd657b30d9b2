// The decode kernel of paged_decode.h over f32, summed by FMAs.
#include "backend/cpu/paged_decode_rows.inl"

namespace orrery::ORRERY_SIMD {
namespace {

struct Fma {
  using Number = float;
  using Query = float;

  ORRERY_MEMBER static const float* in_queries(const float* q, int64_t, std::byte*) { return q; }

  ORRERY_MEMBER static F32x16 add_word(F32x16 sum, F32x16 keys, const float* q) { return fma(splat(*q), keys, sum); }

  template <int C>
  ORRERY_MEMBER static void add_values(const BlockRows<float>& block, const BlockRows<float>& behind, int64_t column, int64_t H, const float (&p)[C][B], const float (&shrink)[C], bool first,
                                float* o) {
    for (int64_t h = 0; h < H; h += 32) {
      F32x16 low[C], high[C];
      for (int c = 0; c < C; ++c) low[c] = high[c] = zero();
      for (int64_t s = 0; s < B; ++s) {
        prefetch_behind(behind.values[s] + column + h);
        prefetch_behind(behind.values[s] + column + h + 16);
        const F32x16 a = s < block.rows ? load(block.values[s] + column + h) : zero(), b = s < block.rows ? load(block.values[s] + column + h + 16) : zero();
        for (int c = 0; c < C; ++c) {
          low[c] = fma(splat(p[c][s]), a, low[c]);
          high[c] = fma(splat(p[c][s]), b, high[c]);
        }
      }
      for (int c = 0; c < C; ++c) {
        store(o + c * H + h, first ? low[c] : load(o + c * H + h) * splat(shrink[c]) + low[c]);
        store(o + c * H + h + 16, first ? high[c] : load(o + c * H + h + 16) * splat(shrink[c]) + high[c]);
      }
    }
  }

  ORRERY_MEMBER static void in_order(const float* o, int64_t H, float* out) {
    for (int64_t h = 0; h < H; h += 16) store(out + h, load(o + h));
  }
};

}  // namespace
}  // namespace orrery::ORRERY_SIMD

namespace orrery {
const PagedDecode kPagedDecodeF32 = ORRERY_SIMD::decode<ORRERY_SIMD::Fma>;
}  // namespace orrery
