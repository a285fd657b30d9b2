// The matrix products: close to plain f64 loops on ragged shapes; equal bits for 1, 2 and 3 threads, every instruction set and
// the native instruction where there is one; rows independent of their number; fused equals unfused; a packed weight equals the
// unpacked; and a fold over four sequences equals the same sequences given one by one.
#include "backend/cpu/gemm_kernels.h"

#include <chrono>
#include <thread>

#include "backend/cpu/gemm.h"
#include "backend/cpu/op_test_util.h"
#include "backend/reference/linear.h"

namespace orrery {
namespace {

using test::Machine;
using test::Tensor;

constexpr Arithmetic kArithmetics[] = {Arithmetic::kAmx32, Arithmetic::kDp2, Arithmetic::kFma1};
constexpr DType kB = DType::kBF16, kF = DType::kF32;

struct Shape {
  int64_t t, k, n;
};
const Shape kShapes[] = {{1, 1, 1}, {7, 33, 17}, {65, 96, 97}, {31, 257, 49}, {130, 64, 300}, {16, 5000, 40}, {530, 4200, 33}};

// The machines of op_test_util, and the native instruction.
std::vector<Machine> machines_for(Arithmetic arithmetic) {
  std::vector<Machine> list = test::machines(arithmetic);
  if (cpu_features().avx512)
    for (int threads : {1, 2, 3}) list.push_back({VectorIsa::kAvx512, threads, arithmetic, true});
  return list;
}

void run_all(OpKind kind, DType dtype, Arithmetic arithmetic, const std::vector<Tensor>& inputs, std::vector<Tensor>& outputs,
             const GradFold* fold = nullptr) {
  const std::vector<Tensor> fresh = outputs;
  bool first = true;
  for (const Machine& machine : machines_for(arithmetic)) {
    std::vector<Tensor> results = fresh;
    test::run_op(kind, dtype, machine, NoAttributes{}, inputs, results, fold);
    if (first) outputs = results;
    first = false;
    for (size_t i = 0; i < results.size(); ++i)
      ASSERT_TRUE(results[i].same_bits(outputs[i])) << op_name(kind) << " " << arithmetic_name(arithmetic) << " output " << i << " on "
                                                    << vector_isa_name(machine.isa) << " threads " << machine.num_threads << " native "
                                                    << machine.native_arithmetic;
  }
}

std::vector<Arithmetic> arithmetics_of(DType dtype) {
  if (dtype == kF) return {Arithmetic::kFma1};
  return {std::begin(kArithmetics), std::end(kArithmetics)};
}

// The largest sum of |a||b| that a chain of k products can reach with operands below `amplitude`: the scale of its rounding.
double scale(int64_t k, double a, double b) { return static_cast<double>(k) * a * b; }

TEST(Gemm, LinearAndGradInput) {
  for (DType dtype : test::kComputeTypes)
    for (Arithmetic arithmetic : arithmetics_of(dtype))
      for (const Shape& s : kShapes) {
        const Tensor x = Tensor::random(dtype, {s.t, s.k}, 1), w = Tensor::random(dtype, {s.n, s.k}, 2, 0.5), b = Tensor::random(dtype, {s.n}, 3);
        std::vector<Tensor> y = {Tensor(dtype, {s.t, s.n})};
        run_all(OpKind::kLinear, dtype, arithmetic, {x, w, b}, y);
        const auto expected = reference::linear(x.array(), w.array(), b.array(), s.k);
        test::expect_near(y[0], expected, 1, static_cast<double>(s.k) + 4, scale(s.k, 2, 0.5) + 2, "y");
        std::vector<Tensor> y_f32 = {Tensor(kF, {s.t, s.n})};  // unrounded accumulators: what a sampler reads
        run_all(OpKind::kLinear, dtype, arithmetic, {x, w, b}, y_f32);
        for (int64_t i = 0; i < y_f32[0].size(); ++i)
          EXPECT_EQ(y[0].get(i), dtype == kB ? bf16_to_f32(f32_to_bf16(y_f32[0].as<float>()[i])) : y_f32[0].as<float>()[i]);
        const Tensor dy = Tensor::random(dtype, {s.t, s.n}, 4);
        std::vector<Tensor> dx = {Tensor(dtype, {s.t, s.k})};
        run_all(OpKind::kLinearGradInput, dtype, arithmetic, {dy, w}, dx);
        test::expect_near(dx[0], reference::linear_grad_input(dy.array(), w.array(), s.n), 1, static_cast<double>(s.n) + 4, scale(s.n, 2, 0.5), "dx");
      }
}

TEST(Gemm, FusedEqualsUnfused) {
  for (DType dtype : test::kComputeTypes) {
    const int64_t t = 37, k = 70, n = 83;
    const Machine machine{cpu_features().best_isa(), 2, native_arithmetic(cpu_features()), true};
    const Tensor x = Tensor::random(dtype, {t, k}, 1), w = Tensor::random(dtype, {n, k}, 2, 0.3), b = Tensor::random(dtype, {n}, 3);
    std::vector<Tensor> u = {Tensor(dtype, {t, n})}, g = u, fused = {Tensor(dtype, {t, n}), Tensor(dtype, {t, n})};
    test::run_op(OpKind::kLinear, dtype, machine, NoAttributes{}, {x, w, b}, u);
    test::run_op(OpKind::kGelu, dtype, machine, NoAttributes{}, {u[0]}, g);
    run_all(OpKind::kLinearGelu, dtype, machine.arithmetic, {x, w, b}, fused);
    EXPECT_TRUE(fused[0].same_bits(u[0]) && fused[1].same_bits(g[0]));
    const Tensor dy = Tensor::random(dtype, {t, n}, 4), u_in = Tensor::random(dtype, {t, k}, 5);
    std::vector<Tensor> dg = {Tensor(dtype, {t, k})}, du = dg, fused_du = dg;
    test::run_op(OpKind::kLinearGradInput, dtype, machine, NoAttributes{}, {dy, w}, dg);
    test::run_op(OpKind::kGeluGrad, dtype, machine, NoAttributes{}, {dg[0], u_in}, du);
    run_all(OpKind::kLinearGradInputGelu, dtype, machine.arithmetic, {dy, w, u_in}, fused_du);
    EXPECT_TRUE(fused_du[0].same_bits(du[0]));
  }
}

// Rows of a strided view (a part of a wider value) and any number of rows give the bits of the whole, packed or not.
TEST(Gemm, RowsAreIndependentAndPackedEqualsUnpacked) {
  const int64_t t = 70, k = 160, n = 100;
  for (DType dtype : test::kComputeTypes)
    for (Arithmetic arithmetic : arithmetics_of(dtype)) {
      const Tensor wide = Tensor::random(dtype, {t, 2 * k}, 1), w = Tensor::random(dtype, {n, k}, 2), b = Tensor::random(dtype, {n}, 3);
      TensorView x = wide.view();
      x.dims[1] = k;
      x.data += k * dtype_bytes(dtype);
      const Machine machine{cpu_features().best_isa(), 2, arithmetic, true};
      const Tensor whole(dtype, {t, n});
      test::run_views(OpKind::kLinear, dtype, machine, NoAttributes{}, {x, w.view(), b.view()}, {whole.view()});
      const KernelContext context{&test::pool_of(2), machine.isa, arithmetic, true};
      std::vector<std::byte> packed(packed_weight_bytes(dtype, n, k) + 64);
      std::byte* aligned = packed.data() + (64 - reinterpret_cast<uintptr_t>(packed.data()) % 64) % 64;
      pack_weight(context, w.view(), aligned);
      for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 1}, {5, 12}, {3, 19}, {20, 37}, {1, 70}}) {
        TensorView part = x;
        part.data += begin * part.row_stride * dtype_bytes(dtype);
        part.dims[0] = end - begin;
        const Tensor alone(dtype, {end - begin, n}), by_packed(dtype, {end - begin, n});
        test::run_views(OpKind::kLinear, dtype, machine, NoAttributes{}, {part, w.view(), b.view()}, {alone.view()});
        const size_t bytes = (end - begin) * n * dtype_bytes(dtype);
        EXPECT_EQ(std::memcmp(alone.data(), whole.rows(begin, end).data, bytes), 0);
        std::vector<std::byte> memory(linear_packed_workspace_bytes({machine.isa, arithmetic, true, 2}, dtype, end - begin, n, k) + 64);
        std::byte* workspace = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
        const TensorView bias = b.view();
        linear_packed(context, part, aligned, n, &bias, by_packed.view(), {workspace, memory.size() - 64});
        EXPECT_EQ(std::memcmp(by_packed.data(), whole.rows(begin, end).data, bytes), 0) << end - begin << " rows";
        EXPECT_TRUE(by_packed.guard_intact());
      }
    }
}

