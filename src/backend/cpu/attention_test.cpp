// Proves attention forward and backward against the f64 reference for packed documents of ragged lengths, grouped heads,
// windows and strided operands; that bits do not depend on threads, instruction set or native against emulated arithmetic; that
// a segment's result does not depend on its neighbours; and that a served row has the same bits however it is chunked.
#include <algorithm>
#include <numeric>

#include "backend/cpu/op_test_util.h"
#include "backend/cpu/paged_decode.h"
#include "backend/reference/ops.h"
#include "ir/kv_format.h"

namespace orrery {
namespace {

using namespace test;
using reference::Array;
using reference::Ids;

struct Case {
  AttentionAttributes attributes;
  Ids cu_seqlens;
};

const Case kCases[] = {
    {heads(1, 1, 2), {0, 1}},          {heads(2, 2, 64), {0, 64}},    {heads(3, 1, 32), {0, 65, 65, 66, 129}},
    {heads(4, 2, 80), {0, 7, 200}},    {heads(2, 1, 16, 1), {0, 70}}, {heads(2, 2, 64, 50), {0, 130, 200}},
    {heads(2, 1, 128, 100), {0, 300}},
};

class AttentionTest : public testing::TestWithParam<DType> {};

// u of the type that P, dS and the results are rounded to; each product's operands bring one such rounding, and the f32 chains
// of at most T terms one u(f32) a term.
double tolerance_roundings(DType dtype) { return dtype == DType::kBF16 ? 3 : 1; }

TEST_P(AttentionTest, ForwardAndBackwardFollowTheReference) {
  const DType dtype = GetParam();
  for (const Case& c : kCases)
    for (Arithmetic arithmetic : {Arithmetic::kAmx32, Arithmetic::kDp2, Arithmetic::kFma1}) {
      if (dtype == DType::kF32 && arithmetic != Arithmetic::kFma1) continue;
      const AttentionAttributes& a = c.attributes;
      const int64_t T = c.cu_seqlens.back(), N = a.num_heads, K = a.num_kv_heads, H = a.head_dim;
      const Tensor q = Tensor::random(dtype, {T, N * H}, 1), k = Tensor::random(dtype, {T, K * H}, 2),
                   v = Tensor::random(dtype, {T, K * H}, 3);
      const Tensor dout = Tensor::random(dtype, {T, N * H}, 4), cu = Tensor::ids(c.cu_seqlens);
      std::vector<Tensor> outputs = {Tensor(dtype, {T, N * H}), Tensor(DType::kF32, {N, T})};
      run_everywhere(OpKind::kAttention, dtype, a, {q, k, v, cu}, outputs, nullptr, arithmetic);
      const auto expected = reference::attention(q.array(), k.array(), v.array(), c.cu_seqlens, a);
      const double roundings = tolerance_roundings(dtype), steps = static_cast<double>(T) + static_cast<double>(H) + 16;
      expect_near(outputs[0], expected.o, roundings, steps, 2, "o");
      expect_near(outputs[1], expected.lse, 0, steps, std::max(1.0, 4 * std::sqrt(static_cast<double>(H))), "lse");

      std::vector<Tensor> grads = {Tensor(dtype, {T, N * H}), Tensor(dtype, {T, K * H}), Tensor(dtype, {T, K * H})};
      run_everywhere(OpKind::kAttentionGrad, dtype, a, {dout, q, k, v, outputs[0], outputs[1], cu}, grads, nullptr, arithmetic);
      const auto gradient = reference::attention_grad(dout.array(), q.array(), k.array(), v.array(), c.cu_seqlens, a);
      // dP and D are each up to |dO| |v| H = 4 H before they are subtracted; o carries a rounding into D.
      const double scale = 16 * std::sqrt(static_cast<double>(H));
      const double grad_roundings = dtype == DType::kBF16 ? 8 : 1;
      expect_near(grads[0], gradient.dq, grad_roundings, steps, scale, "dq");
      expect_near(grads[1], gradient.dk, grad_roundings, steps, scale, "dk");
      expect_near(grads[2], gradient.dv, grad_roundings, steps, scale, "dv");

      // The instruction itself, where this processor has it.
      if (cpu_features().avx512) {
        std::vector<Tensor> native = {outputs[0], outputs[1]}, native_grads = grads;
        const Machine machine{VectorIsa::kAvx512, 2, arithmetic, true};
        run_op(OpKind::kAttention, dtype, machine, a, {q, k, v, cu}, native);
        run_op(OpKind::kAttentionGrad, dtype, machine, a, {dout, q, k, v, outputs[0], outputs[1], cu}, native_grads);
        for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(native[i].same_bits(outputs[i])) << arithmetic_name(arithmetic);
        for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(native_grads[i].same_bits(grads[i])) << arithmetic_name(arithmetic);
      }
    }
}

// q, k, v side by side in one tensor and a segment alone: the same bits as apart and among others.
TEST_P(AttentionTest, StridesAndNeighboursDoNotMatter) {
  const DType dtype = GetParam();
  const AttentionAttributes a = heads(4, 2, 32);
  const int64_t H = 32, T = 150, wide = 8 * H, size = dtype_bytes(dtype);
  const Ids cu_seqlens = {0, 71, 150};
  const Tensor qkv = Tensor::random(dtype, {T, wide}, 1), dout = Tensor::random(dtype, {T, 4 * H}, 2);
  std::vector<Tensor> parts = {Tensor(dtype, {T, 4 * H}), Tensor(dtype, {T, 2 * H}), Tensor(dtype, {T, 2 * H})};
  run_op(OpKind::kSplit, dtype, {}, SplitAttributes{{4 * H, 2 * H, 2 * H}}, {qkv}, parts);
  std::vector<Tensor> apart = {Tensor(dtype, {T, 4 * H}), Tensor(DType::kF32, {4, T})};
  std::vector<Tensor> grads = {Tensor(dtype, {T, 4 * H}), Tensor(dtype, {T, 2 * H}), Tensor(dtype, {T, 2 * H})};
  run_op(OpKind::kAttention, dtype, {}, a, {parts[0], parts[1], parts[2], Tensor::ids(cu_seqlens)}, apart);
  run_op(OpKind::kAttentionGrad, dtype, {}, a,
         {dout, parts[0], parts[1], parts[2], apart[0], apart[1], Tensor::ids(cu_seqlens)}, grads);

  const Tensor cu = Tensor::ids({0, 79});
  const auto column = [&](const Tensor& tensor, int64_t first, int64_t width) {
    TensorView view = tensor.rows(71, T);
    view.data += first * size;
    view.dims[1] = width;
    return view;
  };
  const Tensor o(dtype, {79, 4 * H}), lse(DType::kF32, {4, 79}), dqkv(dtype, {T, wide});
  run_views(OpKind::kAttention, dtype, {}, a,
            {column(qkv, 0, 4 * H), column(qkv, 4 * H, 2 * H), column(qkv, 6 * H, 2 * H), cu.view()}, {o.view(), lse.view()});
  EXPECT_EQ(std::memcmp(o.data(), apart[0].rows(71, T).data, o.size() * size), 0);
  run_views(OpKind::kAttentionGrad, dtype, {}, a,
            {dout.rows(71, T), column(qkv, 0, 4 * H), column(qkv, 4 * H, 2 * H), column(qkv, 6 * H, 2 * H), o.view(),
             lse.view(), cu.view()},
            {column(dqkv, 0, 4 * H), column(dqkv, 4 * H, 2 * H), column(dqkv, 6 * H, 2 * H)});
  std::vector<Tensor> whole = {Tensor(dtype, {T, wide})};
  run_op(OpKind::kConcat, dtype, {}, NoAttributes{}, grads, whole);
  EXPECT_EQ(std::memcmp(dqkv.rows(71, T).data, whole[0].rows(71, T).data, 79 * wide * size), 0);
}

Tensor empty_cache(DType dtype, const AttentionAttributes& a, int64_t num_blocks) {
  const int64_t head_bytes = dtype == DType::kI8 ? kv_int8_head_bytes(a.head_dim) : a.head_dim * dtype_bytes(dtype);
  Tensor cache(dtype, {num_blocks, a.block_tokens, a.num_kv_heads * head_bytes / dtype_bytes(dtype)});
  std::memset(cache.data(), 0xFF, static_cast<size_t>(cache.size() * dtype_bytes(dtype)));
  return cache;
}

// Keys as values lie: word w of the key in place s of a tile stands at [w][s].
Tensor keys_in_rows(const Tensor& cache, const AttentionAttributes& a) {
  const Tensor rows(cache.dtype(), cache.dims());
  const int64_t slots = cache.dims()[0] * cache.dims()[1], words = cache.dims()[2] * dtype_bytes(cache.dtype()) / 4 / a.num_kv_heads;
  const auto* from = reinterpret_cast<const uint32_t*>(cache.data());
  auto* to = reinterpret_cast<uint32_t*>(rows.data());
  for (int64_t tile = 0; tile < slots / kKeyTileTokens; ++tile)
    for (int64_t head = 0; head < a.num_kv_heads; ++head)
      for (int64_t w = 0; w < words; ++w)
        for (int64_t s = 0; s < kKeyTileTokens; ++s)
          to[((tile * kKeyTileTokens + s) * a.num_kv_heads + head) * words + w] = from[((tile * a.num_kv_heads + head) * words + w) * kKeyTileTokens + s];
  return rows;
}

// The numbers that rows of a cache stand for.
Array cached_numbers(const Tensor& cache, const AttentionAttributes& a) {
  if (cache.dtype() != DType::kI8) return cache.array();
  const int64_t head_bytes = kv_int8_head_bytes(a.head_dim);
  Array numbers;
  for (int64_t at = 0; at < cache.size(); at += head_bytes) {
    const auto* codes = cache.as<int8_t>() + at;
    float scale;
    std::memcpy(&scale, codes + a.head_dim, sizeof scale);
    for (int64_t i = 0; i < a.head_dim; ++i) numbers.push_back(static_cast<double>(codes[i]) * static_cast<double>(scale));
  }
  return numbers;
}

// As attention over a cache in 8 bits reads queries (paged_int8.h).
Array in_eight_bits(const Array& x, int64_t head_dim) {
  Array numbers;
  for (size_t first = 0; first < x.size(); first += static_cast<size_t>(head_dim)) {
    float amax = 0;
    for (int64_t i = 0; i < head_dim; ++i) amax = std::max(amax, std::fabs(static_cast<float>(x[first + static_cast<size_t>(i)])));
    for (int64_t i = 0; i < head_dim; ++i)
      numbers.push_back(std::nearbyint(static_cast<float>(x[first + static_cast<size_t>(i)]) * (127.0f / amax)) * static_cast<double>(amax / 127.0f));
  }
  return numbers;
}

// A batch of sequences over a scrambled block table.
TEST_P(AttentionTest, PagedFollowsTheReferenceAndIgnoresChunks) {
  const DType dtype = GetParam();
  for (DType cache_dtype : {dtype, DType::kI8})
    for (const AttentionAttributes& base : {heads(4, 2, 64), heads(3, 1, 20), heads(2, 2, 32, 40)})
      for (int64_t block_tokens : {16, 48}) {
        AttentionAttributes a = base;
        a.block_tokens = block_tokens;
        const int64_t N = a.num_heads, K = a.num_kv_heads, H = a.head_dim, max_blocks = 10, num_blocks = 31;
        const Ids context_lens = {130, 1, 77}, new_rows = {130, 1, 3};
        Tensor table(DType::kI32, {3, max_blocks});
        for (int64_t i = 0; i < table.size(); ++i) table.set(i, static_cast<double>((i * 7 + 3) % num_blocks));
        std::vector<Tensor> caches = {empty_cache(cache_dtype, a, num_blocks), empty_cache(cache_dtype, a, num_blocks)};
        for (int64_t s = 0; s < 3; ++s) {
          const Tensor k = Tensor::random(dtype, {context_lens[s], K * H}, 10 + s),
                       v = Tensor::random(dtype, {context_lens[s], K * H}, 20 + s);
          Tensor slots(DType::kI32, {context_lens[s]});
          for (int64_t t = 0; t < slots.size(); ++t)
            slots.set(t, table.get(s * max_blocks + t / block_tokens) * static_cast<double>(block_tokens) +
                             static_cast<double>(t % block_tokens));
          run_everywhere(OpKind::kKvWrite, dtype, a, {k, v, slots}, caches);
        }
        const Ids cu = {0, 130, 131, 134};
        const Tensor q = Tensor::random(dtype, {134, N * H}, 1);
        std::vector<Tensor> o = {Tensor(dtype, {134, N * H})};
        const std::vector<Tensor> inputs = {q, caches[0], caches[1], table, Tensor::ids(context_lens), Tensor::ids(cu)};
        run_everywhere(OpKind::kPagedAttention, dtype, a, inputs, o, nullptr,
                       dtype == DType::kBF16 ? Arithmetic::kAmx32 : Arithmetic::kFma1);
        const bool int8 = cache_dtype == DType::kI8;
        const Array expected = reference::paged_attention(int8 ? in_eight_bits(q.array(), H) : q.array(), cached_numbers(keys_in_rows(caches[0], a), a), cached_numbers(caches[1], a), table.id_vector(),
                                                          context_lens, cu, a);
        // In 8 bits the code of each of 130 weights is off by at most half of 1 / 32767 of the largest.
        const double f32_steps = 256 + (int8 ? 130 * 0.5 / 32767 / unit_roundoff(DType::kF32) : 0);
        expect_near(o[0], expected, tolerance_roundings(dtype), f32_steps, 2, "paged o");

        // Sequence 0 again in chunks of 1 to 61 rows, each seeing the cache up to itself.
        const Machine machine{cpu_features().best_isa(), 2, dtype == DType::kBF16 ? Arithmetic::kAmx32 : Arithmetic::kFma1, true};
        int64_t row = 0;
        for (int64_t chunk : {1, 61, 17, 1, 50}) {
          const Tensor part(dtype, {chunk, N * H}), length = Tensor::ids({static_cast<int32_t>(row + chunk)});
          const Tensor ends = Tensor::ids({0, static_cast<int32_t>(chunk)});
          run_views(OpKind::kPagedAttention, dtype, machine, a,
                    {q.rows(row, row + chunk), caches[0].view(), caches[1].view(), table.rows(0, 1), length.view(), ends.view()},
                    {part.view()});
          EXPECT_EQ(std::memcmp(part.data(), o[0].rows(row, row + chunk).data, part.size() * dtype_bytes(dtype)), 0)
              << "rows from " << row;
          row += chunk;
        }
        EXPECT_EQ(row, 130);
      }
}

// A sequence of 211 tokens whose cache blocks are out of order.
struct CachedSequence {
  static constexpr int64_t kTokens = 211, kBlocks = 14;

