#include "runtime/tensor_collectives.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "base/portable_math.h"

namespace orrery {
namespace {

// Each rank has the losses and the log-sum-exps over its part of the vocabulary; their difference is the target's logit where the target is
// in that part, and 0 elsewhere.
struct Part {
  float lse, target_logit;
};

void all_reduce(Communicator& group, const KernelContext& context, const OpCall& call, std::string_view label) {
  const TensorView &x = call.in(0), &y = call.out(0);
  const int64_t row_bytes = y.row_width() * dtype_bytes(y.dtype), stride = x.row_stride * dtype_bytes(x.dtype);
  context.pool->parallel_for(y.rows(), std::max<int64_t>(1, 65536 / std::max<int64_t>(1, row_bytes)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) std::memcpy(y.data + row * row_bytes, x.data + row * stride, static_cast<size_t>(row_bytes));
  });
  group.all_reduce({y.data, static_cast<size_t>(y.rows() * row_bytes)}, y.dtype, label);
}

void vocabulary_loss(Communicator& group, const OpCall& call, std::string_view label) {
  const auto num_tokens = static_cast<size_t>(call.in(0).rows());
  const auto num_ranks = static_cast<size_t>(group.size()), rank = static_cast<size_t>(group.rank());
  ORRERY_CHECK(call.workspace.size() >= num_ranks * num_tokens * sizeof(Part), "vocabulary_loss: workspace of {}", call.workspace.size());
  const float *loss = call.in(0).as<float>(), *lse = call.in(1).as<float>();
  const int32_t* targets = call.in(2).as<int32_t>();
  const std::span<Part> parts(reinterpret_cast<Part*>(call.workspace.data()), num_ranks * num_tokens);
  const std::span<Part> mine = parts.subspan(rank * num_tokens, num_tokens);
  for (size_t i = 0; i < num_tokens; ++i) mine[i] = {lse[i], targets[i] < 0 ? 0.0f : lse[i] - loss[i]};
  group.all_gather(std::as_bytes(mine), std::as_writable_bytes(parts), label);
  for (size_t i = 0; i < num_tokens; ++i) {
    double top = -std::numeric_limits<double>::infinity(), sum = 0, target_logit = 0;
    for (size_t r = 0; r < num_ranks; ++r) top = std::max(top, static_cast<double>(parts[r * num_tokens + i].lse));
    for (size_t r = 0; r < num_ranks; ++r) {
      sum += portable_exp(std::max(-700.0, static_cast<double>(parts[r * num_tokens + i].lse) - top));
      target_logit += static_cast<double>(parts[r * num_tokens + i].target_logit);
    }
    const double whole = top + portable_log(sum);
    call.out(0).as<float>()[i] = targets[i] < 0 ? 0.0f : static_cast<float>(whole - target_logit);
    call.out(1).as<float>()[i] = static_cast<float>(whole);
  }
}

}  // namespace

int64_t tensor_collective_workspace_bytes(const Stage& stage, const Op& op) {
  if (op.kind != OpKind::kVocabularyLoss) return 0;
  return std::get<VocabularyAttributes>(op.attributes).num_ranks * num_elements(stage.value(op.inputs[0]).shape) * static_cast<int64_t>(sizeof(Part));
}

void run_tensor_collective(Communicator& group, const KernelContext& context, const OpCall& call, std::string_view label) {
  if (call.kind == OpKind::kAllReduce) return all_reduce(group, context, call, label);
  ORRERY_CHECK(call.kind == OpKind::kVocabularyLoss, "{} is no collective", op_name(call.kind));
  vocabulary_loss(group, call, label);
}

}  // namespace orrery