GradFold fold_of(int64_t sequences, int64_t tokens, const std::vector<uint8_t>& merges, bool add) { return {sequences, tokens, merges.data(), add}; }

// A product with packed weights gives the same bits for every number of threads and rows, and whatever was read ahead.
TEST(Gemm, PackedBitsDoNotDependOnThreadsOrReadAhead) {
  const int64_t k = 96, n = 16 * 37 + 5;
  for (DType dtype : {kB, kF}) {
    const Tensor x = Tensor::random(dtype, {17, k}, 1), weight = Tensor::random(dtype, {n, k}, 2);
    const Machine machine{cpu_features().best_isa(), 1, native_arithmetic(cpu_features()), true};
    std::vector<std::byte> packed(static_cast<size_t>(packed_weight_bytes(dtype, n, k)) + 64);
    std::byte* panels = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(packed.data()) + 63) / 64 * 64);
    Tensor first(kF, {17, n});
    for (int threads : {1, 2, 3})
      for (int64_t m : {17, 5, 4, 3, 2, 1})
        for (bool ahead : {false, true}) {
          ThreadPool& pool = test::pool_of(threads);
          const KernelContext context{&pool, machine.isa, machine.arithmetic, true};
          if (threads == 1 && m == 17) pack_weight(context, weight.view(), panels);
          std::vector<std::byte> memory(static_cast<size_t>(linear_packed_workspace_bytes(device_of(context), dtype, m, n, k)) + 64);
          std::byte* workspace = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
          Tensor y(kF, {m, n});
          if (ahead) pool.set_read_ahead(packed_weight_stream(dtype, n, k, panels));
          if (ahead) pool.run([](int, int) { std::this_thread::sleep_for(std::chrono::microseconds(30)); });
          linear_packed(context, x.rows(0, m), panels, n, nullptr, y.view(), {workspace, memory.size() - 64});
          pool.set_read_ahead({});
          pool.run([](int, int) {});
          if (threads == 1 && m == 17) first = y;
          EXPECT_EQ(std::memcmp(y.view().data, first.view().data, static_cast<size_t>(m * n * 4)), 0) << threads << " threads, " << m << " rows, ahead " << ahead;
        }
  }
}

