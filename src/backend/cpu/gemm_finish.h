// Sixteen accumulators on their way out: the one text of the FinishKinds, included by files compiled for one instruction set
// (gemm_rows.inl, and the native products, which finish block by block).
#pragma once

#include "backend/cpu/gemm_rows.h"
#include "backend/cpu/vector_math.h"

namespace orrery::ORRERY_SIMD {

template <typename T>
ORRERY_INLINE F32x16 with_bias(const GemmBlock& b, int64_t row, int64_t i, int64_t n) {
  const F32x16 c = load_n(b.c + row * b.ldc + i, n);
  return b.bias == nullptr ? c : c + load_n(static_cast<const T*>(b.bias) + i, n);
}

/// Columns [i, i + n) of a row; n <= 16.
template <typename T, FinishKind kKind>
ORRERY_INLINE void finish_lanes(const GemmBlock& b, int64_t row, int64_t i, int64_t n) {
  if constexpr (kKind == FinishKind::kPlain) {
    store_n(static_cast<T*>(b.y) + row * b.ldy + i, with_bias<T>(b, row, i, n), n);
  } else if constexpr (kKind == FinishKind::kF32) {
    store_n(static_cast<float*>(b.y) + row * b.ldy + i, with_bias<T>(b, row, i, n), n);
  } else if constexpr (kKind == FinishKind::kGelu) {
    // The gelu is that of the rounded value, as kLinear and kGelu would give (NUMERICS rule 2).
    const F32x16 u = round_to<T>(with_bias<T>(b, row, i, n));
    store_n(static_cast<T*>(b.y) + row * b.ldy + i, u, n);
    store_n(static_cast<T*>(b.gelu_y) + row * b.ld_gelu + i, gelu(u), n);
  } else {
    const F32x16 dy = round_to<T>(load_n(b.c + row * b.ldc + i, n));
    store_n(static_cast<T*>(b.y) + row * b.ldy + i, dy * gelu_derivative(load_n(static_cast<const T*>(b.u) + row * b.ldu + i, n)), n);
  }
}

template <typename T, FinishKind kKind>
void finish_block(const GemmBlock& block) {
  for (int64_t row = 0; row < block.rows; ++row)
    for_lanes(block.columns, [&](int64_t i, int64_t n) { finish_lanes<T, kKind>(block, row, i, n); });
}

/// The part of a block of bf16 at (row, column); c and ldc are those of the part.
ORRERY_INLINE GemmBlock part_of(const GemmBlock& whole, FinishKind kind, int64_t row, int64_t rows, int64_t column, int64_t columns, const float* c,
                                int64_t ldc) {
  const auto moved = [&](const void* p, int64_t stride, int64_t bytes) {
    return p == nullptr ? nullptr : const_cast<char*>(static_cast<const char*>(p)) + (row * stride + column) * bytes;
  };
  GemmBlock part = whole;
  part.rows = rows;
  part.columns = columns;
  part.c = c;
  part.ldc = ldc;
  part.bias = whole.bias == nullptr ? nullptr : static_cast<const uint16_t*>(whole.bias) + column;
  part.y = moved(whole.y, whole.ldy, kind == FinishKind::kF32 ? 4 : 2);
  part.u = moved(whole.u, whole.ldu, 2);
  part.gelu_y = moved(whole.gelu_y, whole.ld_gelu, 2);
  return part;
}

}  // namespace orrery::ORRERY_SIMD
