// The inner product over quantized panels: one arithmetic for every number of rows (NUMERICS rule 13), one table per instruction set.
//
// Arithmetic   x's row is cut in blocks of 32: scale = amax / 127, q = x (127 / amax) to nearest even. For a column, in K order, for each
//              block (each half of 16, where the format has a scale for each):
//                s   = sum of (code - offset) q, exact in i32
//                acc = fma(f32(s), d * scale, acc)
//                acc = fma(m, -(scale * f32(sum of q)), acc)      formats with a minimum; m is what is subtracted
//              with d and m the products of the stored scales, in f32. acc starts from +0.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "ir/dtype.h"
#include "ir/weight_format.h"

namespace orrery {

/// 32 numbers of a row of x.
struct QuantizedBlock {
  int8_t q[32];
  float scale;
  float minus_sum;  // -(scale * f32(sum[0] + sum[1]))
  int32_t sum[2];   // of q, by halves of 16
};
static_assert(sizeof(QuantizedBlock) == 48);

struct QuantizedKernels {
  /// blocks[k / 32] = a row of k numbers of f32 or bf16.
  void (*quantize_row[2])(const void* x, int64_t k, QuantizedBlock* blocks);  // by is-bf16
  /// y[r * ldy + c] = row r of x . column c of the panel, for m rows and 16 columns; rows of x are k / 32 blocks apart.
  void (*panel_product)(WeightFormat format, const std::byte* panel, int64_t k, const QuantizedBlock* x, int64_t m, float* y, int64_t ldy);
};

const QuantizedKernels& quantized_kernels(VectorIsa isa);

}  // namespace orrery