TEST(Gemm, GradWeight) {
  for (DType dtype : test::kComputeTypes)
    for (Arithmetic arithmetic : arithmetics_of(dtype))
      for (const auto& [sequences, tokens, n, k] :
           {std::array<int64_t, 4>{1, 1, 1, 1}, {4, 33, 97, 65}, {3, 64, 31, 130}, {8, 20, 300, 16}, {2, 100, 257, 40}}) {
        const Tensor dy = Tensor::random(dtype, {sequences * tokens, n}, 1), x = Tensor::random(dtype, {sequences * tokens, k}, 2);
        for (bool add : {false, true})
          for (bool tree : {false, true}) {
            const auto merges = tree ? test::tree_merges(static_cast<int>(sequences), add) : test::chain_merges(static_cast<int>(sequences), add);
            const GradFold fold = fold_of(sequences, tokens, merges, add);
            const Tensor before = Tensor::random(kF, {n, k}, 3);
            std::vector<Tensor> dw = {before};
            run_all(OpKind::kLinearGradWeight, dtype, arithmetic, {dy, x}, dw, &fold);
            auto expected = reference::linear_grad_weight(dy.array(), x.array(), n, k, 0, sequences * tokens);
            for (int64_t i = 0; add && i < n * k; ++i) expected[i] += before.get(i);
            test::expect_near(dw[0], expected, 1, static_cast<double>(sequences * tokens) + 4, scale(sequences * tokens, 2, 2) + 2, "dweight");
          }
      }
}

