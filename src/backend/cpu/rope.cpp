// kRope, kSplitRope and their gradients: rotation of the first rotary_dim numbers of each head in pairs (i, i + rotary_dim /
// 2), Hugging Face's order. The rotation keeps no sums, so every row stands alone.
#include <cstring>

#include "backend/cpu/ops.h"
#include "backend/cpu/row_kernels.h"

namespace orrery {
namespace {

// Rotates `num_heads` heads of rows [begin, end) from column `x_column` of x to column `y_column` of y.
void rotate(const KernelContext& context, const OpCall& call, const TensorView& positions, const TensorView& table,
            bool backward, int64_t num_heads, const TensorView& x, int64_t x_column, const TensorView& y, int64_t y_column,
            int64_t begin, int64_t end) {
  const auto& attributes = call.attribute<RopeAttributes>();
  const int64_t size = dtype_bytes(x.dtype);
  RopeRows rows;
  rows.num_rows = end - begin;
  rows.num_heads = num_heads;
  rows.head_dim = attributes.head_dim;
  rows.rotary_dim = attributes.rotary_dim;
  rows.x = row_at(x, begin) + x_column * size;
  rows.x_stride = x.row_stride;
  rows.y = row_at(y, begin) + y_column * size;
  rows.y_stride = y.row_stride;
  rows.positions = positions.as<int32_t>() + begin;
  rows.table = table.as<float>();
  rows.backward = backward;
  row_kernels(context.isa, x.dtype).rope(rows);
}

void copy_columns(const TensorView& x, int64_t x_column, const TensorView& y, int64_t y_column, int64_t width, int64_t begin,
                  int64_t end) {
  const int64_t size = dtype_bytes(x.dtype);
  for (int64_t row = begin; row < end; ++row)
    std::memcpy(row_at(y, row) + y_column * size, row_at(x, row) + x_column * size, width * size);
}

void check_rope(const OpCall& call) {
  const auto& a = call.attribute<RopeAttributes>();
  ORRERY_CHECK(a.rotary_dim % 2 == 0 && a.rotary_dim <= a.head_dim && a.rotary_dim / 2 <= kMaxRotaryHalf,
               "rotary_dim {} of head_dim {}", a.rotary_dim, a.head_dim);
}

template <bool kBackward>
void run_rope(const KernelContext& context, const OpCall& call) {
  check_rope(call);
  const TensorView &x = call.in(0), &y = call.out(0);
  const auto& a = call.attribute<RopeAttributes>();
  ORRERY_CHECK(x.row_width() == a.num_heads * a.head_dim && y.row_width() == x.row_width(), "rope of {}", x.row_width());
  parallel_rows(*context.pool, x.rows(), x.row_width() * dtype_bytes(x.dtype), [&](int64_t begin, int64_t end) {
    rotate(context, call, call.in(1), call.in(2), kBackward, a.num_heads, x, 0, y, 0, begin, end);
  });
}

void run_split_rope(const KernelContext& context, const OpCall& call) {
  check_rope(call);
  const auto& a = call.attribute<RopeAttributes>();
  const TensorView& qkv = call.in(0);
  const int64_t q_width = a.num_heads * a.head_dim, kv_width = a.num_kv_heads * a.head_dim;
  ORRERY_CHECK(qkv.row_width() == q_width + 2 * kv_width, "split_rope of {}", qkv.row_width());
  parallel_rows(*context.pool, qkv.rows(), qkv.row_width() * dtype_bytes(qkv.dtype), [&](int64_t begin, int64_t end) {
    rotate(context, call, call.in(1), call.in(2), false, a.num_heads, qkv, 0, call.out(0), 0, begin, end);
    rotate(context, call, call.in(1), call.in(2), false, a.num_kv_heads, qkv, q_width, call.out(1), 0, begin, end);
    copy_columns(qkv, q_width + kv_width, call.out(2), 0, kv_width, begin, end);
  });
}

void run_split_rope_grad(const KernelContext& context, const OpCall& call) {
  check_rope(call);
  const auto& a = call.attribute<RopeAttributes>();
  const TensorView& dqkv = call.out(0);
  const int64_t q_width = a.num_heads * a.head_dim, kv_width = a.num_kv_heads * a.head_dim;
  ORRERY_CHECK(dqkv.row_width() == q_width + 2 * kv_width, "split_rope_grad to {}", dqkv.row_width());
  parallel_rows(*context.pool, dqkv.rows(), dqkv.row_width() * dtype_bytes(dqkv.dtype), [&](int64_t begin, int64_t end) {
    rotate(context, call, call.in(3), call.in(4), true, a.num_heads, call.in(0), 0, dqkv, 0, begin, end);
    rotate(context, call, call.in(3), call.in(4), true, a.num_kv_heads, call.in(1), 0, dqkv, q_width, begin, end);
    copy_columns(call.in(2), 0, dqkv, q_width + kv_width, kv_width, begin, end);
  });
}

constexpr KernelEntry kEntries[] = {
    {OpKind::kRope, DType::kBF16, run_rope<false>},
    {OpKind::kRope, DType::kF32, run_rope<false>},
    {OpKind::kRopeGrad, DType::kBF16, run_rope<true>},
    {OpKind::kRopeGrad, DType::kF32, run_rope<true>},
    {OpKind::kSplitRope, DType::kBF16, run_split_rope},
    {OpKind::kSplitRope, DType::kF32, run_split_rope},
    {OpKind::kSplitRopeGrad, DType::kBF16, run_split_rope_grad},
    {OpKind::kSplitRopeGrad, DType::kF32, run_split_rope_grad},
};

}  // namespace

std::span<const KernelEntry> rope_kernels() { return kEntries; }

}  // namespace orrery
