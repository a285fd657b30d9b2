// Body of gemm_rows_avx2.cpp and gemm_rows_avx512.cpp. T is the compute dtype's storage: uint16_t (bf16) or float.
#include "backend/cpu/gemm_finish.h"

namespace orrery::ORRERY_SIMD {
namespace {

void add_blocks(int64_t rows, int64_t columns, float* lower, int64_t ld_lower, const float* upper, int64_t ld_upper) {
  for (int64_t row = 0; row < rows; ++row) {
    float* to = lower + row * ld_lower;
    const float* from = upper + row * ld_upper;
    for_lanes(columns, [&](int64_t i, int64_t n) { store_n(to + i, load_n(to + i, n) + load_n(from + i, n), n); });
  }
}

// Every lane is a token: nothing is reduced across lanes, and the sum of a block runs over its rows in order. Sixteen tokens are
// half a cache line of bf16, so two groups go side by side.
template <typename T>
void softmax_sums(const void* block, int64_t ld, int64_t rows, int64_t columns, float* top, float* sum) {
  const T* logits = static_cast<const T*>(block);
  const auto group = [&](int64_t row, int64_t num_rows, int64_t i, int64_t n) {
    const T* first = logits + row * ld + i;
    const F32x16 old_top = load_n(top + i, n);
    F32x16 new_top = old_top;
    for (int64_t r = 0; r < num_rows; ++r) new_top = max(new_top, load_n(first + r * ld, n));
    F32x16 part = zero();
    for (int64_t r = 0; r < num_rows; ++r) part = part + exp_nonpositive(load_n(first + r * ld, n) - new_top);
    store_n(top + i, new_top, n);
    store_n(sum + i, load_n(sum + i, n) * exp_nonpositive(old_top - new_top) + part, n);
  };
  for (int64_t row = 0; row < rows; row += kSoftmaxBlock) {
    const int64_t num_rows = rows - row < kSoftmaxBlock ? rows - row : kSoftmaxBlock;
    for_lanes(columns, [&](int64_t i, int64_t n) { group(row, num_rows, i, n); });
  }
}

void log_sums(int64_t columns, const float* top, const float* sum, float* lse) {
  for_lanes(columns, [&](int64_t i, int64_t n) { store_n(lse + i, load_n(top + i, n) + log(load_n(sum + i, n)), n); });
}

template <typename T>
void softmax_grad(void* block, int64_t ld, int64_t rows, int64_t columns, const float* lse, const int32_t* targets, int64_t first_row) {
  T* logits = static_cast<T*>(block);
  for_lanes(columns, [&](int64_t i, int64_t n) {
    alignas(64) float at_target[16], masked[16];
    for (int64_t j = 0; j < n; ++j) {
      const int64_t row = targets[i + j] - first_row;
      masked[j] = targets[i + j] < 0 ? -1.0f : 0.0f;
      if (targets[i + j] < 0 || row < 0 || row >= rows) continue;
      // One lane of the same function; rounded once, after the subtraction.
      alignas(64) float lanes[16];
      store(lanes, exp_nonpositive(load_first(logits + row * ld + i + j, 1) - splat(lse[i + j])) - splat(1.0f));
      at_target[j] = lanes[0];
    }
    const Mask16 no_target = load_n(masked, n) < zero();
    const F32x16 subtrahend = load_n(lse + i, n);
    for (int64_t r = 0; r < rows; ++r)
      store_n(logits + r * ld + i, select(no_target, zero(), exp_nonpositive(load_n(logits + r * ld + i, n) - subtrahend)), n);
    for (int64_t j = 0; j < n; ++j) {
      const int64_t row = targets[i + j] - first_row;
      if (targets[i + j] >= 0 && row >= 0 && row < rows) store_first(logits + row * ld + i + j, splat(at_target[j]), 1);
    }
  });
}

template <typename T>
constexpr GemmRows kTable = {
    {finish_block<T, FinishKind::kPlain>, finish_block<T, FinishKind::kF32>, finish_block<T, FinishKind::kGelu>, finish_block<T, FinishKind::kGeluGrad>},
    add_blocks,
    softmax_sums<T>,
    log_sums,
    softmax_grad<T>};

}  // namespace

extern const GemmRows kGemmRowsBf16, kGemmRowsF32;
const GemmRows kGemmRowsBf16 = kTable<uint16_t>;
const GemmRows kGemmRowsF32 = kTable<float>;

}  // namespace orrery::ORRERY_SIMD