// ((d + s0) + s1) + ...: one call with a chain equals one call per sequence; and a tree of pairs equals its parts added.
TEST(Gemm, FoldEqualsOneCallPerSequence) {
  const int64_t sequences = 4, tokens = 45, n = 50, k = 70;
  for (DType dtype : test::kComputeTypes) {
    const Machine machine{cpu_features().best_isa(), 2, native_arithmetic(cpu_features()), true};
    const Tensor dy = Tensor::random(dtype, {sequences * tokens, n}, 1), x = Tensor::random(dtype, {sequences * tokens, k}, 2);
    const Tensor chained(kF, {n, k}), stepped(kF, {n, k}), tree(kF, {n, k});
    const auto call = [&](int64_t begin, int64_t end, const Tensor& out, const std::vector<uint8_t>& merges, bool add) {
      const GradFold fold = fold_of(end - begin, tokens, merges, add);
      test::run_views(OpKind::kLinearGradWeight, dtype, machine, NoAttributes{},
                      {dy.rows(begin * tokens, end * tokens), x.rows(begin * tokens, end * tokens)}, {out.view()}, &fold);
    };
    call(0, 4, chained, {0, 1, 1, 1}, false);
    call(0, 1, stepped, {0}, false);
    for (int64_t s = 1; s < 4; ++s) call(s, s + 1, stepped, {1}, true);
    EXPECT_TRUE(chained.same_bits(stepped));
    call(0, 4, tree, {0, 1, 0, 2}, false);
    const Tensor left(kF, {n, k}), right(kF, {n, k});
    call(0, 2, left, {0, 1}, false);
    call(2, 4, right, {0, 1}, false);
    for (int64_t i = 0; i < n * k; ++i) EXPECT_EQ(tree.as<float>()[i], left.as<float>()[i] + right.as<float>()[i]);
  }
}

