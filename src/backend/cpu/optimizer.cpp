// The optimizer phase: kZero, kAccumulate, kCopy, kSquaredSums, kOptimizerScale, kAdamW, kSgd, kLion.
//
// Gradient buffers hold G = loss_scale * (sum over the step's valid tokens of d token_loss). With n = num_valid_tokens and
// s = loss_scale, the mean gradient is G / (s n), and kOptimizerScale (sums, num_valid_tokens, hyper) -> (scale, stats) gives
//
//   norm        = sqrt(sum of sums, in order) / (s n)            f64: the norm of the mean gradient over all parameters
//   clip_factor = clip > 0 ? min(1, clip / (norm + 1e-6)) : 1    PyTorch's clip_grad_norm_
//   scale[0]    = clip_factor / (s n)                            what the updates multiply G with, rounded once to f32
//   scale[1]    = 1 if n > 0 and norm is finite, else 0          0: every update leaves weights and moments untouched
//   stats       = {norm, clip_factor, n, scale[1]}               norm is NaN or infinite as found; 0 when n = 0
//
// All updates are elementwise: (weight high [n], weight low [n], m [n] (, v [n])) in place, or (weight, m (, v)) when the
// weight is f32. Decay applies when OptimizerAttributes::decay is set. AdamW and Lion decay the weight itself, w *= 1 - lr * wd
// (decoupled); SGD adds wd * w to the gradient, as PyTorch's SGD does.
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/ops.h"
#include "backend/cpu/optimizer_kernels.h"

namespace orrery {

namespace simd_avx2 {
extern const OptimizerKernels kOptimizerKernels;
}
namespace simd_avx512 {
extern const OptimizerKernels kOptimizerKernels;
}

const OptimizerKernels& optimizer_range_kernels(VectorIsa isa) {
  return isa == VectorIsa::kAvx512 ? simd_avx512::kOptimizerKernels : simd_avx2::kOptimizerKernels;
}

namespace {

constexpr int64_t kNormBlock = 4096;  // NUMERICS rule 8

OptimizerHyper read_hyper(const TensorView& view) {
  ORRERY_CHECK(view.num_elements() * dtype_bytes(view.dtype) >= static_cast<int64_t>(sizeof(OptimizerHyper)),
               "hyper of {} bytes", view.num_elements() * dtype_bytes(view.dtype));
  OptimizerHyper hyper;
  std::memcpy(&hyper, view.data, sizeof hyper);
  return hyper;
}

void run_zero(const KernelContext& context, const OpCall& call) {
  const TensorView& y = call.out(0);
  if (call.fold != nullptr && call.fold->add_to_destination) return;
  ORRERY_CHECK(y.contiguous(), "zero: rows {} apart", y.row_stride);
  context.pool->parallel_for(y.num_elements() * dtype_bytes(y.dtype), kBytesWorthAThread,
                             [&](int64_t begin, int64_t end) { std::memset(y.data + begin, 0, end - begin); });
}

void run_accumulate(const KernelContext& context, const OpCall& call) {
  const TensorView &source = call.in(0), &destination = call.out(0);
  ORRERY_CHECK(source.contiguous() && destination.contiguous() && source.num_elements() == destination.num_elements(),
               "accumulate {} into {}", source.num_elements(), destination.num_elements());
  const OptimizerKernels& kernels = optimizer_range_kernels(context.isa);
  context.pool->parallel_for(source.num_elements(), kBytesWorthAThread / 4, [&](int64_t begin, int64_t end) {
    kernels.accumulate(source.as<float>() + begin, destination.as<float>() + begin, end - begin);
  });
}

void run_copy(const KernelContext& context, const OpCall& call) {
  const TensorView &source = call.in(0), &destination = call.out(0);
  ORRERY_CHECK(source.contiguous() && destination.contiguous() && source.dtype == destination.dtype && source.num_elements() == destination.num_elements(), "copy {} to {}",
               source.num_elements(), destination.num_elements());
  context.pool->parallel_for(source.num_elements() * dtype_bytes(source.dtype), kBytesWorthAThread,
                             [&](int64_t begin, int64_t end) { std::memcpy(destination.data + begin, source.data + begin, end - begin); });
}

void run_squared_sums(const KernelContext& context, const OpCall& call) {
  const TensorView &gradient = call.in(0), &sums = call.out(0);
  const int64_t count = gradient.num_elements(), num_blocks = (count + kNormBlock - 1) / kNormBlock;
  ORRERY_CHECK(gradient.contiguous() && sums.num_elements() == num_blocks, "{} blocks of {} elements", sums.num_elements(),
               count);
  const OptimizerKernels& kernels = optimizer_range_kernels(context.isa);
  context.pool->parallel_for(num_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kNormBlock;
      sums.as<double>()[block] = kernels.squared_sum(gradient.as<float>() + first, std::min(kNormBlock, count - first));
    }
  });
}

void run_optimizer_scale(const KernelContext&, const OpCall& call) {
  const TensorView& sums = call.in(0);
  const int32_t num_valid = *call.in(1).as<int32_t>();
  const OptimizerHyper hyper = read_hyper(call.in(2));
  double total = 0;
  for (int64_t i = 0; i < sums.num_elements(); ++i) total += sums.as<double>()[i];
  const double divisor = double{hyper.loss_scale} * num_valid;
  const double norm = num_valid > 0 ? std::sqrt(total) / divisor : 0.0;
  const bool taken = num_valid > 0 && std::isfinite(norm);
  double clip_factor = 1;
  if (taken && hyper.clip > 0) clip_factor = std::min(1.0, hyper.clip / (norm + 1e-6));
  float* scale = call.out(0).as<float>();
  scale[0] = taken ? static_cast<float>(clip_factor / divisor) : 0.0f;
  scale[1] = taken ? 1.0f : 0.0f;
  double* stats = call.out(1).as<double>();
  stats[0] = norm;
  stats[1] = clip_factor;
  stats[2] = num_valid;
  stats[3] = scale[1];
}

