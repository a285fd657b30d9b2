#include "runtime/op_collectives.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/attention_pieces.h"
#include "base/portable_math.h"
#include "runtime/ring_attention.h"

namespace orrery {
namespace {

// Each rank has the losses and the log-sum-exps over its part of the vocabulary; their difference is the target's logit where the target is
// in that part, and 0 elsewhere.
struct Part {
  float lse, target_logit;
};

// Calls visit(whole row, local row, count) for the runs of rows that are `rank`'s: chunk by chunk, in the order of its rows.
template <typename Visit>
void for_chunks(const TokenShares& shares, int64_t rank, int64_t num_sequences, Visit&& visit) {
  for (int64_t sequence = 0; sequence < num_sequences; ++sequence)
    for (int64_t half = 0; half < 2; ++half)
      visit(sequence * shares.sequence_tokens + shares.chunk_of(rank, half) * shares.chunk(), sequence * shares.local_tokens() + half * shares.chunk(), shares.chunk());
}

// Columns [from_column, from_column + width) of rows from `from` on, into those of rows from `to` on.
void copy_columns(const TensorView& x, int64_t from, int64_t from_column, const TensorView& y, int64_t to, int64_t to_column, int64_t rows, int64_t width) {
  const int64_t element = dtype_bytes(x.dtype);
  for (int64_t row = 0; row < rows; ++row)
    std::memcpy(y.data + ((to + row) * y.row_stride + to_column) * element, x.data + ((from + row) * x.row_stride + from_column) * element, static_cast<size_t>(width * element));
}

std::span<std::byte> rows_of(const TensorView& x, int64_t first, int64_t count) {
  ORRERY_CHECK(x.contiguous(), "rows that are {} apart, not {}", x.row_stride, x.row_width());
  const int64_t bytes = x.row_width() * dtype_bytes(x.dtype);
  return {x.data + first * bytes, static_cast<size_t>(count * bytes)};
}

}  // namespace

OpGroup::OpGroup(GroupAttributes where, Communicator& communicator)
    : where_(where), communicator_(communicator), tree_(rank_tree_plan(communicator.size())), owners_(static_cast<size_t>(communicator.size())) {
  ORRERY_CHECK(communicator.size() == where.size, "a group of {} for {}", communicator.size(), where.size);
}

void OpGroup::all_reduce(const KernelContext& context, const OpCall& call, std::string_view label) {
  const TensorView &x = call.in(0), &y = call.out(0);
  const int64_t row_bytes = y.row_width() * dtype_bytes(y.dtype), stride = x.row_stride * dtype_bytes(x.dtype);
  if (x.data != y.data)
    context.pool->parallel_for(y.rows(), std::max<int64_t>(1, 65536 / std::max<int64_t>(1, row_bytes)), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) std::memcpy(y.data + row * row_bytes, x.data + row * stride, static_cast<size_t>(row_bytes));
    });
  communicator_.all_reduce({y.data, static_cast<size_t>(y.rows() * row_bytes)}, y.dtype, label);
}

void OpGroup::gather_tokens(const OpCall& call, std::string_view label) {
  const TensorView &x = call.in(0), &y = call.out(0);
  const int64_t num_sequences = call.fold->num_sequences, mine = x.rows() / num_sequences, all = mine * where_.size;
  for (int64_t sequence = 0; sequence < num_sequences; ++sequence) communicator_.all_gather(rows_of(x, sequence * mine, mine), rows_of(y, sequence * all, all), label);
}

void OpGroup::reduce_scatter_tokens(const OpCall& call, std::string_view label) {
  const TensorView &x = call.in(0), &y = call.out(0);
  const int64_t num_sequences = call.fold->num_sequences, mine = y.rows() / num_sequences, all = mine * where_.size;
  for (size_t rank = 0; rank < owners_.size(); ++rank) owners_[rank] = {static_cast<int64_t>(rank) * mine * x.row_width(), static_cast<int64_t>(rank + 1) * mine * x.row_width()};
  for (int64_t sequence = 0; sequence < num_sequences; ++sequence) {
    const std::byte* const piece = rows_of(x, sequence * all, all).data();
    std::byte* const sum = rows_of(y, sequence * mine, mine).data();
    communicator_.reduce_scatter(tree_, x.dtype, {&piece, 1}, owners_, {&sum, 1}, label);
  }
}

