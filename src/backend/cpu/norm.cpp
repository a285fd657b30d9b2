// kRmsNorm, kLayerNorm, their gradients, and the versions fused with the residual addition before or after them.
//
// Forward and dx: rows are cut among threads. Parameter gradients: the unit is one packed sequence, summed from +0 in row order
// and combined by GradFold (NUMERICS rule 3). With at least as many sequences as threads a thread takes whole sequences and
// reads its rows once; otherwise dx is cut by rows and the sums by columns, which adds the same numbers in the same order.
#include <algorithm>

#include "backend/cpu/fold.h"
#include "backend/cpu/ops.h"
#include "backend/cpu/row_kernels.h"

namespace orrery {
namespace {

// Sequences whose sums stand in workspace at once.
constexpr int64_t kBatchSequences = 32;

struct NormKind {
  bool layer_norm;
  bool fused;  // with the residual addition
};
constexpr NormKind norm_kind(OpKind kind) {
  switch (kind) {
    case OpKind::kRmsNorm:
    case OpKind::kRmsNormGrad:
      return {false, false};
    case OpKind::kAddRmsNorm:
    case OpKind::kRmsNormGradAdd:
      return {false, true};
    case OpKind::kLayerNorm:
    case OpKind::kLayerNormGrad:
      return {true, false};
    default:
      return {true, true};
  }
}

void run_norm(const KernelContext& context, const OpCall& call) {
  const auto [layer_norm, fused] = norm_kind(call.kind);
  const auto& attributes = call.attribute<NormAttributes>();
  const TensorView& x = call.in(0);
  const TensorView& weight = call.in(fused ? 2 : 1);
  const TensorView& y = call.out(fused ? 1 : 0);
  const int64_t width = x.row_width();
  const int64_t group_width = attributes.group_width > 0 ? attributes.group_width : width;
  ORRERY_CHECK(width % group_width == 0 && weight.num_elements() == group_width, "{}: row of {}, group {}, weight {}",
               op_name(call.kind), width, group_width, weight.num_elements());
  ORRERY_CHECK(!layer_norm || group_width == width, "layer_norm has no groups");
  const TensorView& last = call.outputs.back();
  ORRERY_CHECK(last.contiguous() && last.num_elements() == x.rows() * (width / group_width), "{}: statistics",
               op_name(call.kind));
  const RowKernels& kernels = row_kernels(context.isa, x.dtype);
  parallel_rows(*context.pool, x.rows(), width * dtype_bytes(x.dtype), [&](int64_t begin, int64_t end) {
    NormRows rows;
    rows.num_rows = end - begin;
    rows.width = width;
    rows.group_width = group_width;
    rows.eps = attributes.eps;
    rows.x = row_at(x, begin);
    rows.x_stride = x.row_stride;
    rows.weight = weight.data;
    rows.y = row_at(y, begin);
    rows.y_stride = y.row_stride;
    rows.rstd = last.as<float>() + begin * (width / group_width);
    if (fused) {
      rows.b = row_at(call.in(1), begin);
      rows.b_stride = call.in(1).row_stride;
      rows.sum = row_at(call.out(0), begin);
      rows.sum_stride = call.out(0).row_stride;
    }
    if (layer_norm) {
      rows.bias = call.in(fused ? 3 : 2).data;
      rows.mean = call.outputs[call.outputs.size() - 2].as<float>() + begin;
    }
    (layer_norm ? kernels.layer_norm : kernels.rms_norm)(rows);
  });
}

// dweight and, for LayerNorm, dbias behind it: one row of sums.
int64_t sum_width(const OpCall& call) {
  const int64_t group_width = call.in(2).num_elements();
  return norm_kind(call.kind).layer_norm ? 2 * group_width : group_width;
}

int64_t norm_grad_workspace(const DeviceSpec&, const OpCall& call) {
  return (kBatchSequences + kFoldEntries) * sum_width(call) * static_cast<int64_t>(sizeof(float));
}

// The operands for rows [begin, end), without what is to be written.
NormGradRows grad_rows(const OpCall& call, int64_t begin, int64_t end) {
  const auto [layer_norm, fused] = norm_kind(call.kind);
  const TensorView &dy = call.in(0), &x = call.in(1);
  NormGradRows rows;
  rows.num_rows = end - begin;
  rows.width = x.row_width();
  rows.group_width = call.in(2).num_elements();
  rows.dy = row_at(dy, begin);
  rows.dy_stride = dy.row_stride;
  rows.x = row_at(x, begin);
  rows.x_stride = x.row_stride;
  rows.weight = call.in(2).data;
  if (layer_norm) rows.mean = call.in(3).as<float>() + begin;
  rows.rstd = call.in(layer_norm ? 4 : 3).as<float>() + begin * (rows.width / rows.group_width);
  if (fused) {
    const TensorView& dresidual = call.inputs.back();
    rows.dresidual = row_at(dresidual, begin);
    rows.dresidual_stride = dresidual.row_stride;
  }
  return rows;
}

void set_dx(const OpCall& call, int64_t begin, NormGradRows& rows) {
  rows.dx = row_at(call.out(0), begin);
  rows.dx_stride = call.out(0).row_stride;
}

void set_sums(float* sums, int64_t first_column, int64_t last_column, NormGradRows& rows) {
  rows.dweight = sums;
  rows.dbias = sums + rows.group_width;
  rows.first_column = first_column;
  rows.last_column = last_column;
}

// dx of sequences [first, first + count) and their sums, to `partial`.
void sequences_grad(const KernelContext& context, const OpCall& call, int64_t first, int64_t count, float* partial) {
  const bool layer_norm = norm_kind(call.kind).layer_norm;
  const RowKernels& kernels = row_kernels(context.isa, call.in(1).dtype);
  const auto kernel = layer_norm ? kernels.layer_norm_grad : kernels.rms_norm_grad;
  const int64_t tokens = call.fold->sequence_tokens, width = sum_width(call), columns = call.in(2).num_elements();
  std::fill(partial, partial + count * width, 0.0f);
  if (count >= context.pool->num_threads()) {
    context.pool->parallel_for(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = (first + i) * tokens;
        NormGradRows rows = grad_rows(call, row, row + tokens);
        set_dx(call, row, rows);
        set_sums(partial + i * width, 0, columns, rows);
        kernel(rows);
      }
    });
    return;
  }
  const int64_t row_bytes = call.in(1).row_width() * dtype_bytes(call.in(1).dtype);
  parallel_rows(*context.pool, count * tokens, row_bytes, [&](int64_t begin, int64_t end) {
    NormGradRows rows = grad_rows(call, first * tokens + begin, first * tokens + end);
    set_dx(call, first * tokens + begin, rows);
    kernel(rows);
  });
  context.pool->parallel_for(columns, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < count; ++i) {
      NormGradRows rows = grad_rows(call, (first + i) * tokens, (first + i + 1) * tokens);
      set_sums(partial + i * width, begin, end, rows);
      kernel(rows);
    }
  });
}