// The whole parameter as one range; outputs are in the order (high, low, m, v) or (weight, m, v).
UpdateRange whole_range(const OpCall& call, const OptimizerHyper& hyper, bool has_v) {
  UpdateRange range;
  const bool split = call.out(0).dtype == DType::kBF16;
  const size_t first_moment = split ? 2 : 1;
  ORRERY_CHECK(call.outputs.size() == first_moment + (has_v ? 2 : 1), "{}: {} outputs", op_name(call.kind),
               call.outputs.size());
  range.count = call.in(0).num_elements();
  for (const TensorView& view : call.outputs)
    ORRERY_CHECK(view.contiguous() && view.num_elements() == range.count, "{}: state of {} for {}", op_name(call.kind),
                 view.num_elements(), range.count);
  range.gradient = call.in(0).as<float>();
  if (split) {
    range.high = call.out(0).as<uint16_t>();
    range.low = call.out(1).as<int16_t>();
  } else {
    range.weight_f32 = call.out(0).as<float>();
  }
  range.m = call.out(first_moment).data;
  range.moments_bf16 = call.out(first_moment).dtype == DType::kBF16;
  if (has_v) {
    range.v = call.out(first_moment + 1).data;
    ORRERY_CHECK(call.out(first_moment + 1).dtype == call.out(first_moment).dtype, "moments of two types");
  }
  range.gradient_scale = call.in(1).as<float>()[0];
  const bool decay = call.attribute<OptimizerAttributes>().decay;
  const float rate = decay ? hyper.weight_decay : 0.0f;
  range.beta1 = hyper.beta1;
  range.beta2 = hyper.beta2;
  range.eps = hyper.eps;
  range.keep = static_cast<float>(1.0 - double{hyper.lr} * rate);
  range.step = hyper.lr;
  if (call.kind == OpKind::kAdamW) {
    range.step = static_cast<float>(double{hyper.lr} / hyper.bias_correction1);
    range.inverse_correction2 = static_cast<float>(1.0 / double{hyper.bias_correction2});
  } else if (call.kind == OpKind::kSgd) {
    range.beta1 = hyper.momentum;
    range.keep = 1;
    range.coupled_decay = rate;
  }
  return range;
}

UpdateRange part_of(const UpdateRange& whole, int64_t begin, int64_t end) {
  UpdateRange part = whole;
  const int64_t moment_bytes = whole.moments_bf16 ? 2 : 4;
  part.count = end - begin;
  part.gradient += begin;
  if (part.weight_f32 != nullptr) {
    part.weight_f32 += begin;
  } else {
    part.high += begin;
    part.low += begin;
  }
  part.m = static_cast<std::byte*>(whole.m) + begin * moment_bytes;
  if (whole.v != nullptr) part.v = static_cast<std::byte*>(whole.v) + begin * moment_bytes;
  return part;
}

template <void (*OptimizerKernels::*kKernel)(const UpdateRange&)>
void run_update(const KernelContext& context, const OpCall& call) {
  if (call.in(1).as<float>()[1] == 0.0f) return;  // the step is skipped
  const UpdateRange whole = whole_range(call, read_hyper(call.in(2)), call.kind == OpKind::kAdamW);
  const auto kernel = optimizer_range_kernels(context.isa).*kKernel;
  context.pool->parallel_for(whole.count, kBytesWorthAThread / 4,
                             [&](int64_t begin, int64_t end) { kernel(part_of(whole, begin, end)); });
}

constexpr KernelEntry kEntries[] = {
    {OpKind::kZero, DType::kBF16, run_zero},
    {OpKind::kZero, DType::kF32, run_zero},
    {OpKind::kAccumulate, DType::kBF16, run_accumulate},
    {OpKind::kAccumulate, DType::kF32, run_accumulate},
    {OpKind::kCopy, DType::kBF16, run_copy},
    {OpKind::kCopy, DType::kF32, run_copy},
    {OpKind::kSquaredSums, DType::kBF16, run_squared_sums},
    {OpKind::kSquaredSums, DType::kF32, run_squared_sums},
    {OpKind::kOptimizerScale, DType::kBF16, run_optimizer_scale},
    {OpKind::kOptimizerScale, DType::kF32, run_optimizer_scale},
    {OpKind::kAdamW, DType::kBF16, run_update<&OptimizerKernels::adamw>},
    {OpKind::kAdamW, DType::kF32, run_update<&OptimizerKernels::adamw>},
    {OpKind::kSgd, DType::kBF16, run_update<&OptimizerKernels::sgd>},
    {OpKind::kSgd, DType::kF32, run_update<&OptimizerKernels::sgd>},
    {OpKind::kLion, DType::kBF16, run_update<&OptimizerKernels::lion>},
    {OpKind::kLion, DType::kF32, run_update<&OptimizerKernels::lion>},
};

}  // namespace

std::span<const KernelEntry> optimizer_kernels() { return kEntries; }

}  // namespace orrery
