// Proves attention over shares of sequences against the f64 reference of the whole: every rank's queries meet every rank's keys, in the order
// of a ring, for chunks of more and less than a key block, windows shorter and longer than a chunk, and documents that begin and end anywhere; and
// that bits depend neither on threads nor on the instruction set.
#include "backend/cpu/attention_pieces.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "backend/cpu/op_test_util.h"
#include "backend/reference/ops.h"

namespace orrery {
namespace {

using namespace test;
using reference::Array;
using reference::Ids;

struct Case {
  int64_t num_ranks, chunk;
  AttentionAttributes attributes;
  Ids inner_starts;  // of documents, besides those of the sequences
};

constexpr int64_t kSequences = 2;

const Case kCases[] = {
    {2, 8, heads(2, 1, 32), {}},           {2, 70, heads(4, 2, 24), {5, 100, 139, 141, 290, 300}}, {3, 130, heads(2, 2, 64), {1, 131, 500}},
    {2, 150, heads(2, 1, 16, 40), {}},     {2, 70, heads(3, 1, 48, 200), {33, 400}},               {4, 64, heads(2, 1, 32, 64), {}},
    {4, 33, heads(1, 1, 16, 1), {70, 71}},
};

class AttentionPieceTest : public testing::TestWithParam<DType> {};

// The rows of a rank's tokens, by row of its share.
std::vector<int64_t> rows_of(const TokenShares& shares, int64_t rank) {
  std::vector<int64_t> rows;
  for (int64_t sequence = 0; sequence < kSequences; ++sequence)
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t i = 0; i < shares.chunk(); ++i) rows.push_back(sequence * shares.sequence_tokens + shares.chunk_of(rank, half) * shares.chunk() + i);
  return rows;
}

Tensor take(const Tensor& x, const std::vector<int64_t>& rows) {
  const int64_t width = x.dims()[1];
  Tensor part(x.dtype(), {static_cast<int64_t>(rows.size()), width});
  for (size_t row = 0; row < rows.size(); ++row)
    for (int64_t i = 0; i < width; ++i) part.set(static_cast<int64_t>(row) * width + i, x.get(rows[row] * width + i));
  return part;
}

void put(const Tensor& part, const std::vector<int64_t>& rows, const Tensor& x) {
  const int64_t width = x.dims()[1];
  for (size_t row = 0; row < rows.size(); ++row)
    for (int64_t i = 0; i < width; ++i) const_cast<Tensor&>(x).set(rows[row] * width + i, part.get(static_cast<int64_t>(row) * width + i));
}

struct Whole {
  Tensor o, lse;  // lse [T, N]
  Tensor dq, dk, dv;
};

class Runner {
 public:
  Runner(const Case& c, DType dtype, const Machine& machine, Arithmetic arithmetic, const std::array<Tensor, 4>& operands, const Ids& cu_seqlens)
      : shares_{c.num_ranks, 2 * c.num_ranks * c.chunk}, attributes_(c.attributes), dtype_(dtype), context_{&pool_of(machine.num_threads), machine.isa, arithmetic, false}, cu_seqlens_(cu_seqlens) {
    for (int64_t rank = 0; rank < c.num_ranks; ++rank) {
      rows_.push_back(rows_of(shares_, rank));
      for (size_t i = 0; i < 4; ++i) parts_[i].push_back(take(operands[i], rows_.back()));
    }
    const DeviceSpec device{machine.isa, arithmetic, false, machine.num_threads};
    for (size_t backward : {0, 1}) memory_[backward].assign(static_cast<size_t>(attention_piece_workspace_bytes(device, shares_, attributes_, dtype, backward == 1)) + 64, 0xFF);
  }

  Whole run() {
    set_floating_point_mode();
    const int64_t T = kSequences * shares_.sequence_tokens, local = kSequences * shares_.local_tokens(), N = attributes_.num_heads, K = attributes_.num_kv_heads, H = attributes_.head_dim;
    Whole whole{Tensor(DType::kF32, {T, N * H}), Tensor(DType::kF32, {T, N}), Tensor(DType::kF32, {T, N * H}), Tensor(DType::kF32, {T, K * H}), Tensor(DType::kF32, {T, K * H})};
    std::vector<Tensor> o, lse, dk(static_cast<size_t>(shares_.num_ranks), Tensor::filled(DType::kF32, {local, K * H}, 0)), dv = dk;
    for (int64_t rank = 0; rank < shares_.num_ranks; ++rank) {
      o.emplace_back(DType::kF32, std::vector<int64_t>{local, N * H});
      lse.push_back(Tensor::filled(DType::kF32, {N, local}, -std::numeric_limits<double>::infinity()));
      for (int64_t step = 0; step < shares_.num_ranks; ++step)
        add_attention_piece(context_, piece(rank, step), o.back().as<float>(), lse.back().as<float>(), workspace(0));
      EXPECT_TRUE(o.back().guard_intact() && lse.back().guard_intact());
      put(o.back(), rows_[static_cast<size_t>(rank)], whole.o);
      for (int64_t row = 0; row < local; ++row)
        for (int64_t head = 0; head < N; ++head) whole.lse.set(rows_[static_cast<size_t>(rank)][static_cast<size_t>(row)] * N + head, lse.back().get(head * local + row));
    }
    for (int64_t rank = 0; rank < shares_.num_ranks; ++rank) {
      const auto index = static_cast<size_t>(rank);
      // The backward reads o as the op leaves it.
      Tensor rounded(dtype_, {local, N * H});
      for (int64_t i = 0; i < rounded.size(); ++i) rounded.set(i, o[index].get(i));
      const Tensor dq = Tensor::filled(DType::kF32, {local, N * H}, 0);
      for (int64_t step = 0; step < shares_.num_ranks; ++step) {
        const AttentionPiece one = piece(rank, step);
        const auto key = static_cast<size_t>(one.key_rank);
        add_attention_piece_grad(context_, one, parts_[3][index].view(), rounded.view(), lse[index].as<float>(), dq.as<float>(), dk[key].as<float>(), dv[key].as<float>(), workspace(1));
      }
      EXPECT_TRUE(dq.guard_intact());
      put(dq, rows_[index], whole.dq);
    }
    for (size_t rank = 0; rank < rows_.size(); ++rank) {
      EXPECT_TRUE(dk[rank].guard_intact() && dv[rank].guard_intact());
      put(dk[rank], rows_[rank], whole.dk);
      put(dv[rank], rows_[rank], whole.dv);
    }
    return whole;
  }

