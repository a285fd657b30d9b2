// What is done to f32 accumulators on their way out of cache: rounding, bias, activation, folds and the softmax of cross-entropy.
// gemm_rows.inl holds the bodies, one table per (instruction set, compute dtype); pointers to compute-dtype data are void*.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "ir/dtype.h"

namespace orrery {

/// kPlain: y = c + bias, rounded to the compute dtype. kF32: the same, y in f32, for a sampler. kGelu: y = c + bias,
/// gelu_y = gelu(y). kGeluGrad: y = round(c) * gelu'(u).
enum class FinishKind { kPlain, kF32, kGelu, kGeluGrad };
constexpr int kNumFinishKinds = 4;

/// A block of accumulators and where it goes. Strides are in elements.
struct GemmBlock {
  int64_t rows = 0, columns = 0;
  const float* c = nullptr;
  int64_t ldc = 0;
  const void* bias = nullptr;  // [columns] or null
  void* y = nullptr;
  int64_t ldy = 0;
  const void* u = nullptr;  // kGeluGrad
  int64_t ldu = 0;
  void* gelu_y = nullptr;  // kGelu
  int64_t ld_gelu = 0;
};

struct GemmRows {
  void (*finish[kNumFinishKinds])(const GemmBlock& block);
  /// lower += upper.
  void (*add_blocks)(int64_t rows, int64_t columns, float* lower, int64_t ld_lower, const float* upper, int64_t ld_upper);
  /// lse = log(sum(exp(logits))) of one row, by the maximum first.
  float (*log_sum_exp)(const void* logits, int64_t n);
  /// In place: logits = exp(logits - lse) - (column == target); zeros for target -1, and in [n, padded).
  void (*softmax_grad)(void* logits, int64_t n, int64_t padded, int32_t target, float lse);
};

const GemmRows& gemm_rows(VectorIsa isa, DType compute_dtype);

}  // namespace orrery