void run_norm_grad(const KernelContext& context, const OpCall& call) {
  const bool layer_norm = norm_kind(call.kind).layer_norm;
  const GradFold& fold = *call.fold;
  const int64_t width = sum_width(call), columns = call.in(2).num_elements();
  ORRERY_CHECK(fold.num_sequences * fold.sequence_tokens == call.in(1).rows(), "{} sequences of {} in {} rows",
               fold.num_sequences, fold.sequence_tokens, call.in(1).rows());
  ORRERY_CHECK(static_cast<int64_t>(call.workspace.size()) >= norm_grad_workspace({}, call), "{}: workspace",
               op_name(call.kind));
  float* partial = reinterpret_cast<float*>(call.workspace.data());
  float* entries = partial + kBatchSequences * width;
  FoldStack weight_stack(entries, width, columns), bias_stack(entries + columns, width, columns);
  float* dweight = call.out(1).as<float>();
  float* dbias = layer_norm ? call.out(2).as<float>() : nullptr;
  if (fold.add_to_destination) {
    weight_stack.push(dweight);
    if (layer_norm) bias_stack.push(dbias);
  }
  for (int64_t first = 0; first < fold.num_sequences; first += kBatchSequences) {
    const int64_t count = std::min(kBatchSequences, fold.num_sequences - first);
    sequences_grad(context, call, first, count, partial);
    for (int64_t i = 0; i < count; ++i) {
      weight_stack.push(partial + i * width);
      weight_stack.merge(fold.merges[first + i]);
      if (layer_norm) {
        bias_stack.push(partial + i * width + columns);
        bias_stack.merge(fold.merges[first + i]);
      }
    }
  }
  if (fold.num_sequences == 0) return;
  std::copy_n(weight_stack.result(), columns, dweight);
  if (layer_norm) std::copy_n(bias_stack.result(), columns, dbias);
}

constexpr KernelEntry kEntries[] = {
    {OpKind::kRmsNorm, DType::kBF16, run_norm},
    {OpKind::kRmsNorm, DType::kF32, run_norm},
    {OpKind::kAddRmsNorm, DType::kBF16, run_norm},
    {OpKind::kAddRmsNorm, DType::kF32, run_norm},
    {OpKind::kLayerNorm, DType::kBF16, run_norm},
    {OpKind::kLayerNorm, DType::kF32, run_norm},
    {OpKind::kAddLayerNorm, DType::kBF16, run_norm},
    {OpKind::kAddLayerNorm, DType::kF32, run_norm},
    {OpKind::kRmsNormGrad, DType::kBF16, run_norm_grad, norm_grad_workspace},
    {OpKind::kRmsNormGrad, DType::kF32, run_norm_grad, norm_grad_workspace},
    {OpKind::kRmsNormGradAdd, DType::kBF16, run_norm_grad, norm_grad_workspace},
    {OpKind::kRmsNormGradAdd, DType::kF32, run_norm_grad, norm_grad_workspace},
    {OpKind::kLayerNormGrad, DType::kBF16, run_norm_grad, norm_grad_workspace},
    {OpKind::kLayerNormGrad, DType::kF32, run_norm_grad, norm_grad_workspace},
    {OpKind::kLayerNormGradAdd, DType::kBF16, run_norm_grad, norm_grad_workspace},
    {OpKind::kLayerNormGradAdd, DType::kF32, run_norm_grad, norm_grad_workspace},
};

}  // namespace

std::span<const KernelEntry> norm_kernels() { return kEntries; }

}  // namespace orrery
