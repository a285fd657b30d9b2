// Proves that the analytic gradients of the f64 reference are the derivatives of its forward functions, by central differences:
// the error of a central difference at step 1e-5 is about 1e-10 relative to third derivatives, so 1e-7 leaves room for both.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "backend/reference/ops.h"
#include "base/philox.h"

namespace orrery::reference {
namespace {

Array random_array(size_t n, uint32_t id) {
  const PhiloxStream random(3, RandomPurpose::kInit, id, 0);
  Array x(n);
  for (size_t i = 0; i < n; ++i) x[i] = 4.0 * random.uniform(i) - 2.0;
  return x;
}

double dot(const Array& a, const Array& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// d (dy . f(x)) / dx against `analytic`.
void check_gradient(const Array& x, const Array& dy, const Array& analytic, const std::function<Array(const Array&)>& f) {
  constexpr double kStep = 1e-5;
  ASSERT_EQ(analytic.size(), x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    Array plus = x, minus = x;
    plus[i] += kStep;
    minus[i] -= kStep;
    const double numeric = (dot(dy, f(plus)) - dot(dy, f(minus))) / (2 * kStep);
    EXPECT_NEAR(analytic[i], numeric, 1e-7 * (1 + std::fabs(numeric))) << "element " << i;
  }
}

TEST(ReferenceGradients, Activations) {
  const Array x = random_array(12, 1), dy = random_array(12, 2);
  check_gradient(x, dy, silu_grad(dy, x), silu);
  check_gradient(x, dy, gelu_grad(dy, x), gelu);
  check_gradient(x, random_array(6, 3), swiglu_grad(random_array(6, 3), x, 3), [](const Array& v) { return swiglu(v, 3); });
}

TEST(ReferenceGradients, Norms) {
  const Array x = random_array(15, 1), dy = random_array(15, 2), weight = random_array(5, 3), bias = random_array(5, 4);
  const NormGrad rms = rms_norm_grad(dy, x, weight, 1e-5);
  check_gradient(x, dy, rms.dx, [&](const Array& v) { return rms_norm(v, weight, 1e-5).y; });
  check_gradient(weight, dy, rms.dweight, [&](const Array& v) { return rms_norm(x, v, 1e-5).y; });
  const NormGrad layer = layer_norm_grad(dy, x, weight, 1e-5);
  check_gradient(x, dy, layer.dx, [&](const Array& v) { return layer_norm(v, weight, bias, 1e-5).y; });
  check_gradient(weight, dy, layer.dweight, [&](const Array& v) { return layer_norm(x, v, bias, 1e-5).y; });
  check_gradient(bias, dy, layer.dbias, [&](const Array& v) { return layer_norm(x, weight, v, 1e-5).y; });
}

TEST(ReferenceGradients, RopeGatherBias) {
  const Ids positions = {2, 0, 1};
  Array table;
  for (int p = 0; p < 3; ++p)
    for (int i = 0; i < 2; ++i) {
      table.push_back(std::cos(p * 0.7 * (i + 1)));
      table.push_back(std::sin(p * 0.7 * (i + 1)));
    }
  const Array x = random_array(3 * 2 * 5, 1), dy = random_array(3 * 2 * 5, 2);
  check_gradient(x, dy, rope(dy, positions, table, 2, 5, 4, -1),
                 [&](const Array& v) { return rope(v, positions, table, 2, 5, 4, 1); });
  const Ids ids = {3, 1, 3, 0};
  const Array rows = random_array(4 * 3, 4), drows = random_array(4 * 3, 5);
  check_gradient(rows, drows, embedding_grad(drows, ids, 4, 3), [&](const Array& v) { return gather_rows(v, ids, 3); });
  const Array bias = random_array(3, 6);
  check_gradient(bias, drows, bias_grad(drows, 3), [&](const Array& v) {
    Array y;
    for (int row = 0; row < 4; ++row) y.insert(y.end(), v.begin(), v.end());
    return y;
  });
}

TEST(ReferenceGradients, Attention) {
  const Ids cu_seqlens = {0, 3, 3, 8};
  for (int64_t window : {0, 2}) {
    const AttentionAttributes a{.num_heads = 4, .num_kv_heads = 2, .head_dim = 3, .scale = 0.6f, .window = window};
    const Array q = random_array(8 * 12, 1), k = random_array(8 * 6, 2), v = random_array(8 * 6, 3),
                dout = random_array(8 * 12, 4);
    const AttentionGrad grad = attention_grad(dout, q, k, v, cu_seqlens, a);
    check_gradient(q, dout, grad.dq, [&](const Array& x) { return attention(x, k, v, cu_seqlens, a).o; });
    check_gradient(k, dout, grad.dk, [&](const Array& x) { return attention(q, x, v, cu_seqlens, a).o; });
    check_gradient(v, dout, grad.dv, [&](const Array& x) { return attention(q, k, x, cu_seqlens, a).o; });
  }
}

TEST(Reference, PagedAttentionIsAttentionThroughABlockTable) {
  AttentionAttributes a{.num_heads = 2, .num_kv_heads = 1, .head_dim = 4, .scale = 0.5f, .window = 0, .block_tokens = 3};
  const Array q = random_array(7 * 8, 1), k = random_array(7 * 4, 2), v = random_array(7 * 4, 3);
  const Ids table = {2, 0, 1};
  Array k_cache(9 * 4), v_cache(9 * 4);
  for (int t = 0; t < 7; ++t)
    for (int i = 0; i < 4; ++i) {
      k_cache[(table[t / 3] * 3 + t % 3) * 4 + i] = k[t * 4 + i];
      v_cache[(table[t / 3] * 3 + t % 3) * 4 + i] = v[t * 4 + i];
    }
  const Array whole = attention(q, k, v, {0, 7}, a).o;
  const Array last_two(q.begin() + 5 * 8, q.end());
  const Array paged = paged_attention(last_two, k_cache, v_cache, table, {7}, {0, 2}, a);
  for (size_t i = 0; i < paged.size(); ++i) EXPECT_EQ(paged[i], whole[5 * 8 + i]);
}

}  // namespace
}  // namespace orrery::reference