TEST(Gemm, CrossEntropy) {
  for (DType dtype : test::kComputeTypes)
    for (Arithmetic arithmetic : arithmetics_of(dtype))
      for (const auto& [sequences, tokens, width, vocab] : {std::array<int64_t, 4>{1, 1, 3, 2}, {3, 21, 40, 131}, {2, 70, 64, 4999}}) {
        if (vocab > 1000 && arithmetic == Arithmetic::kDp2) continue;  // the same blocks again
        const int64_t rows = sequences * tokens;
        const Tensor x = Tensor::random(dtype, {rows, width}, 1, 1.0), w = Tensor::random(dtype, {vocab, width}, 2, 0.5);
        std::vector<int32_t> ids(rows);
        for (int64_t i = 0; i < rows; ++i) ids[i] = i % 5 == 3 ? -1 : static_cast<int32_t>(i * 7919 % vocab);
        const Tensor targets = Tensor::ids(ids);
        std::vector<Tensor> forward = {Tensor(kF, {rows}), Tensor(kF, {rows})};
        run_all(OpKind::kLinearCrossEntropy, dtype, arithmetic, {x, w, targets}, forward);

        // The reference takes the rounded logits, so that what is tested is the softmax and not the head's rounding again.
        std::vector<Tensor> logits = {Tensor(dtype, {rows, vocab})};
        test::run_op(OpKind::kLinear, dtype, {cpu_features().best_isa(), 1, arithmetic, true}, NoAttributes{}, {x, w}, logits);
        const auto expected = reference::cross_entropy(logits[0].array(), ids);
        // A chain of at most 64 additions in a block, one of vocab / 64 blocks, each scaled and added, and a few ulp of exp, log and
        // the last additions.
        const double steps = static_cast<double>(std::min<int64_t>(vocab, 64)) + static_cast<double>(vocab) / 32 + 12;
        test::expect_near(forward[1], expected.lse, 0, steps, 0, "lse");
        test::expect_near(forward[0], expected.token_loss, 0, steps, test::max_abs(expected.lse) + 12, "token_loss");

        const auto merges = test::tree_merges(static_cast<int>(sequences), true);
        const GradFold fold = fold_of(sequences, tokens, merges, true);
        const Tensor before = Tensor::random(kF, {vocab, width}, 3);
        std::vector<Tensor> grad = {Tensor(dtype, {rows, width}), before}, with_grad = {Tensor(kF, {rows}), Tensor(dtype, {rows, width}), before};
        run_all(OpKind::kLinearCrossEntropyGrad, dtype, arithmetic, {x, w, targets, forward[1]}, grad, &fold);
        run_all(OpKind::kLinearCrossEntropyWithGrad, dtype, arithmetic, {x, w, targets}, with_grad, &fold);
        EXPECT_TRUE(with_grad[0].same_bits(forward[0]) && with_grad[1].same_bits(grad[0]) && with_grad[2].same_bits(grad[1]));

        // dlogits are rounded once to the compute dtype: at most u per element of size 1 behind a weight of 0.5, row sums below 2.
        const double u = test::unit_roundoff(dtype), f = 0x1p-24;
        const auto dx = reference::linear_grad_input(expected.dlogits, w.array(), vocab);
        auto dw = reference::linear_grad_weight(expected.dlogits, x.array(), vocab, width, 0, rows);
        const double dlogit_error = u + f * (steps + 12);
        for (int64_t i = 0; i < rows * width; ++i)
          ASSERT_NEAR(grad[0].get(i), dx[i], 1.01 * (2 * 0.5 * (dlogit_error + f * static_cast<double>(vocab + 4)) + u * std::fabs(dx[i]))) << i;
        for (int64_t i = 0; i < vocab * width; ++i)
          ASSERT_NEAR(grad[1].get(i), dw[i] + before.get(i), 1.01 * static_cast<double>(rows) * (dlogit_error + f * static_cast<double>(rows + 8)) + 4 * f) << i;
        for (int64_t i = 0; i < rows; ++i) {
          if (ids[i] >= 0) continue;
          EXPECT_EQ(forward[0].get(i), 0.0);
          for (int64_t j = 0; j < width; ++j) EXPECT_EQ(grad[0].get(i * width + j), 0.0);
        }
      }
}

