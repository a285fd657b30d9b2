// What the planner knows of every op kind: the types it makes, what it costs. Derivatives are in vjp.h, kernels in backend/.
#pragma once

#include <vector>

#include "ir/block.h"

namespace orrery {

struct ValueType {
  DType dtype;
  Shape shape;
};

/// The types of an op's outputs. Aborts on operands that do not fit: a bug in a builder or a pass.
std::vector<ValueType> infer_types(OpKind kind, const Attributes& attributes, const std::vector<ValueType>& inputs, DType compute_dtype);

/// Who runs a collective op of `stage` together.
GroupAttributes group_of(const Stage& stage, const Op& op);

struct OpCost {
  double flops = 0;  // multiply and add count as two; matrix products and attention only
  double bytes_read = 0;
  double bytes_written = 0;
};

/// Cost at `num_tokens` rows (<= the bound) and a mean attention context of `mean_context` keys a query.
OpCost op_cost(const Stage& stage, const Op& op, int64_t num_tokens, double mean_context);

/// True for outputs that kernels add to or write by GradFold: the gradient accumulators.
bool has_gradient_output(OpKind kind);

}  // namespace orrery
