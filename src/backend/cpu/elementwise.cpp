// Elementwise ops: kAdd, kMul, kSilu, kGelu, their gradients, and the fused SwiGLU. Operands are contiguous, except those of
// SwiGLU, whose rows may be strided. Bits: independent of threads and instruction set.
#include "backend/cpu/ops.h"
#include "backend/cpu/row_kernels.h"
#include "base/bfloat16.h"

namespace orrery {
namespace {

using Binary = void (*RowKernels::*)(const void*, const void*, void*, int64_t);
using Unary = void (*RowKernels::*)(const void*, void*, int64_t);

void check_elementwise(const OpCall& call) {
  const TensorView& y = call.out(0);
  ORRERY_CHECK(y.contiguous(), "{}: rows {} apart", op_name(call.kind), y.row_stride);
  for (const TensorView& x : call.inputs)
    ORRERY_CHECK(x.contiguous() && x.dtype == y.dtype && x.num_elements() == y.num_elements(), "{}: {} and {} elements",
                 op_name(call.kind), x.num_elements(), y.num_elements());
}

template <Binary kKernel>
void run_binary(const KernelContext& context, const OpCall& call) {
  check_elementwise(call);
  const TensorView &a = call.in(0), &b = call.in(1), &y = call.out(0);
  const auto kernel = row_kernels(context.isa, y.dtype).*kKernel;
  const int64_t size = dtype_bytes(y.dtype);
  context.pool->parallel_for(y.num_elements(), kBytesWorthAThread / size, [&](int64_t begin, int64_t end) {
    kernel(a.data + begin * size, b.data + begin * size, y.data + begin * size, end - begin);
  });
}

template <Unary kKernel>
void run_unary(const KernelContext& context, const OpCall& call) {
  check_elementwise(call);
  const TensorView &x = call.in(0), &y = call.out(0);
  const auto kernel = row_kernels(context.isa, y.dtype).*kKernel;
  const int64_t size = dtype_bytes(y.dtype);
  context.pool->parallel_for(y.num_elements(), kBytesWorthAThread / size, [&](int64_t begin, int64_t end) {
    kernel(x.data + begin * size, y.data + begin * size, end - begin);
  });
}

void run_scale(const KernelContext& context, const OpCall& call) {
  check_elementwise(call);
  const TensorView &x = call.in(0), &y = call.out(0);
  const float factor = call.attribute<ScaleAttributes>().factor;
  const bool bf16 = y.dtype == DType::kBF16;
  context.pool->parallel_for(y.num_elements(), kBytesWorthAThread / dtype_bytes(y.dtype), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (bf16)
        y.as<uint16_t>()[i] = f32_to_bf16(factor * bf16_to_f32(x.as<uint16_t>()[i]));
      else
        y.as<float>()[i] = factor * x.as<float>()[i];
    }
  });
}

void run_swiglu(const KernelContext& context, const OpCall& call) {
  const TensorView &gate_up = call.in(0), &h = call.out(0);
  const int64_t width = h.row_width(), size = dtype_bytes(h.dtype);
  ORRERY_CHECK(gate_up.row_width() == 2 * width && gate_up.rows() == h.rows(), "swiglu of {} to {}", gate_up.row_width(),
               width);
  const RowKernels& kernels = row_kernels(context.isa, h.dtype);
  parallel_rows(*context.pool, h.rows(), width * size, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const std::byte* gate = row_at(gate_up, row);
      kernels.swiglu(gate, gate + width * size, row_at(h, row), width);
    }
  });
}

void run_swiglu_grad(const KernelContext& context, const OpCall& call) {
  const TensorView &dh = call.in(0), &gate_up = call.in(1), &dgate_up = call.out(0);
  const int64_t width = dh.row_width(), size = dtype_bytes(dh.dtype);
  ORRERY_CHECK(gate_up.row_width() == 2 * width && dgate_up.row_width() == 2 * width && gate_up.rows() == dh.rows(),
               "swiglu_grad of {} to {}", gate_up.row_width(), width);
  const RowKernels& kernels = row_kernels(context.isa, dh.dtype);
  parallel_rows(*context.pool, dh.rows(), width * size, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const std::byte* gate = row_at(gate_up, row);
      std::byte* dgate = row_at(dgate_up, row);
      kernels.swiglu_grad(row_at(dh, row), gate, gate + width * size, dgate, dgate + width * size, width);
    }
  });
}

constexpr KernelEntry kEntries[] = {
    {OpKind::kAdd, DType::kBF16, run_binary<&RowKernels::add>},
    {OpKind::kAdd, DType::kF32, run_binary<&RowKernels::add>},
    {OpKind::kMul, DType::kBF16, run_binary<&RowKernels::mul>},
    {OpKind::kMul, DType::kF32, run_binary<&RowKernels::mul>},
    {OpKind::kScale, DType::kBF16, run_scale},
    {OpKind::kScale, DType::kF32, run_scale},
    {OpKind::kSilu, DType::kBF16, run_unary<&RowKernels::silu>},
    {OpKind::kSilu, DType::kF32, run_unary<&RowKernels::silu>},
    {OpKind::kGelu, DType::kBF16, run_unary<&RowKernels::gelu>},
    {OpKind::kGelu, DType::kF32, run_unary<&RowKernels::gelu>},
    {OpKind::kSiluGrad, DType::kBF16, run_binary<&RowKernels::silu_grad>},
    {OpKind::kSiluGrad, DType::kF32, run_binary<&RowKernels::silu_grad>},
    {OpKind::kGeluGrad, DType::kBF16, run_binary<&RowKernels::gelu_grad>},
    {OpKind::kGeluGrad, DType::kF32, run_binary<&RowKernels::gelu_grad>},
    {OpKind::kSwiGlu, DType::kBF16, run_swiglu},
    {OpKind::kSwiGlu, DType::kF32, run_swiglu},
    {OpKind::kSwiGluGrad, DType::kBF16, run_swiglu_grad},
    {OpKind::kSwiGluGrad, DType::kF32, run_swiglu_grad},
};

}  // namespace

std::span<const KernelEntry> elementwise_kernels() { return kEntries; }

}  // namespace orrery
