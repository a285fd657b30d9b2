// Body of row_kernels_avx2.cpp and row_kernels_avx512.cpp. T is the compute dtype's storage: uint16_t (bf16) or float.
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/vector_math.h"

namespace orrery::ORRERY_SIMD {
namespace {

template <typename T>
ORRERY_INLINE const T* in(const void* p) {
  return static_cast<const T*>(p);
}
template <typename T>
ORRERY_INLINE T* out(void* p) {
  return static_cast<T*>(p);
}

// ---- elementwise ----------------------------------------------------------------------------------------------------------

template <typename T>
void add(const void* a, const void* b, void* y, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) { store_n(out<T>(y) + i, load_n(in<T>(a) + i, n) + load_n(in<T>(b) + i, n), n); });
}
template <typename T>
void mul(const void* a, const void* b, void* y, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) { store_n(out<T>(y) + i, load_n(in<T>(a) + i, n) * load_n(in<T>(b) + i, n), n); });
}
template <typename T, F32x16 (*kFunction)(F32x16)>
void map(const void* x, void* y, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) { store_n(out<T>(y) + i, kFunction(load_n(in<T>(x) + i, n)), n); });
}
// dx = dy * f'(x)
template <typename T, F32x16 (*kDerivative)(F32x16)>
void map_grad(const void* dy, const void* x, void* dx, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) {
    store_n(out<T>(dx) + i, load_n(in<T>(dy) + i, n) * kDerivative(load_n(in<T>(x) + i, n)), n);
  });
}
// Rounds where kSilu and kMul would (NUMERICS rule 2).
template <typename T>
void swiglu(const void* gate, const void* up, void* h, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) {
    store_n(out<T>(h) + i, round_to<T>(silu(load_n(in<T>(gate) + i, n))) * load_n(in<T>(up) + i, n), n);
  });
}
template <typename T>
void swiglu_grad(const void* dh, const void* gate, const void* up, void* dgate, void* dup, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) {
    const F32x16 g = load_n(in<T>(gate) + i, n), d = load_n(in<T>(dh) + i, n);
    const F32x16 dsilu = round_to<T>(d * load_n(in<T>(up) + i, n));
    const SigmoidPair s = sigmoid_pair(g);
    store_n(out<T>(dup) + i, d * round_to<T>(silu(g, s)), n);
    store_n(out<T>(dgate) + i, dsilu * silu_derivative(g, s), n);
  });
}

// ---- norms ----------------------------------------------------------------------------------------------------------------

// The sum of term(i, n) over a row in one order: four accumulators that take the vectors in turn, (0 + 1) + (2 + 3), then the
// lanes. Four hide the latency of the additions.
template <typename Term>
ORRERY_INLINE float row_sum(int64_t count, Term&& term) {
  F32x16 sum0 = zero(), sum1 = zero(), sum2 = zero(), sum3 = zero();
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    sum0 = sum0 + term(i, kLanes);
    sum1 = sum1 + term(i + kLanes, kLanes);
    sum2 = sum2 + term(i + 2 * kLanes, kLanes);
    sum3 = sum3 + term(i + 3 * kLanes, kLanes);
  }
  for (; i + kLanes <= count; i += kLanes) sum0 = sum0 + term(i, kLanes);
  if (i < count) sum1 = sum1 + term(i, count - i);
  return reduce_add((sum0 + sum1) + (sum2 + sum3));
}

// 1 / sqrt(x), both rounded: there is no approximate instruction that all machines share.
ORRERY_INLINE float reciprocal_sqrt(float x) { return _mm_cvtss_f32(_mm_div_ss(_mm_set_ss(1.0f), _mm_sqrt_ss(_mm_set_ss(x)))); }

// sum = a + b where asked for; returns the row to normalize.
template <typename T>
ORRERY_INLINE const T* residual_row(const NormRows& r, int64_t row) {
  const T* a = in<T>(r.x) + row * r.x_stride;
  if (r.b == nullptr) return a;
  T* sum = out<T>(r.sum) + row * r.sum_stride;
  add<T>(a, in<T>(r.b) + row * r.b_stride, sum, r.width);
  return sum;
}

template <typename T>
void rms_norm(const NormRows& r) {
  const int64_t groups = r.width / r.group_width;
  const T* weight = in<T>(r.weight);
  for (int64_t row = 0; row < r.num_rows; ++row) {
    const T* x_row = residual_row<T>(r, row);
    T* y_row = out<T>(r.y) + row * r.y_stride;
    for (int64_t group = 0; group < groups; ++group) {
      const T* x = x_row + group * r.group_width;
      T* y = y_row + group * r.group_width;
      const float squares = row_sum(r.group_width, [&](int64_t i, int64_t n) {
        const F32x16 v = load_n(x + i, n);
        return v * v;
      });
      const float rstd = reciprocal_sqrt(squares / static_cast<float>(r.group_width) + r.eps);
      r.rstd[row * groups + group] = rstd;
      for_lanes(r.group_width,
                [&](int64_t i, int64_t n) { store_n(y + i, (load_n(x + i, n) * splat(rstd)) * load_n(weight + i, n), n); });
    }
  }
}