 private:
  AttentionPiece piece(int64_t rank, int64_t step) const {
    const int64_t key_rank = (rank - step + shares_.num_ranks) % shares_.num_ranks;
    return {shares_, rank, key_rank, attributes_, cu_seqlens_, parts_[0][static_cast<size_t>(rank)].view(), parts_[1][static_cast<size_t>(key_rank)].view(), parts_[2][static_cast<size_t>(key_rank)].view()};
  }
  std::span<std::byte> workspace(size_t backward) {
    auto* aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(memory_[backward].data()) + 63) / 64 * 64);
    return {aligned, memory_[backward].size() - 64};
  }

  TokenShares shares_;
  AttentionAttributes attributes_;
  DType dtype_;
  KernelContext context_;
  const Ids& cu_seqlens_;
  std::vector<std::vector<int64_t>> rows_;
  std::array<std::vector<Tensor>, 4> parts_;  // q, k, v, do, by rank
  std::array<std::vector<uint8_t>, 2> memory_;
};

TEST_P(AttentionPieceTest, FollowTheReferenceOfTheWhole) {
  const DType dtype = GetParam();
  for (const Case& c : kCases) {
    const AttentionAttributes& a = c.attributes;
    const int64_t L = 2 * c.num_ranks * c.chunk, T = kSequences * L, N = a.num_heads, K = a.num_kv_heads, H = a.head_dim;
    SCOPED_TRACE(fmt::format("{} ranks, chunks of {}, window {}", c.num_ranks, c.chunk, a.window));
    Ids cu_seqlens = c.inner_starts;
    for (int64_t sequence = 0; sequence <= kSequences; ++sequence) cu_seqlens.push_back(static_cast<int32_t>(sequence * L));
    std::sort(cu_seqlens.begin(), cu_seqlens.end());
    const std::array<Tensor, 4> operands = {Tensor::random(dtype, {T, N * H}, 1), Tensor::random(dtype, {T, K * H}, 2), Tensor::random(dtype, {T, K * H}, 3), Tensor::random(dtype, {T, N * H}, 4)};
    const auto& [q, k, v, dout] = operands;
    for (Arithmetic arithmetic : {Arithmetic::kAmx32, Arithmetic::kDp2, Arithmetic::kFma1}) {
      if (dtype == DType::kF32 && arithmetic != Arithmetic::kFma1) continue;
      std::optional<Whole> first;
      for (const Machine& machine : machines(arithmetic)) {
        Whole result = Runner(c, dtype, machine, arithmetic, operands, cu_seqlens).run();
        if (!first) first = result;
        for (auto member : {&Whole::o, &Whole::lse, &Whole::dq, &Whole::dk, &Whole::dv}) EXPECT_TRUE((result.*member).same_bits((*first).*member)) << machine.num_threads << " threads";
      }
      const auto expected = reference::attention(q.array(), k.array(), v.array(), cu_seqlens, a);
      const auto gradient = reference::attention_grad(dout.array(), q.array(), k.array(), v.array(), cu_seqlens, a);
      // As in attention_test.cpp; P and dS are rounded to the operands' type on the way, the results are f32.
      const double steps = static_cast<double>(T) + static_cast<double>(H) + 16, scale = 16 * std::sqrt(static_cast<double>(H));
      const double unit = unit_roundoff(dtype) / unit_roundoff(DType::kF32);
      const double roundings = unit * (dtype == DType::kBF16 ? 3 : 1), grad_roundings = unit * (dtype == DType::kBF16 ? 8 : 1);
      Array lse(static_cast<size_t>(T * N));
      for (int64_t t = 0; t < T; ++t)
        for (int64_t n = 0; n < N; ++n) lse[static_cast<size_t>(t * N + n)] = expected.lse[static_cast<size_t>(n * T + t)];
      expect_near(first->o, expected.o, roundings, steps, 2, "o");
      expect_near(first->lse, lse, 0, steps, std::max(1.0, 4 * std::sqrt(static_cast<double>(H))), "lse");
      expect_near(first->dq, gradient.dq, grad_roundings, steps, scale, "dq");
      expect_near(first->dk, gradient.dk, grad_roundings, steps, scale, "dk");
      expect_near(first->dv, gradient.dv, grad_roundings, steps, scale, "dv");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, AttentionPieceTest, testing::ValuesIn(kComputeTypes), [](const auto& instance) { return std::string(dtype_name(instance.param)); });

}  // namespace
}  // namespace orrery
