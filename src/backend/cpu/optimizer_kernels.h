// The inner loops of the optimizer phase over a range of elements, one table per instruction set. Partitioned by optimizer.cpp.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"

namespace orrery {

/// One range of a parameter and its state. With bf16 weights the f32 master is (high, low), see base/bfloat16.h; with f32
/// weights `weight_f32` is the master itself and the halves are null. m and v are f32 or bf16, as `moments_bf16` says.
struct UpdateRange {
  int64_t count = 0;
  const float* gradient = nullptr;
  uint16_t* high = nullptr;
  int16_t* low = nullptr;
  float* weight_f32 = nullptr;
  void* m = nullptr;
  void* v = nullptr;
  bool moments_bf16 = false;
  float gradient_scale = 0;  // scale[0]
  float beta1 = 0, beta2 = 0, eps = 0;
  float keep = 1;                 // 1 - lr * weight_decay, or 1
  float step = 0;                 // lr for kSgd and kLion; for kAdamW lr / bias_correction1
  float inverse_correction2 = 1;  // 1 / bias_correction2
  float coupled_decay = 0;        // kSgd: added to the gradient, times the weight
};

struct OptimizerKernels {
  void (*adamw)(const UpdateRange& range);
  void (*sgd)(const UpdateRange& range);
  void (*lion)(const UpdateRange& range);
  void (*accumulate)(const float* source, float* destination, int64_t count);
  /// Sum of squares of at most 4,096 elements in f64: lane i takes elements i, i + 16, ...; the lanes meet in the order of
  /// reduce_add.
  double (*squared_sum)(const float* x, int64_t count);
};

const OptimizerKernels& optimizer_range_kernels(VectorIsa isa);

}  // namespace orrery