template <typename T>
void layer_norm(const NormRows& r) {
  const float inverse_width = 1.0f / static_cast<float>(r.width);
  const T* weight = in<T>(r.weight);
  const T* bias = in<T>(r.bias);
  for (int64_t row = 0; row < r.num_rows; ++row) {
    const T* x = residual_row<T>(r, row);
    T* y = out<T>(r.y) + row * r.y_stride;
    const float mean = row_sum(r.width, [&](int64_t i, int64_t n) { return load_n(x + i, n); }) * inverse_width;
    // The second pass over the row, which is in L1, avoids the cancellation of E[x^2] - E[x]^2. Lanes past the end hold 0, not
    // x - mean, so they are masked.
    const float squares = row_sum(r.width, [&](int64_t i, int64_t n) {
      const F32x16 v = select(first_lanes(n), load_n(x + i, n) - splat(mean), zero());
      return v * v;
    });
    const float rstd = reciprocal_sqrt(squares * inverse_width + r.eps);
    r.mean[row] = mean;
    r.rstd[row] = rstd;
    for_lanes(r.width, [&](int64_t i, int64_t n) {
      const F32x16 normalized = (load_n(x + i, n) - splat(mean)) * splat(rstd);
      store_n(y + i, fma(normalized, load_n(weight + i, n), load_n(bias + i, n)), n);
    });
  }
}

// dx, with the residual's gradient added to the rounded value as kAdd would.
template <typename T>
ORRERY_INLINE void store_dx(const NormGradRows& r, int64_t row, int64_t column, F32x16 dx, int64_t n) {
  if (r.dresidual != nullptr) dx = round_to<T>(dx) + load_n(in<T>(r.dresidual) + row * r.dresidual_stride + column, n);
  store_n(out<T>(r.dx) + row * r.dx_stride + column, dx, n);
}

//   g = dy * weight, n = x * rstd:   dx = rstd * (g - n * mean(g n)),   dweight += dy * n
template <typename T>
void rms_norm_grad(const NormGradRows& r) {
  const int64_t groups = r.width / r.group_width;
  const T* weight = in<T>(r.weight);
  for (int64_t row = 0; row < r.num_rows; ++row) {
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = group * r.group_width;
      const T* x = in<T>(r.x) + row * r.x_stride + first;
      const T* dy = in<T>(r.dy) + row * r.dy_stride + first;
      const F32x16 rstd = splat(r.rstd[row * groups + group]);
      if (r.dx != nullptr) {
        const float dot = row_sum(r.group_width, [&](int64_t i, int64_t n) {
          return (load_n(dy + i, n) * load_n(weight + i, n)) * (load_n(x + i, n) * rstd);
        });
        const F32x16 mean_dot = splat(dot / static_cast<float>(r.group_width));
        for_lanes(r.group_width, [&](int64_t i, int64_t n) {
          const F32x16 g = load_n(dy + i, n) * load_n(weight + i, n);
          store_dx<T>(r, row, first + i, rstd * fnma(load_n(x + i, n) * rstd, mean_dot, g), n);
        });
      }
      if (r.dweight != nullptr) {
        for_lanes(r.last_column - r.first_column, [&](int64_t offset, int64_t n) {
          const int64_t i = r.first_column + offset;
          store_n(r.dweight + i, fma(load_n(dy + i, n), load_n(x + i, n) * rstd, load_n(r.dweight + i, n)), n);
        });
      }
    }
  }
}

