// Proves every elementwise, norm, rope, gather and row-sum kernel against the f64 reference on ragged shapes, with a tolerance
// counted from its roundings; that bits do not depend on threads or instruction set; that a row's result does not depend on the
// other rows; and that each fused kernel equals the ops it replaces bit for bit.
#include "backend/reference/ops.h"

#include <algorithm>
#include <functional>

#include "backend/cpu/op_test_util.h"

namespace orrery {
namespace {

using namespace test;
using reference::Array;

// 1, a prime, one past a vector, one past a block of four vectors, several threads' worth.
struct Shape2 {
  int64_t rows, width;
};
const Shape2 kShapes[] = {{0, 8}, {1, 1}, {3, 17}, {7, 65}, {33, 128}, {130, 257}};

// Steps of an f32 row sum of n terms: n / 64 additions in each of 64 partial sums, then 6 levels of the tree, and a few more
// operations around it.
double row_sum_steps(int64_t n) { return static_cast<double>(n) / 64 + 16; }

// Runs the op on one row of each row operand at a time and compares with the whole.
void expect_rows_independent(OpKind kind, DType dtype, const Attributes& attributes, const std::vector<Tensor>& inputs,
                             size_t num_row_inputs, const std::vector<Tensor>& whole,
                             std::vector<size_t> other_row_inputs = {}) {
  const int64_t num_rows = inputs[0].dims()[0];
  for (int64_t row = 0; row < num_rows; row += 1 + num_rows / 3) {
    std::vector<TensorView> in, out;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const bool by_row = i < num_row_inputs || std::count(other_row_inputs.begin(), other_row_inputs.end(), i) > 0;
      in.push_back(by_row ? inputs[i].rows(row, row + 1) : inputs[i].view());
    }
    std::vector<Tensor> alone;
    for (const Tensor& tensor : whole) {
      std::vector<int64_t> dims = tensor.dims();
      dims[0] = 1;
      alone.emplace_back(tensor.dtype(), dims);
    }
    for (const Tensor& tensor : alone) out.push_back(tensor.view());
    run_views(kind, dtype, machines().back(), attributes, in, out);
    for (size_t i = 0; i < alone.size(); ++i) {
      const TensorView expected = whole[i].rows(row, row + 1);
      EXPECT_EQ(std::memcmp(alone[i].data(), expected.data, alone[i].size() * dtype_bytes(expected.dtype)), 0)
          << op_name(kind) << " row " << row << " output " << i;
    }
  }
}

struct ElementwiseCase {
  OpKind kind;
  int num_inputs;
  double f32_steps;  // operations behind an element, with exp counted as its 1 ulp
  std::function<Array(const Array&, const Array&)> oracle;
};

class OpsTest : public testing::TestWithParam<DType> {};

TEST_P(OpsTest, Elementwise) {
  const DType dtype = GetParam();
  const ElementwiseCase cases[] = {
      {OpKind::kAdd, 2, 0, [](const Array& a, const Array& b) { return reference::add(a, b); }},
      {OpKind::kMul, 2, 0, [](const Array& a, const Array& b) { return reference::mul(a, b); }},
      {OpKind::kSilu, 1, 4, [](const Array& a, const Array&) { return reference::silu(a); }},
      // The rounding of gelu's argument (size |2u| < 8 here) is amplified by the exponential.
      {OpKind::kGelu, 1, 16, [](const Array& a, const Array&) { return reference::gelu(a); }},
      {OpKind::kSiluGrad, 2, 8, [](const Array& a, const Array& b) { return reference::silu_grad(a, b); }},
      {OpKind::kGeluGrad, 2, 32, [](const Array& a, const Array& b) { return reference::gelu_grad(a, b); }},
  };
  for (const ElementwiseCase& c : cases)
    for (const Shape2& shape : kShapes) {
      std::vector<Tensor> inputs = {Tensor::random(dtype, {shape.rows, shape.width}, 1)};
      if (c.num_inputs == 2) inputs.push_back(Tensor::random(dtype, {shape.rows, shape.width}, 2));
      std::vector<Tensor> outputs = {Tensor(dtype, {shape.rows, shape.width})};
      run_everywhere(c.kind, dtype, NoAttributes{}, inputs, outputs);
      expect_near(outputs[0], c.oracle(inputs[0].array(), inputs.back().array()), 1, c.f32_steps, 0,
                  std::string(op_name(c.kind)));
      expect_rows_independent(c.kind, dtype, NoAttributes{}, inputs, c.num_inputs, outputs);
    }
}

TEST_P(OpsTest, Scale) {
  const DType dtype = GetParam();
  for (const Shape2& shape : kShapes) {
    const Tensor x = Tensor::random(dtype, {shape.rows, shape.width}, 1);
    std::vector<Tensor> y = {Tensor(dtype, {shape.rows, shape.width})};
    const ScaleAttributes attributes{25.25f};
    run_everywhere(OpKind::kScale, dtype, attributes, {x}, y);
    // One product in f32, one rounding to the type.
    expect_near(y[0], reference::scale(x.array(), 25.25), 1, 1, 0, "scale");
    expect_rows_independent(OpKind::kScale, dtype, attributes, {x}, 1, y);
  }
}

TEST_P(OpsTest, GatherSplitConcat) {
  const DType dtype = GetParam();
  const Tensor table = Tensor::random(dtype, {11, 37}, 1);
  const Tensor ids = Tensor::ids({3, 0, 10, 3, 7});
  std::vector<Tensor> y = {Tensor(dtype, {5, 37})};
  run_everywhere(OpKind::kEmbedding, dtype, NoAttributes{}, {ids, table}, y);
  expect_near(y[0], reference::gather_rows(table.array(), ids.id_vector(), 37), 0, 0, 0, "embedding");
  run_everywhere(OpKind::kGatherRows, dtype, NoAttributes{}, {table, ids}, y);
  expect_near(y[0], reference::gather_rows(table.array(), ids.id_vector(), 37), 0, 0, 0, "gather_rows");

  const SplitAttributes split{{17, 1, 19}};
  std::vector<Tensor> parts = {Tensor(dtype, {11, 17}), Tensor(dtype, {11, 1}), Tensor(dtype, {11, 19})};
  run_everywhere(OpKind::kSplit, dtype, split, {table}, parts);
  const auto expected = reference::split(table.array(), split.widths);
  for (size_t i = 0; i < 3; ++i) expect_near(parts[i], expected[i], 0, 0, 0, "split");
  std::vector<Tensor> whole = {Tensor(dtype, {11, 37})};
  run_everywhere(OpKind::kConcat, dtype, NoAttributes{}, parts, whole);
  EXPECT_TRUE(whole[0].same_bits(table));
}

TEST_P(OpsTest, RmsNorm) {
  const DType dtype = GetParam();
  for (const Shape2& shape : kShapes)
    for (int64_t groups : {1, 3}) {
      const int64_t width = shape.width * groups;
      const NormAttributes attributes{1e-5f, shape.width};
      const std::vector<Tensor> inputs = {Tensor::random(dtype, {shape.rows, width}, 1),
                                          Tensor::random(dtype, {shape.width}, 2)};
      std::vector<Tensor> outputs = {Tensor(dtype, {shape.rows, width}), Tensor(DType::kF32, {shape.rows, groups})};
      run_everywhere(OpKind::kRmsNorm, dtype, attributes, inputs, outputs);
      const reference::Norm expected = reference::rms_norm(inputs[0].array(), inputs[1].array(), 1e-5f);
      expect_near(outputs[0], expected.y, 1, row_sum_steps(shape.width), 0, "rms_norm y");
      expect_near(outputs[1], expected.rstd, 0, row_sum_steps(shape.width), 0, "rms_norm rstd");
      expect_rows_independent(OpKind::kRmsNorm, dtype, attributes, inputs, 1, outputs);

      const Tensor b = Tensor::random(dtype, {shape.rows, width}, 3);
      std::vector<Tensor> sum = {Tensor(dtype, {shape.rows, width})};
      run_op(OpKind::kAdd, dtype, {}, NoAttributes{}, {inputs[0], b}, sum);
      run_op(OpKind::kRmsNorm, dtype, {}, attributes, {sum[0], inputs[1]}, outputs);
      std::vector<Tensor> fused = {Tensor(dtype, {shape.rows, width}), outputs[0], outputs[1]};
      run_everywhere(OpKind::kAddRmsNorm, dtype, attributes, {inputs[0], b, inputs[1]}, fused);
      EXPECT_TRUE(fused[0].same_bits(sum[0]) && fused[1].same_bits(outputs[0]) && fused[2].same_bits(outputs[1]));
    }
}

TEST_P(OpsTest, LayerNorm) {
  const DType dtype = GetParam();
  for (const Shape2& shape : kShapes) {
    if (shape.width == 1) continue;  // x - mean is 0 and rstd 1 / sqrt(eps): nothing but rounding is left
    const NormAttributes attributes{1e-5f, shape.width};
    const std::vector<Tensor> inputs = {Tensor::random(dtype, {shape.rows, shape.width}, 1),
                                        Tensor::random(dtype, {shape.width}, 2), Tensor::random(dtype, {shape.width}, 3)};
    std::vector<Tensor> outputs = {Tensor(dtype, {shape.rows, shape.width}), Tensor(DType::kF32, {shape.rows}),
                                   Tensor(DType::kF32, {shape.rows})};
    run_everywhere(OpKind::kLayerNorm, dtype, attributes, inputs, outputs);
    const reference::Norm expected = reference::layer_norm(inputs[0].array(), inputs[1].array(), inputs[2].array(), 1e-5f);
    expect_near(outputs[0], expected.y, 1, row_sum_steps(shape.width), 0, "layer_norm y");
    expect_near(outputs[1], expected.mean, 0, row_sum_steps(shape.width), 2, "layer_norm mean");
    expect_near(outputs[2], expected.rstd, 0, row_sum_steps(shape.width), 0, "layer_norm rstd");
    expect_rows_independent(OpKind::kLayerNorm, dtype, attributes, inputs, 1, outputs);

    const Tensor b = Tensor::random(dtype, {shape.rows, shape.width}, 4);
    std::vector<Tensor> sum = {Tensor(dtype, {shape.rows, shape.width})};
    run_op(OpKind::kAdd, dtype, {}, NoAttributes{}, {inputs[0], b}, sum);
    run_op(OpKind::kLayerNorm, dtype, {}, attributes, {sum[0], inputs[1], inputs[2]}, outputs);
    std::vector<Tensor> fused = {Tensor(dtype, {shape.rows, shape.width}), outputs[0], outputs[1], outputs[2]};
    run_everywhere(OpKind::kAddLayerNorm, dtype, attributes, {inputs[0], b, inputs[1], inputs[2]}, fused);
    EXPECT_TRUE(fused[0].same_bits(sum[0]));
    for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(fused[i + 1].same_bits(outputs[i])) << i;
  }
}

// dy, x, weight and the statistics that the forward kernel made.
std::vector<Tensor> norm_grad_inputs(DType dtype, bool layer_norm, int64_t rows, int64_t width, int64_t groups) {
  const NormAttributes attributes{1e-5f, width};
  const Tensor x = Tensor::random(dtype, {rows, width * groups}, 1), weight = Tensor::random(dtype, {width}, 2);
  const Tensor dy = Tensor::random(dtype, {rows, width * groups}, 3), bias = Tensor::random(dtype, {width}, 4);
  if (layer_norm) {
    std::vector<Tensor> outputs = {Tensor(dtype, {rows, width}), Tensor(DType::kF32, {rows}), Tensor(DType::kF32, {rows})};
    run_op(OpKind::kLayerNorm, dtype, {}, attributes, {x, weight, bias}, outputs);
    return {dy, x, weight, outputs[1], outputs[2]};
  }
  std::vector<Tensor> outputs = {Tensor(dtype, {rows, width * groups}), Tensor(DType::kF32, {rows, groups})};
  run_op(OpKind::kRmsNorm, dtype, {}, attributes, {x, weight}, outputs);
  return {dy, x, weight, outputs[1]};
}

struct FoldCase {
  int num_sequences;
  int64_t sequence_tokens;
  bool tree;
};
const FoldCase kFolds[] = {{1, 1, false}, {1, 37, true}, {4, 9, true}, {5, 7, true}, {3, 16, false}, {35, 2, true}};

GradFold make_fold(const FoldCase& c, bool add, std::vector<uint8_t>& merges) {
  merges = c.tree ? tree_merges(c.num_sequences, add) : chain_merges(c.num_sequences, add);
  return {c.num_sequences, c.sequence_tokens, merges.data(), add};
}

TEST_P(OpsTest, NormGradients) {
  const DType dtype = GetParam();
  for (bool layer_norm : {false, true})
    for (const FoldCase& c : kFolds)
      for (int64_t groups : {1, 2})
        for (bool add : {false, true}) {
          if (layer_norm && groups != 1) continue;
          const int64_t rows = c.num_sequences * c.sequence_tokens, width = 81;
          const std::vector<Tensor> inputs = norm_grad_inputs(dtype, layer_norm, rows, width, groups);
          const NormAttributes attributes{1e-5f, width};
          std::vector<uint8_t> merges;
          const GradFold fold = make_fold(c, add, merges);
          std::vector<Tensor> outputs = {Tensor(dtype, {rows, width * groups}), Tensor::filled(DType::kF32, {width}, 0.5)};
          if (layer_norm) outputs.push_back(Tensor::filled(DType::kF32, {width}, 0.25));
          const OpKind kind = layer_norm ? OpKind::kLayerNormGrad : OpKind::kRmsNormGrad;
          run_everywhere(kind, dtype, attributes, inputs, outputs, &fold);
          reference::NormGrad expected =
              layer_norm ? reference::layer_norm_grad(inputs[0].array(), inputs[1].array(), inputs[2].array(), 1e-5f)
                         : reference::rms_norm_grad(inputs[0].array(), inputs[1].array(), inputs[2].array(), 1e-5f);
          // dx = rstd (g - ...): the terms before the subtraction are at most |dy| |weight| rstd = 2 * 2 * rstd and twice that.
          const double scale = 8 * max_abs(inputs.back().array());
          expect_near(outputs[0], expected.dx, 1, row_sum_steps(width), scale, "norm dx");
          if (add)
            for (double& v : expected.dweight) v += 0.5;
          if (add)
            for (double& v : expected.dbias) v += 0.25;
          // A chain of `rows * groups` additions of terms of at most |dy| |x rstd|.
          const double terms = static_cast<double>(rows * groups) + 4;
          expect_near(outputs[1], expected.dweight, 0, terms, std::max(1.0, 4 * max_abs(inputs.back().array()) * terms),
                      "dweight");
          if (layer_norm) expect_near(outputs[2], expected.dbias, 0, terms, 2 * terms, "dbias");

          const Tensor residual = Tensor::random(dtype, {rows, width * groups}, 9);
          std::vector<Tensor> sum = {Tensor(dtype, {rows, width * groups})};
          run_op(OpKind::kAdd, dtype, {}, NoAttributes{}, {outputs[0], residual}, sum);
          std::vector<Tensor> fused_inputs = inputs;
          fused_inputs.push_back(residual);
          std::vector<Tensor> fused = {sum[0], Tensor::filled(DType::kF32, {width}, 0.5)};
          if (layer_norm) fused.push_back(Tensor::filled(DType::kF32, {width}, 0.25));
          run_everywhere(layer_norm ? OpKind::kLayerNormGradAdd : OpKind::kRmsNormGradAdd, dtype, attributes, fused_inputs,
                         fused, &fold);
          EXPECT_TRUE(fused[0].same_bits(sum[0]));
          for (size_t i = 1; i < fused.size(); ++i) EXPECT_TRUE(fused[i].same_bits(outputs[i])) << i;
        }
}

TEST_P(OpsTest, SwiGluEqualsItsParts) {
  const DType dtype = GetParam();
  for (const Shape2& shape : kShapes) {
    const int64_t rows = shape.rows, F = shape.width;
    const Tensor gate_up = Tensor::random(dtype, {rows, 2 * F}, 1, 4.0), dh = Tensor::random(dtype, {rows, F}, 2);
    const auto make = [&] { return std::vector<Tensor>{Tensor(dtype, {rows, F})}; };
    std::vector<Tensor> parts = {Tensor(dtype, {rows, F}), Tensor(dtype, {rows, F})};
    auto act = make(), h = make(), fused = make(), dup = make(), dact = make(), dgate = make();
    run_op(OpKind::kSplit, dtype, {}, SplitAttributes{{F, F}}, {gate_up}, parts);
    run_op(OpKind::kSilu, dtype, {}, NoAttributes{}, {parts[0]}, act);
    run_op(OpKind::kMul, dtype, {}, NoAttributes{}, {act[0], parts[1]}, h);
    run_everywhere(OpKind::kSwiGlu, dtype, NoAttributes{}, {gate_up}, fused);
    EXPECT_TRUE(fused[0].same_bits(h[0]));
    // Two roundings: of silu, and of the product.
    expect_near(fused[0], reference::swiglu(gate_up.array(), F), 2, 8, 0, "swiglu");
    expect_rows_independent(OpKind::kSwiGlu, dtype, NoAttributes{}, {gate_up}, 1, fused);

    run_op(OpKind::kMul, dtype, {}, NoAttributes{}, {dh, parts[1]}, dact);
    run_op(OpKind::kMul, dtype, {}, NoAttributes{}, {dh, act[0]}, dup);
    run_op(OpKind::kSiluGrad, dtype, {}, NoAttributes{}, {dact[0], parts[0]}, dgate);
    std::vector<Tensor> whole = {Tensor(dtype, {rows, 2 * F})}, fused_grad = whole;
    run_op(OpKind::kConcat, dtype, {}, NoAttributes{}, {dgate[0], dup[0]}, whole);
    run_everywhere(OpKind::kSwiGluGrad, dtype, NoAttributes{}, {dh, gate_up}, fused_grad);
    EXPECT_TRUE(fused_grad[0].same_bits(whole[0]));
    expect_near(fused_grad[0], reference::swiglu_grad(dh.array(), gate_up.array(), F), 2, 8, 0, "swiglu_grad");
  }
}

TEST_P(OpsTest, RopeAndItsFusion) {
  const DType dtype = GetParam();
  for (int64_t head_dim : {2, 64, 70})
    for (int64_t rotary_dim : {head_dim, head_dim / 2 / 2 * 2}) {
      const int64_t N = 3, K = 1, rows = 19, P = 32;
      Tensor table(DType::kF32, {P, rotary_dim / 2, 2});
      for (int64_t i = 0; i < table.size() / 2; ++i) {
        table.set(2 * i, std::cos(0.37 * static_cast<double>(i)));
        table.set(2 * i + 1, std::sin(0.37 * static_cast<double>(i)));
      }
      Tensor positions(DType::kI32, {rows});
      for (int64_t i = 0; i < rows; ++i) positions.set(i, static_cast<double>((7 * i) % P));
      const RopeAttributes q_rope{N, 0, head_dim, rotary_dim}, k_rope{K, 0, head_dim, rotary_dim},
          both{N, K, head_dim, rotary_dim};
      const Tensor x = Tensor::random(dtype, {rows, N * head_dim}, 1);
      for (int direction : {1, -1}) {
        std::vector<Tensor> y = {Tensor(dtype, {rows, N * head_dim})};
        const OpKind kind = direction > 0 ? OpKind::kRope : OpKind::kRopeGrad;
        run_everywhere(kind, dtype, q_rope, {x, positions, table}, y);
        // The two products are at most 2 each and one of them is rounded before the sum.
        expect_near(y[0], reference::rope(x.array(), positions.id_vector(), table.array(), N, head_dim, rotary_dim, direction),
                    1, 2, 2, "rope");
        expect_rows_independent(kind, dtype, q_rope, {x, positions, table}, 2, y);
      }
      const Tensor qkv = Tensor::random(dtype, {rows, (N + 2 * K) * head_dim}, 2);
      std::vector<Tensor> parts = {Tensor(dtype, {rows, N * head_dim}), Tensor(dtype, {rows, K * head_dim}),
                                   Tensor(dtype, {rows, K * head_dim})};
      std::vector<Tensor> q = {parts[0]}, k = {parts[1]}, fused = parts;
      run_op(OpKind::kSplit, dtype, {}, SplitAttributes{{N * head_dim, K * head_dim, K * head_dim}}, {qkv}, parts);
      run_op(OpKind::kRope, dtype, {}, q_rope, {parts[0], positions, table}, q);
      run_op(OpKind::kRope, dtype, {}, k_rope, {parts[1], positions, table}, k);
      run_everywhere(OpKind::kSplitRope, dtype, both, {qkv, positions, table}, fused);
      EXPECT_TRUE(fused[0].same_bits(q[0]) && fused[1].same_bits(k[0]) && fused[2].same_bits(parts[2]));

      std::vector<Tensor> dq = {q[0]}, dk = {k[0]}, dqkv = {Tensor(dtype, {rows, (N + 2 * K) * head_dim})}, fused_grad = dqkv;
      run_op(OpKind::kRopeGrad, dtype, {}, q_rope, {q[0], positions, table}, dq);
      run_op(OpKind::kRopeGrad, dtype, {}, k_rope, {k[0], positions, table}, dk);
      run_op(OpKind::kConcat, dtype, {}, NoAttributes{}, {dq[0], dk[0], parts[2]}, dqkv);
      run_everywhere(OpKind::kSplitRopeGrad, dtype, both, {q[0], k[0], parts[2], positions, table}, fused_grad);
      EXPECT_TRUE(fused_grad[0].same_bits(dqkv[0]));
    }
}

TEST_P(OpsTest, BiasGrad) {
  const DType dtype = GetParam();
  for (const FoldCase& c : kFolds)
    for (bool add : {false, true})
      for (int64_t width : {1, 17, 193}) {
        const int64_t rows = c.num_sequences * c.sequence_tokens;
        const Tensor dy = Tensor::random(dtype, {rows, width}, 1);
        std::vector<uint8_t> merges;
        const GradFold fold = make_fold(c, add, merges);
        std::vector<Tensor> outputs = {Tensor::filled(DType::kF32, {width}, 0.5)};
        run_everywhere(OpKind::kBiasGrad, dtype, NoAttributes{}, {dy}, outputs, &fold);
        Array expected = reference::bias_grad(dy.array(), width);
        if (add)
          for (double& v : expected) v += 0.5;
        expect_near(outputs[0], expected, 0, static_cast<double>(rows), 2.0 * static_cast<double>(rows), "bias_grad");
      }
}

TEST_P(OpsTest, EmbeddingGrad) {
  const DType dtype = GetParam();
  constexpr int64_t kHeight = 5000;  // two radix digits
  for (const FoldCase& c : kFolds)
    for (bool add : {false, true})
      for (int64_t width : {1, 17, 130}) {
        const int64_t rows = c.num_sequences * c.sequence_tokens;
        const Tensor dx = Tensor::random(dtype, {rows, width}, 1);
        Tensor ids(DType::kI32, {rows});
        const PhiloxStream random(1, RandomPurpose::kInit, 2, 0);
        for (int64_t i = 0; i < rows; ++i)
          ids.set(i, random.bits(i) % 3 ? random.bits(i) % 5 * 1200 : random.bits(i) % kHeight);
        std::vector<uint8_t> merges;
        const GradFold fold = make_fold(c, add, merges);
        std::vector<Tensor> outputs = {Tensor::filled(DType::kF32, {kHeight, width}, add ? 0.5 : 0.0)};
        run_everywhere(OpKind::kEmbeddingGrad, dtype, NoAttributes{}, {dx, ids}, outputs, &fold);
        Array expected = reference::embedding_grad(dx.array(), ids.id_vector(), kHeight, width);
        if (add)
          for (double& v : expected) v += 0.5;
        expect_near(outputs[0], expected, 0, static_cast<double>(rows), 2.0 * static_cast<double>(rows), "embedding_grad");
      }
}

// The fold is the contract that makes a micro-batch's size invisible: four sequences in one call give the bits of two calls of
// two.
TEST_P(OpsTest, FoldsContinueAcrossCalls) {
  const DType dtype = GetParam();
  const int64_t tokens = 11, width = 33, rows = 4 * tokens;
  const Tensor dy = Tensor::random(dtype, {rows, width}, 1);
  Tensor ids(DType::kI32, {rows});
  for (int64_t i = 0; i < rows; ++i) ids.set(i, static_cast<double>(i * i % 7));
  const std::vector<uint8_t> whole = chain_merges(4, false), head = chain_merges(2, false), tail = chain_merges(2, true);
  const GradFold whole_fold{4, tokens, whole.data(), false}, head_fold{2, tokens, head.data(), false},
      tail_fold{2, tokens, tail.data(), true};
  for (OpKind kind : {OpKind::kBiasGrad, OpKind::kEmbeddingGrad}) {
    const bool embedding = kind == OpKind::kEmbeddingGrad;
    const auto make = [&] {
      return Tensor::filled(DType::kF32, embedding ? std::vector<int64_t>{7, width} : std::vector<int64_t>{width}, 0);
    };
    const Tensor once = make(), twice = make();
    const auto inputs = [&](int64_t begin, int64_t end) {
      return embedding ? std::vector<TensorView>{dy.rows(begin, end), ids.rows(begin, end)}
                       : std::vector<TensorView>{dy.rows(begin, end)};
    };
    run_views(kind, dtype, {}, NoAttributes{}, inputs(0, rows), {once.view()}, &whole_fold);
    run_views(kind, dtype, {}, NoAttributes{}, inputs(0, rows / 2), {twice.view()}, &head_fold);
    run_views(kind, dtype, {}, NoAttributes{}, inputs(rows / 2, rows), {twice.view()}, &tail_fold);
    EXPECT_TRUE(once.same_bits(twice)) << op_name(kind);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, OpsTest, testing::ValuesIn(kComputeTypes),
                         [](const auto& instance) { return std::string(dtype_name(instance.param)); });

TEST(KernelTable, NamesWhatIsMissing) {
  try {
    cpu_kernel(OpKind::kAdd, DType::kF16);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_NE(std::string(error.what()).find("f16"), std::string::npos);
  }
}

}  // namespace
}  // namespace orrery
