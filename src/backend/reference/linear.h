// The matrix products as slow, plain f64 loops: the definition that the blocked kernels are tested against. Arrays are dense and
// row-major.
#pragma once

#include "backend/reference/ops.h"

namespace orrery::reference {

/// x [T, K] weight [N, K]^T + bias [N] (empty: none).
Array linear(const Array& x, const Array& weight, const Array& bias, int64_t k);
/// dy [T, N] weight [N, K] -> [T, K].
Array linear_grad_input(const Array& dy, const Array& weight, int64_t n);
/// dy^T x, rows [first, last) -> [N, K].
Array linear_grad_weight(const Array& dy, const Array& x, int64_t n, int64_t k, int64_t first, int64_t last);

struct CrossEntropy {
  Array token_loss, lse, dlogits;  // dlogits [T, V]: gradient of the sum of token_loss
};
/// Of logits [T, V]; target -1 has no loss.
CrossEntropy cross_entropy(const Array& logits, const Ids& targets);

}  // namespace orrery::reference