//   n = (x - mean) * rstd:   dx = rstd * (g - mean(g) - n * mean(g n)),   dweight += dy * n,   dbias += dy
template <typename T>
void layer_norm_grad(const NormGradRows& r) {
  const float inverse_width = 1.0f / static_cast<float>(r.width);
  const T* weight = in<T>(r.weight);
  for (int64_t row = 0; row < r.num_rows; ++row) {
    const T* x = in<T>(r.x) + row * r.x_stride;
    const T* dy = in<T>(r.dy) + row * r.dy_stride;
    const F32x16 mean = splat(r.mean[row]), rstd = splat(r.rstd[row]);
    if (r.dx != nullptr) {
      const float sum = row_sum(r.width, [&](int64_t i, int64_t n) { return load_n(dy + i, n) * load_n(weight + i, n); });
      const float dot = row_sum(r.width, [&](int64_t i, int64_t n) {
        return (load_n(dy + i, n) * load_n(weight + i, n)) * ((load_n(x + i, n) - mean) * rstd);
      });
      const F32x16 mean_g = splat(sum * inverse_width), mean_dot = splat(dot * inverse_width);
      for_lanes(r.width, [&](int64_t i, int64_t n) {
        const F32x16 g = load_n(dy + i, n) * load_n(weight + i, n);
        store_dx<T>(r, row, i, rstd * fnma((load_n(x + i, n) - mean) * rstd, mean_dot, g - mean_g), n);
      });
    }
    if (r.dweight != nullptr) {
      for_lanes(r.last_column - r.first_column, [&](int64_t offset, int64_t n) {
        const int64_t i = r.first_column + offset;
        const F32x16 d = load_n(dy + i, n);
        store_n(r.dweight + i, fma(d, (load_n(x + i, n) - mean) * rstd, load_n(r.dweight + i, n)), n);
        store_n(r.dbias + i, load_n(r.dbias + i, n) + d, n);
      });
    }
  }
}

// ---- rope -----------------------------------------------------------------------------------------------------------------

template <typename T>
void rope(const RopeRows& r) {
  const int64_t half = r.rotary_dim / 2;
  alignas(64) float cosine[kMaxRotaryHalf], sine[kMaxRotaryHalf];
  for (int64_t row = 0; row < r.num_rows; ++row) {
    const float* angles = r.table + int64_t{r.positions[row]} * half * 2;
    for (int64_t i = 0; i < half; ++i) {
      cosine[i] = angles[2 * i];
      sine[i] = r.backward ? -angles[2 * i + 1] : angles[2 * i + 1];
    }
    for (int64_t head = 0; head < r.num_heads; ++head) {
      const T* x = in<T>(r.x) + row * r.x_stride + head * r.head_dim;
      T* y = out<T>(r.y) + row * r.y_stride + head * r.head_dim;
      for_lanes(half, [&](int64_t i, int64_t n) {
        const F32x16 a = load_n(x + i, n), b = load_n(x + half + i, n);
        const F32x16 c = load_n(cosine + i, n), s = load_n(sine + i, n);
        store_n(y + i, fnma(b, s, a * c), n);
        store_n(y + half + i, fma(a, s, b * c), n);
      });
      for (int64_t i = r.rotary_dim; i < r.head_dim; ++i) y[i] = x[i];
    }
  }
}

// ---- sums over rows -------------------------------------------------------------------------------------------------------

// Four rows a pass: the sums are loaded and stored once for four additions, each still in row order.
template <typename T, typename RowAt>
ORRERY_INLINE void add_rows_with(int64_t num_rows, int64_t width, float* sums, RowAt&& row_at) {
  int64_t row = 0;
  for (; row + 4 <= num_rows; row += 4) {
    const T *x0 = row_at(row), *x1 = row_at(row + 1), *x2 = row_at(row + 2), *x3 = row_at(row + 3);
    for_lanes(width, [&](int64_t i, int64_t n) {
      const F32x16 two = (load_n(sums + i, n) + load_n(x0 + i, n)) + load_n(x1 + i, n);
      store_n(sums + i, (two + load_n(x2 + i, n)) + load_n(x3 + i, n), n);
    });
  }
  for (; row < num_rows; ++row) {
    const T* x = row_at(row);
    for_lanes(width, [&](int64_t i, int64_t n) { store_n(sums + i, load_n(sums + i, n) + load_n(x + i, n), n); });
  }
}
template <typename T>
void add_rows(const void* x, int64_t stride, int64_t num_rows, int64_t width, float* sums) {
  add_rows_with<T>(num_rows, width, sums, [&](int64_t row) { return in<T>(x) + row * stride; });
}
template <typename T>
void add_rows_at(const void* x, int64_t stride, const int32_t* rows, int64_t num_rows, int64_t width, float* sums) {
  add_rows_with<T>(num_rows, width, sums, [&](int64_t row) { return in<T>(x) + rows[row] * stride; });
}

template <typename T>
constexpr RowKernels make_table() {
  return {add<T>,
          mul<T>,
          map<T, silu>,
          map<T, gelu>,
          map_grad<T, silu_derivative>,
          map_grad<T, gelu_derivative>,
          swiglu<T>,
          swiglu_grad<T>,
          rms_norm<T>,
          layer_norm<T>,
          rms_norm_grad<T>,
          layer_norm_grad<T>,
          rope<T>,
          add_rows<T>,
          add_rows_at<T>};
}

}  // namespace

extern const RowKernels kRowKernelsBf16, kRowKernelsF32;
const RowKernels kRowKernelsBf16 = make_table<uint16_t>();
const RowKernels kRowKernelsF32 = make_table<float>();

}  // namespace orrery::ORRERY_SIMD