// Four chunks of the vocabulary and a ragged end: whatever is kept of the logits between the passes, and whatever came before in
// the micro-batch, the bits are the same; and the fused op equals the forward op followed by the gradient.
TEST(Gemm, CrossEntropyKeptOrComputedAgain) {
  const int64_t sequences = 3, tokens = 40, rows = sequences * tokens, width = 109, vocab = 4 * 2048 + 53;
  for (const auto& [dtype, adds] : {std::pair{kB, true}, {kB, false}, {kF, true}, {kF, false}}) {
    const Machine machine{cpu_features().best_isa(), 2, native_arithmetic(cpu_features()), true};
    const Tensor x = Tensor::random(dtype, {rows, width}, 1), w = Tensor::random(dtype, {vocab, width}, 2, 0.5), before = Tensor::random(kF, {vocab, width}, 3);
    std::vector<int32_t> ids(rows);
    for (int64_t i = 0; i < rows; ++i) ids[i] = i % 7 == 3 ? -1 : static_cast<int32_t>(i % 5 == 0 ? vocab - 1 - i % 60 : i * 7919 % vocab);
    const Tensor targets = Tensor::ids(ids);
    const auto merges = test::chain_merges(static_cast<int>(sequences), adds);
    const GradFold fold = fold_of(sequences, tokens, merges, adds);
    const std::vector<Tensor> fresh = {Tensor(kF, {rows}), Tensor(dtype, {rows, width}), before};
    std::vector<Tensor> all_kept;
    int64_t last_bytes = std::numeric_limits<int64_t>::max();
    for (int64_t kept_bytes : {int64_t{1} << 30, int64_t{3} * 2048 * 200 * dtype_bytes(dtype), int64_t{0}}) {
      std::vector<Tensor> results = fresh;
      std::vector<TensorView> in = {x.view(), w.view(), targets.view()}, out;
      for (const Tensor& tensor : results) out.push_back(tensor.view());
      const Attributes attributes = NoAttributes{};
      OpCall call{OpKind::kLinearCrossEntropyWithGrad, in, out, &attributes, &fold, {}};
      const int64_t bytes = cross_entropy_workspace_bytes({machine.isa, machine.arithmetic, true, machine.num_threads}, dtype, call, kept_bytes);
      EXPECT_LT(bytes, last_bytes);
      last_bytes = bytes;
      std::vector<uint8_t> memory(bytes + 128, 0xFF);
      std::byte* aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
      call.workspace = {aligned, static_cast<size_t>(bytes)};
      cross_entropy({&test::pool_of(machine.num_threads), machine.isa, machine.arithmetic, true}, dtype, call, kept_bytes);
      EXPECT_EQ(aligned[bytes], std::byte{0xFF});
      if (all_kept.empty()) all_kept = results;
      for (size_t i = 0; i < results.size(); ++i) EXPECT_TRUE(results[i].same_bits(all_kept[i])) << "output " << i << ", kept " << kept_bytes;
    }
    std::vector<Tensor> forward = {Tensor(kF, {rows}), Tensor(kF, {rows})}, grad = {fresh[1], before};
    test::run_op(OpKind::kLinearCrossEntropy, dtype, machine, NoAttributes{}, {x, w, targets}, forward);
    test::run_op(OpKind::kLinearCrossEntropyGrad, dtype, machine, NoAttributes{}, {x, w, targets, forward[1]}, grad, &fold);
    EXPECT_TRUE(forward[0].same_bits(all_kept[0]) && grad[0].same_bits(all_kept[1]) && grad[1].same_bits(all_kept[2]));

    // One sequence at a time: the same rows and the same sums.
    const Tensor loss(kF, {rows}), dx(dtype, {rows, width}), dweight = before;
    for (int64_t s = 0; s < sequences; ++s) {
      const bool continues = adds || s > 0;
      const std::vector<uint8_t> one = {static_cast<uint8_t>(continues)};
      const GradFold step = fold_of(1, tokens, one, continues);
      const int64_t begin = s * tokens, end = begin + tokens;
      test::run_views(OpKind::kLinearCrossEntropyWithGrad, dtype, machine, NoAttributes{}, {x.rows(begin, end), w.view(), targets.rows(begin, end)},
                      {loss.rows(begin, end), dx.rows(begin, end), dweight.view()}, &step);
    }
    EXPECT_TRUE(loss.same_bits(all_kept[0]) && dx.same_bits(all_kept[1]) && dweight.same_bits(all_kept[2]));
  }
}

// GPT-2's head with 4 sequences of 512 tokens takes less than 96 MiB, and no shorter micro-batch takes more.
TEST(Gemm, CrossEntropyWorkspace) {
  const int64_t width = 768, vocab = 50257, tokens = 512;
  const std::vector<uint8_t> merges(4, 1);
  int64_t last = 0;
  for (int64_t sequences = 1; sequences <= 4; ++sequences) {
    const auto view = [](DType dtype, int64_t rows, int64_t columns) {
      TensorView matrix;
      matrix.dtype = dtype;
      matrix.num_dims = 2;
      matrix.dims = {rows, columns};
      matrix.row_stride = columns;
      return matrix;
    };
    const int64_t rows = sequences * tokens;
    const std::vector<TensorView> in = {view(kB, rows, width), view(kB, vocab, width), view(DType::kI32, rows, 1)};
    const std::vector<TensorView> out = {view(kF, rows, 1), view(kB, rows, width), view(kF, vocab, width)};
    const GradFold fold = fold_of(sequences, tokens, merges, true);
    const OpCall call{OpKind::kLinearCrossEntropyWithGrad, in, out, nullptr, &fold, {}};
    const int64_t bytes = cross_entropy_workspace_bytes({VectorIsa::kAvx512, Arithmetic::kAmx32, true, 2}, kB, call);
    EXPECT_GE(bytes, last);
    EXPECT_LE(bytes, 96 << 20);
    last = bytes;
  }
}

}  // namespace
}  // namespace orrery