  AttentionAttributes a;
  Tensor table{DType::kI32, {1, kBlocks}}, q, k_cache, v_cache;

  CachedSequence(const Machine& machine, DType dtype, DType cache_dtype, const AttentionAttributes& attributes) : a(attributes) {
    a.block_tokens = 16;
    Tensor slots(DType::kI32, {kTokens});
    for (int64_t i = 0; i < kBlocks; ++i) table.set(i, static_cast<double>((i * 5 + 3) % kBlocks));
    for (int64_t t = 0; t < kTokens; ++t) slots.set(t, table.get(t / 16) * 16 + static_cast<double>(t % 16));
    const Tensor k = Tensor::random(dtype, {kTokens, a.num_kv_heads * a.head_dim}, 31), v = Tensor::random(dtype, {kTokens, a.num_kv_heads * a.head_dim}, 32);
    q = Tensor::random(dtype, {kTokens, a.num_heads * a.head_dim}, 33);
    k_cache = empty_cache(cache_dtype, a, kBlocks), v_cache = empty_cache(cache_dtype, a, kBlocks);
    run_views(OpKind::kKvWrite, dtype, machine, a, {k.view(), v.view(), slots.view()}, {k_cache.view(), v_cache.view()});
  }
};

const std::vector<AttentionAttributes> kDecodedShapes = {heads(9, 3, 64), heads(4, 1, 256), heads(5, 1, 32, 70), heads(6, 3, 128), heads(7, 1, 96)};

// The kernel for one query row gives the block kernel's bits, whatever the group, the head, the window, the cache's blocks and the instruction set.
TEST_P(AttentionTest, DecodedAloneOrInAChunkTheBitsAreEqual) {
  const DType dtype = GetParam();
  std::vector<Machine> machines;
  for (const auto& [arithmetic, native] : {std::pair(Arithmetic::kDp2, true), std::pair(Arithmetic::kDp2, false), std::pair(Arithmetic::kFma1, true)})
    for (VectorIsa isa : {VectorIsa::kAvx2, VectorIsa::kAvx512})
      if (isa <= cpu_features().best_isa()) machines.push_back({isa, 2, arithmetic, native});
  for (const Machine& machine : machines)
    for (DType cache_dtype : {dtype, DType::kI8}) {
      ASSERT_NE(paged_decode({&pool_of(2), machine.isa, machine.arithmetic, machine.native_arithmetic}, dtype, cache_dtype, 64), nullptr);
      for (const AttentionAttributes& shape : kDecodedShapes) {
        const CachedSequence sequence(machine, dtype, cache_dtype, shape);
        const int64_t T = CachedSequence::kTokens, N = shape.num_heads * shape.head_dim;
        const auto attend = [&](int64_t begin, int64_t end, const Tensor& o) {
          const Tensor length = Tensor::ids({static_cast<int32_t>(end)}), ends = Tensor::ids({0, static_cast<int32_t>(end - begin)});
          run_views(OpKind::kPagedAttention, dtype, machine, sequence.a,
                    {sequence.q.rows(begin, end), sequence.k_cache.view(), sequence.v_cache.view(), sequence.table.view(), length.view(), ends.view()}, {o.rows(begin, end)});
        };
        const Tensor whole(dtype, {T, N}), alone(dtype, {T, N}), by_three(dtype, {T, N});
        attend(0, T, whole);
        for (int64_t t = 0; t < T; ++t) attend(t, t + 1, alone);
        for (int64_t t = 0; t < T; t += 3) attend(t, std::min(T, t + 3), by_three);
        EXPECT_TRUE(alone.same_bits(whole)) << shape.num_heads << " heads of " << shape.head_dim;
        EXPECT_TRUE(by_three.same_bits(whole)) << shape.num_heads << " heads of " << shape.head_dim;
      }
    }
}

// The two kernels for dp2, of which the op takes the faster one.
TEST(PagedDecodeTest, Vdpbf16psGivesTheBitsOfFmas) {
  if (!cpu_features().avx512_bf16) GTEST_SKIP() << "no vdpbf16ps here: its decode kernel was not compared";
  const Machine machine{VectorIsa::kAvx512, 1, Arithmetic::kDp2, true};
  for (const AttentionAttributes& shape : kDecodedShapes) {
    const CachedSequence sequence(machine, DType::kBF16, DType::kBF16, shape);
    const int64_t N = shape.num_heads * shape.head_dim;
    std::vector<std::byte> scratch(static_cast<size_t>(paged_decode_scratch_bytes(shape.num_heads, shape.head_dim)) + 64);
    PagedTask task;
    task.num_queries = 1, task.num_kv_heads = shape.num_kv_heads, task.head_dim = shape.head_dim, task.group = shape.num_heads / shape.num_kv_heads;
    task.window = shape.window, task.scale = static_cast<float>(shape.scale);
    task.q_stride = task.o_stride = N;
    task.k_cache = sequence.k_cache.data(), task.v_cache = sequence.v_cache.data(), task.token_stride = shape.num_kv_heads * shape.head_dim;
    task.block_tokens = 16, task.block_table = sequence.table.as<int32_t>();
    task.scratch = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
    for (task.context = 1; task.context <= CachedSequence::kTokens; ++task.context) {
      const Tensor by_dots(DType::kBF16, {1, N}), by_fmas(DType::kBF16, {1, N});
      task.q = sequence.q.rows(task.context - 1, task.context).data;
      task.o = by_dots.data(), kPagedDecodeVdpbf16ps(task);
      task.o = by_fmas.data(), simd_avx512::kPagedDecodeDp2(task);
      ASSERT_TRUE(by_dots.same_bits(by_fmas)) << shape.num_heads << " heads of " << shape.head_dim << ", " << task.context << " keys";
    }
  }
}

// Only amx32, whose sums are not made word by word, does without.
TEST(PagedDecodeTest, EveryOtherArithmeticHasAKernel) {
  for (VectorIsa isa : {VectorIsa::kAvx2, VectorIsa::kAvx512})
    for (Arithmetic arithmetic : {Arithmetic::kAmx32, Arithmetic::kDp2, Arithmetic::kFma1}) {
      const KernelContext context{&pool_of(1), isa, arithmetic, false};
      for (DType dtype : {DType::kF32, DType::kBF16}) {
        EXPECT_NE(paged_decode(context, dtype, DType::kI8, 64), nullptr);
        EXPECT_EQ(paged_decode(context, dtype, dtype, 64) == nullptr, dtype == DType::kBF16 && arithmetic == Arithmetic::kAmx32);
      }
    }
}

INSTANTIATE_TEST_SUITE_P(Types, AttentionTest, testing::ValuesIn(kComputeTypes),
                         [](const auto& instance) { return std::string(dtype_name(instance.param)); });

}  // namespace
}  // namespace orrery
