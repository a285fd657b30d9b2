// Body of optimizer_kernels_avx2.cpp and optimizer_kernels_avx512.cpp.
#include "backend/cpu/optimizer_kernels.h"
#include "backend/cpu/simd.h"

namespace orrery::ORRERY_SIMD {
namespace {

// The two forms of a master weight (NUMERICS rule 2).
struct SplitWeight {
  static F32x16 load_at(const UpdateRange& r, int64_t i, int64_t n) {
    alignas(64) int16_t buffer[16] = {};
    const int16_t* low = r.low + i;
    if (n < kLanes) {
      for (int64_t lane = 0; lane < n; ++lane) buffer[lane] = low[lane];
      low = buffer;
    }
    const I32x16 high = n == kLanes ? load_u16(r.high + i) : load_u16_first(r.high + i, n);
    return as_f32(shift_left<16>(high) + load_i16(low));
  }
  static void store_at(const UpdateRange& r, int64_t i, F32x16 w, int64_t n) {
    const I32x16 bits = as_i32(w);
    const I32x16 high = shift_right<16>(bits + splat_i32(0x8000));
    const I32x16 low = bits & splat_i32(0xFFFF);  // bits - (high << 16), modulo 2^16
    uint16_t* low_out = reinterpret_cast<uint16_t*>(r.low + i);
    if (n == kLanes) {
      store_u16(r.high + i, high);
      store_u16(low_out, low);
    } else {
      store_u16_first(r.high + i, high, n);
      store_u16_first(low_out, low, n);
    }
  }
};
struct PlainWeight {
  static F32x16 load_at(const UpdateRange& r, int64_t i, int64_t n) { return load_n(r.weight_f32 + i, n); }
  static void store_at(const UpdateRange& r, int64_t i, F32x16 w, int64_t n) { store_n(r.weight_f32 + i, w, n); }
};

//   g = gradient * scale
//   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
//   w = keep w - (lr / bc1) m / (sqrt(v / bc2) + eps)
// The update uses m and v before they are rounded to their stored type.
template <typename Weight, typename M>
void adamw_body(const UpdateRange& r) {
  M* m_out = static_cast<M*>(r.m);
  M* v_out = static_cast<M*>(r.v);
  const F32x16 scale = splat(r.gradient_scale), beta1 = splat(r.beta1), beta2 = splat(r.beta2), eps = splat(r.eps);
  const F32x16 rest1 = splat(1.0f - r.beta1), rest2 = splat(1.0f - r.beta2);
  const F32x16 keep = splat(r.keep), step = splat(r.step), inverse2 = splat(r.inverse_correction2);
  for_lanes(r.count, [&](int64_t i, int64_t n) {
    const F32x16 g = load_n(r.gradient + i, n) * scale;
    const F32x16 m = fma(beta1, load_n(m_out + i, n), rest1 * g);
    const F32x16 v = fma(beta2, load_n(v_out + i, n), rest2 * (g * g));
    const F32x16 w = Weight::load_at(r, i, n) * keep;
    Weight::store_at(r, i, fnma(step, m / (sqrt(v * inverse2) + eps), w), n);
    store_n(m_out + i, m, n);
    store_n(v_out + i, v, n);
  });
}

//   g = gradient * scale + weight_decay w;   m = momentum m + g;   w = w - lr m
template <typename Weight, typename M>
void sgd_body(const UpdateRange& r) {
  M* m_out = static_cast<M*>(r.m);
  const F32x16 scale = splat(r.gradient_scale), momentum = splat(r.beta1), decay = splat(r.coupled_decay), step = splat(r.step);
  for_lanes(r.count, [&](int64_t i, int64_t n) {
    const F32x16 w = Weight::load_at(r, i, n);
    const F32x16 g = fma(decay, w, load_n(r.gradient + i, n) * scale);
    const F32x16 m = fma(momentum, load_n(m_out + i, n), g);
    Weight::store_at(r, i, fnma(step, m, w), n);
    store_n(m_out + i, m, n);
  });
}

//   g = gradient * scale;   w = keep w - lr sign(beta1 m + (1 - beta1) g);   m = beta2 m + (1 - beta2) g
template <typename Weight, typename M>
void lion_body(const UpdateRange& r) {
  M* m_out = static_cast<M*>(r.m);
  const F32x16 scale = splat(r.gradient_scale), beta1 = splat(r.beta1), beta2 = splat(r.beta2);
  const F32x16 rest1 = splat(1.0f - r.beta1), rest2 = splat(1.0f - r.beta2), keep = splat(r.keep), step = splat(r.step);
  for_lanes(r.count, [&](int64_t i, int64_t n) {
    const F32x16 g = load_n(r.gradient + i, n) * scale;
    const F32x16 old_m = load_n(m_out + i, n);
    const F32x16 direction = fma(beta1, old_m, rest1 * g);
    F32x16 sign = select(zero() < direction, splat(1.0f), zero());
    sign = select(direction < zero(), splat(-1.0f), sign);
    Weight::store_at(r, i, fnma(step, sign, Weight::load_at(r, i, n) * keep), n);
    store_n(m_out + i, fma(beta2, old_m, rest2 * g), n);
  });
}

// One body per form of weight and moments.
#define ORRERY_UPDATE(name)                                                                        \
  void name(const UpdateRange& r) {                                                                \
    if (r.weight_f32 != nullptr)                                                                   \
      r.moments_bf16 ? name##_body<PlainWeight, uint16_t>(r) : name##_body<PlainWeight, float>(r); \
    else                                                                                           \
      r.moments_bf16 ? name##_body<SplitWeight, uint16_t>(r) : name##_body<SplitWeight, float>(r); \
  }
ORRERY_UPDATE(adamw)
ORRERY_UPDATE(sgd)
ORRERY_UPDATE(lion)
#undef ORRERY_UPDATE

void accumulate(const float* source, float* destination, int64_t count) {
  for_lanes(count,
            [&](int64_t i, int64_t n) { store_n(destination + i, load_n(destination + i, n) + load_n(source + i, n), n); });
}

// Sixteen f64 sums as four groups of four lanes, the same on both instruction sets; the loop is bound by memory.
double squared_sum(const float* x, int64_t count) {
  __m256d sums[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
  for_lanes(count, [&](int64_t i, int64_t n) {
    alignas(64) float lanes[16];
    const float* source = x + i;
    if (n < kLanes) {
      store(lanes, load_first(x + i, n));
      source = lanes;
    }
    for (int group = 0; group < 4; ++group) {
      const __m256d value = _mm256_cvtps_pd(_mm_loadu_ps(source + 4 * group));
      sums[group] = _mm256_fmadd_pd(value, value, sums[group]);
    }
  });
  const __m256d four = _mm256_add_pd(_mm256_add_pd(sums[0], sums[2]), _mm256_add_pd(sums[1], sums[3]));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

}  // namespace

extern const OptimizerKernels kOptimizerKernels;
const OptimizerKernels kOptimizerKernels = {adamw, sgd, lion, accumulate, squared_sum};

}  // namespace orrery::ORRERY_SIMD
