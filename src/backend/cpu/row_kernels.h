// The inner loops of elementwise and row ops, as plain functions over ranges, one table per (instruction set, compute dtype).
// row_kernels.inl holds their bodies; elementwise.cpp, norm.cpp and rope.cpp partition an op's rows among threads and call
// them. Pointers to compute-dtype data are void*: bf16 in the bf16 table, float in the f32 table. A range never depends on its
// neighbours, so the partition cannot change a bit.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "ir/dtype.h"

namespace orrery {

/// Rows of a norm and what is fused with it. Null pointers leave a part out. Strides are in elements.
struct NormRows {
  int64_t num_rows = 0;
  int64_t width = 0;        // D
  int64_t group_width = 0;  // numbers that share a statistic; D for LayerNorm
  float eps = 0;
  const void* x = nullptr;  // first addend when `b` is set
  int64_t x_stride = 0;
  const void* b = nullptr;  // second addend: sum = x + b is normalized and written
  int64_t b_stride = 0;
  void* sum = nullptr;
  int64_t sum_stride = 0;
  const void* weight = nullptr;  // [group_width]
  const void* bias = nullptr;    // [D], LayerNorm only
  void* y = nullptr;
  int64_t y_stride = 0;
  float* mean = nullptr;  // [rows], LayerNorm only
  float* rstd = nullptr;  // [rows, D / group_width]
};

/// Rows of a norm's gradient. dweight and dbias are f32 sums that the kernel adds the rows to, in row order.
struct NormGradRows {
  int64_t num_rows = 0;
  int64_t width = 0;
  int64_t group_width = 0;
  const void* dy = nullptr;
  int64_t dy_stride = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* weight = nullptr;
  const float* mean = nullptr;
  const float* rstd = nullptr;
  const void* dresidual = nullptr;  // added to the rounded dx
  int64_t dresidual_stride = 0;
  void* dx = nullptr;  // null: only the parameter sums
  int64_t dx_stride = 0;
  float* dweight = nullptr;                   // [group_width] null: only dx
  float* dbias = nullptr;                     // [D]
  int64_t first_column = 0, last_column = 0;  // of dweight and dbias: the half-open range that is summed
};

/// Rows of heads to rotate. `backward` rotates by the negative angle.
struct RopeRows {
  int64_t num_rows = 0;
  int64_t num_heads = 0, head_dim = 0, rotary_dim = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;
  void* y = nullptr;
  int64_t y_stride = 0;
  const int32_t* positions = nullptr;
  const float* table = nullptr;  // [P, rotary_dim / 2, 2]: cos, sin
  bool backward = false;
};

struct RowKernels {
  void (*add)(const void* a, const void* b, void* y, int64_t n);
  void (*mul)(const void* a, const void* b, void* y, int64_t n);
  void (*silu)(const void* x, void* y, int64_t n);
  void (*gelu)(const void* x, void* y, int64_t n);
  void (*silu_grad)(const void* dy, const void* x, void* dx, int64_t n);
  void (*gelu_grad)(const void* dy, const void* x, void* dx, int64_t n);
  void (*swiglu)(const void* gate, const void* up, void* h, int64_t n);
  void (*swiglu_grad)(const void* dh, const void* gate, const void* up, void* dgate, void* dup, int64_t n);
  void (*rms_norm)(const NormRows& rows);
  void (*layer_norm)(const NormRows& rows);
  void (*rms_norm_grad)(const NormGradRows& rows);
  void (*layer_norm_grad)(const NormGradRows& rows);
  void (*rope)(const RopeRows& rows);
  /// sums[c] += x[r, c] over the rows in order, for c in [0, width).
  void (*add_rows)(const void* x, int64_t stride, int64_t num_rows, int64_t width, float* sums);
  /// As add_rows, for the rows named by `rows`.
  void (*add_rows_at)(const void* x, int64_t stride, const int32_t* rows, int64_t num_rows, int64_t width, float* sums);
};

const RowKernels& row_kernels(VectorIsa isa, DType compute_dtype);

/// rotary_dim / 2 at most this: a row's cosines and sines stand on the kernel's stack.
constexpr int64_t kMaxRotaryHalf = 256;

}  // namespace orrery
