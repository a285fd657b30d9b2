// Every op (the matrix products in linear.h) as one slow, plain f64 function: the definition that the kernels are tested against.
// Arrays are dense and row-major; names and shapes are those of ir/op.h. Nothing is rounded on the way: a fused op needs no
// function of its own.
#pragma once

#include <cstdint>
#include <vector>

#include "ir/op.h"

namespace orrery::reference {

using Array = std::vector<double>;
using Ids = std::vector<int32_t>;

Array add(const Array& a, const Array& b);
Array mul(const Array& a, const Array& b);
Array scale(const Array& x, double factor);
Array silu(const Array& x);
Array gelu(const Array& x);
Array silu_grad(const Array& dy, const Array& x);
Array gelu_grad(const Array& dy, const Array& x);

/// rows of x [height, width] named by ids; also kEmbedding.
Array gather_rows(const Array& x, const Ids& ids, int64_t width);
/// The gradient of gather_rows with respect to x.
Array embedding_grad(const Array& dy, const Ids& ids, int64_t height, int64_t width);
std::vector<Array> split(const Array& x, const std::vector<int64_t>& widths);
Array concat(const std::vector<Array>& parts, const std::vector<int64_t>& widths);
/// Sums of the columns of dy [T, width].
Array bias_grad(const Array& dy, int64_t width);

struct Norm {
  Array y, mean, rstd;  // mean is empty for RMSNorm
};
struct NormGrad {
  Array dx, dweight, dbias;
};
/// Groups of weight.size() numbers.
Norm rms_norm(const Array& x, const Array& weight, double eps);
NormGrad rms_norm_grad(const Array& dy, const Array& x, const Array& weight, double eps);
Norm layer_norm(const Array& x, const Array& weight, const Array& bias, double eps);
NormGrad layer_norm_grad(const Array& dy, const Array& x, const Array& weight, double eps);

/// table [P, R/2, 2] (cos, sin); direction +1 rotates forward, -1 back.
Array rope(const Array& x, const Ids& positions, const Array& table, int64_t num_heads, int64_t head_dim, int64_t rotary_dim,
           int direction);

/// gate_up [T, 2F] -> [T, F].
Array swiglu(const Array& gate_up, int64_t width);
Array swiglu_grad(const Array& dh, const Array& gate_up, int64_t width);

struct Attention {
  Array o, lse;  // lse [N, T]
};
struct AttentionGrad {
  Array dq, dk, dv;
};
Attention attention(const Array& q, const Array& k, const Array& v, const Ids& cu_seqlens,
                    const AttentionAttributes& attributes);
AttentionGrad attention_grad(const Array& dout, const Array& q, const Array& k, const Array& v, const Ids& cu_seqlens,
                             const AttentionAttributes& attributes);
/// Caches [blocks, block_tokens, K*H]; block_table [S, max_blocks].
Array paged_attention(const Array& q, const Array& k_cache, const Array& v_cache, const Ids& block_table,
                      const Ids& context_lens, const Ids& cu_seqlens, const AttentionAttributes& attributes);

/// Per block of 4,096.
Array squared_sums(const Array& gradient);
struct OptimizerState {
  Array weight, m, v;
};
/// One update with the gradient already scaled; see backend/cpu/optimizer.cpp for what each does with its fields.
OptimizerState adamw(OptimizerState state, const Array& gradient, const OptimizerHyper& hyper, bool decay);
OptimizerState sgd(OptimizerState state, const Array& gradient, const OptimizerHyper& hyper, bool decay);
OptimizerState lion(OptimizerState state, const Array& gradient, const OptimizerHyper& hyper, bool decay);

}  // namespace orrery::reference
