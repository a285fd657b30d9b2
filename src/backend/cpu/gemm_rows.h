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

/// Rows of logits whose exponentials share a maximum. Part of the numerics: blocks are anchored at the vocabulary's first row.
constexpr int64_t kSoftmaxBlock = 64;

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
  /// Logits with a row for each entry of the vocabulary and a column for each token; a block goes on with the running maximum and
  /// the sum of exp(logit - maximum) of its columns, from -inf and +0, kSoftmaxBlock rows at a time.
  void (*softmax_sums)(const void* logits, int64_t ld, int64_t rows, int64_t columns, float* top, float* sum);
  /// lse = top + log(sum).
  void (*log_sums)(int64_t columns, const float* top, const float* sum, float* lse);
  /// In place: logits = exp(logits - lse) - (first_row + row == target); zeros in columns whose target is -1.
  void (*softmax_grad)(void* logits, int64_t ld, int64_t rows, int64_t columns, const float* lse, const int32_t* targets, int64_t first_row);
};

const GemmRows& gemm_rows(VectorIsa isa, DType compute_dtype);

}  // namespace orrery