// By rank, packed one after the other: what goes there, and what comes from there.
void OpGroup::exchange_heads(const KernelContext& context, const OpCall& call, std::string_view label) {
  const TensorView &x = call.in(0), &y = call.out(0);
  const bool to_heads = call.kind == OpKind::kTokensToHeads;
  const TensorView &tokens = to_heads ? x : y, &heads = to_heads ? y : x;
  const int64_t num_sequences = call.fold->num_sequences, width = heads.row_width(), part = tokens.rows() * width;
  const TokenShares shares{where_.size, heads.rows() / num_sequences};
  const auto bytes = static_cast<size_t>(where_.size * part * dtype_bytes(x.dtype));
  ORRERY_CHECK(call.workspace.size() >= 2 * bytes, "{}: workspace of {}", op_name(call.kind), call.workspace.size());
  const std::span<std::byte> out = call.workspace.first(bytes), in = call.workspace.subspan(bytes, bytes);
  const auto packed = [&](std::span<std::byte> from, int64_t rank) {
    TensorView view = tokens;
    view.data = from.data() + rank * part * dtype_bytes(x.dtype);
    view.dims[1] = view.row_stride = width;
    return view;
  };
  const auto move = [&](std::span<std::byte> buffer, bool tokens_side, bool packs) {
    context.pool->parallel_for(where_.size, 1, [&](int64_t begin, int64_t end) {
      for (int64_t rank = begin; rank < end; ++rank) {
        const TensorView box = packed(buffer, rank);
        if (tokens_side) {
          packs ? copy_columns(tokens, 0, rank * width, box, 0, 0, tokens.rows(), width) : copy_columns(box, 0, 0, tokens, 0, rank * width, tokens.rows(), width);
          continue;
        }
        for_chunks(shares, rank, num_sequences, [&](int64_t whole, int64_t local, int64_t count) {
          packs ? copy_columns(heads, whole, 0, box, local, 0, count, width) : copy_columns(box, local, 0, heads, whole, 0, count, width);
        });
      }
    });
  };
  move(out, to_heads, true);
  communicator_.all_to_all(out, in, label);
  move(in, !to_heads, false);
}

void OpGroup::vocabulary_loss(const OpCall& call, std::string_view label) {
  const auto num_tokens = static_cast<size_t>(call.in(0).rows());
  const auto num_ranks = static_cast<size_t>(communicator_.size()), rank = static_cast<size_t>(communicator_.rank());
  ORRERY_CHECK(call.workspace.size() >= num_ranks * num_tokens * sizeof(Part), "vocabulary_loss: workspace of {}", call.workspace.size());
  const float *loss = call.in(0).as<float>(), *lse = call.in(1).as<float>();
  const int32_t* targets = call.in(2).as<int32_t>();
  const std::span<Part> parts(reinterpret_cast<Part*>(call.workspace.data()), num_ranks * num_tokens);
  const std::span<Part> mine = parts.subspan(rank * num_tokens, num_tokens);
  for (size_t i = 0; i < num_tokens; ++i) mine[i] = {lse[i], targets[i] < 0 ? 0.0f : lse[i] - loss[i]};
  communicator_.all_gather(std::as_bytes(mine), std::as_writable_bytes(parts), label);
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

int64_t op_collective_workspace_bytes(const DeviceSpec& device, const OpCall& call, GroupAttributes group) {
  const int64_t tokens = call.in(0).rows();
  switch (call.kind) {
    case OpKind::kVocabularyLoss: return group.size * tokens * static_cast<int64_t>(sizeof(Part));
    case OpKind::kTokensToHeads:
    case OpKind::kHeadsToTokens: return 2 * call.in(0).num_elements() * dtype_bytes(call.in(0).dtype);
    case OpKind::kRingAttention:
    case OpKind::kRingAttentionGrad: return ring_attention_workspace_bytes(device, call, group.size, call.fold->num_sequences);
    default: return 0;
  }
}

void OpGroup::run(const KernelContext& context, const OpCall& call, std::string_view label) {
  switch (call.kind) {
    case OpKind::kAllReduce: return all_reduce(context, call, label);
    case OpKind::kVocabularyLoss: return vocabulary_loss(call, label);
    case OpKind::kGatherTokens: return gather_tokens(call, label);
    case OpKind::kReduceScatterTokens: return reduce_scatter_tokens(call, label);
    case OpKind::kTokensToHeads:
    case OpKind::kHeadsToTokens: return exchange_heads(context, call, label);
    case OpKind::kRingAttention:
    case OpKind::kRingAttentionGrad: return run_ring_attention(communicator_, context, call, label);
    default: ORRERY_CHECK(false, "{} is no collective", op_name(call.kind));
  }
}

}  // namespace orrery
