// Body of gemm_rows_avx2.cpp and gemm_rows_avx512.cpp. T is the compute dtype's storage: uint16_t (bf16) or float.
#include "backend/cpu/gemm_finish.h"

namespace orrery::ORRERY_SIMD {
namespace {

template <typename T, FinishKind kKind>
void finish(const GemmBlock& block) {
  for (int64_t row = 0; row < block.rows; ++row)
    for_lanes(block.columns, [&](int64_t i, int64_t n) { finish_lanes<T, kKind>(block, row, i, n); });
}

void add_blocks(int64_t rows, int64_t columns, float* lower, int64_t ld_lower, const float* upper, int64_t ld_upper) {
  for (int64_t row = 0; row < rows; ++row) {
    float* to = lower + row * ld_lower;
    const float* from = upper + row * ld_upper;
    for_lanes(columns, [&](int64_t i, int64_t n) { store_n(to + i, load_n(to + i, n) + load_n(from + i, n), n); });
  }
}

// Four accumulators hide the latency of the additions; the order is part of the result.
template <typename T>
float log_sum_exp(const void* row, int64_t count) {
  const T* logits = static_cast<const T*>(row);
  const F32x16 lowest = splat(-__builtin_inff());
  F32x16 top0 = lowest, top1 = lowest;
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    top0 = max(top0, load(logits + i));
    top1 = max(top1, load(logits + i + kLanes));
  }
  for (; i < count; i += kLanes) {
    const int64_t n = count - i < kLanes ? count - i : kLanes;
    top0 = max(top0, select(first_lanes(n), load_n(logits + i, n), lowest));
  }
  const float top = reduce_max(max(top0, top1));
  F32x16 sum[4] = {zero(), zero(), zero(), zero()};
  for (i = 0; i + 4 * kLanes <= count; i += 4 * kLanes)
    for (int part = 0; part < 4; ++part) sum[part] = sum[part] + exp_nonpositive(load(logits + i + part * kLanes) - splat(top));
  for (; i < count; i += kLanes) {
    const int64_t n = count - i < kLanes ? count - i : kLanes;
    sum[0] = sum[0] + select(first_lanes(n), exp_nonpositive(load_n(logits + i, n) - splat(top)), zero());
  }
  alignas(64) float lanes[16];
  store(lanes, splat(top) + log(splat(reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3])))));
  return lanes[0];
}

template <typename T>
void softmax_grad(void* row, int64_t count, int64_t padded, int32_t target, float lse) {
  T* logits = static_cast<T*>(row);
  if (target < 0) count = 0;
  float target_grad = 0;
  if (target >= 0) {
    // One lane of the same function; rounded once, after the subtraction.
    alignas(64) float lanes[16];
    store(lanes, exp_nonpositive(load_first(logits + target, 1) - splat(lse)) - splat(1.0f));
    target_grad = lanes[0];
  }
  for_lanes(count, [&](int64_t i, int64_t n) { store_n(logits + i, exp_nonpositive(load_n(logits + i, n) - splat(lse)), n); });
  for_lanes(padded - count, [&](int64_t i, int64_t n) { store_n(logits + count + i, zero(), n); });
  if (target >= 0) store_first(logits + target, splat(target_grad), 1);
}

template <typename T>
constexpr GemmRows kTable = {
    {finish<T, FinishKind::kPlain>, finish<T, FinishKind::kF32>, finish<T, FinishKind::kGelu>, finish<T, FinishKind::kGeluGrad>},
    add_blocks,
    log_sum_exp<T>,
    softmax_grad<T>};

}  // namespace

extern const GemmRows kGemmRowsBf16, kGemmRowsF32;
const GemmRows kGemmRowsBf16 = kTable<uint16_t>;
const GemmRows kGemmRowsF32 = kTable<float>;

}  // namespace orrery::ORRERY_SIMD
