// Ops that move rows (kEmbedding, kGatherRows, kSplit, kConcat) and the gradients that sum them (kBiasGrad, kEmbeddingGrad).
#include <algorithm>
#include <cstring>

#include "backend/cpu/fold.h"
#include "backend/cpu/ops.h"
#include "backend/cpu/row_kernels.h"

namespace orrery {
namespace {

void gather(const KernelContext& context, const TensorView& table, const TensorView& indices, const TensorView& y) {
  const int64_t row_bytes = y.row_width() * dtype_bytes(y.dtype), height = table.rows();
  ORRERY_CHECK(table.row_width() == y.row_width() && table.dtype == y.dtype && indices.rows() == y.rows(), "gather of {} to {}",
               table.row_width(), y.row_width());
  const int32_t* index = indices.as<int32_t>();
  parallel_rows(*context.pool, y.rows(), row_bytes, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (index[row] == kElsewhere) {
        std::memset(row_at(y, row), 0, static_cast<size_t>(row_bytes));
        continue;
      }
      ORRERY_CHECK(index[row] >= 0 && index[row] < height, "row {} of a table of {}", index[row], height);
      std::memcpy(row_at(y, row), row_at(table, index[row]), row_bytes);
    }
  });
}

void run_embedding(const KernelContext& context, const OpCall& call) { gather(context, call.in(1), call.in(0), call.out(0)); }

void run_local_ids(const KernelContext&, const OpCall& call) {
  const auto& range = call.attribute<VocabularyAttributes>();
  const int32_t* ids = call.in(0).as<int32_t>();
  int32_t* local = call.out(0).as<int32_t>();
  const auto first = static_cast<int32_t>(range.first), count = static_cast<int32_t>(range.count);
  for (int64_t i = 0; i < call.in(0).rows(); ++i)
    local[i] = ids[i] < 0 ? ids[i] : ids[i] >= first && ids[i] - first < count ? ids[i] - first : kElsewhere;
}

void run_take_tokens(const KernelContext&, const OpCall& call) {
  const auto& share = call.attribute<TokenShareAttributes>();
  const TensorView &x = call.in(0), &y = call.out(0);
  ORRERY_CHECK(x.rows() % share.of == 0 && y.rows() == x.rows() / share.of * share.count, "{} rows of {}", y.rows(), x.rows());
  for (int64_t row = 0; row < y.rows(); ++row)
    std::memcpy(row_at(y, row), row_at(x, row / share.count * share.of + share.first + row % share.count), static_cast<size_t>(y.row_width() * dtype_bytes(y.dtype)));
}

void run_gather_rows(const KernelContext& context, const OpCall& call) { gather(context, call.in(0), call.in(1), call.out(0)); }

// Copies between one wide tensor and the narrow ones that stand side by side in it.
void copy_parts(const KernelContext& context, const TensorView& whole, std::span<const TensorView> parts, bool to_parts) {
  const int64_t size = dtype_bytes(whole.dtype);
  int64_t total = 0;
  for (const TensorView& part : parts) total += part.row_width();
  ORRERY_CHECK(total == whole.row_width(), "parts of {} columns in {}", total, whole.row_width());
  parallel_rows(*context.pool, whole.rows(), total * size, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::byte* address = row_at(whole, row);
      for (const TensorView& part : parts) {
        const int64_t bytes = part.row_width() * size;
        if (to_parts)
          std::memcpy(row_at(part, row), address, bytes);
        else
          std::memcpy(address, row_at(part, row), bytes);
        address += bytes;
      }
    }
  });
}

void run_split(const KernelContext& context, const OpCall& call) { copy_parts(context, call.in(0), call.outputs, true); }
void run_concat(const KernelContext& context, const OpCall& call) { copy_parts(context, call.out(0), call.inputs, false); }

// ---- kBiasGrad: threads take columns ----------------------------------------------------------------------------------------

int64_t bias_grad_workspace(const DeviceSpec&, const OpCall& call) {
  return (kFoldEntries + 1) * call.in(0).row_width() * static_cast<int64_t>(sizeof(float));
}

void run_bias_grad(const KernelContext& context, const OpCall& call) {
  const TensorView &dy = call.in(0), &dbias = call.out(0);
  const GradFold& fold = *call.fold;
  const int64_t width = dy.row_width(), tokens = fold.sequence_tokens;
  ORRERY_CHECK(fold.num_sequences * tokens == dy.rows() && dbias.num_elements() == width, "bias_grad of {} rows", dy.rows());
  ORRERY_CHECK(static_cast<int64_t>(call.workspace.size()) >= bias_grad_workspace({}, call), "bias_grad: workspace");
  if (fold.num_sequences == 0) return;
  float* sums = reinterpret_cast<float*>(call.workspace.data());
  const RowKernels& kernels = row_kernels(context.isa, dy.dtype);
  const int64_t size = dtype_bytes(dy.dtype);
  context.pool->parallel_for(width, 64, [&](int64_t begin, int64_t end) {
    FoldStack stack(sums + width + begin, width, end - begin);
    if (fold.add_to_destination) stack.push(dbias.as<float>() + begin);
    for (int64_t i = 0; i < fold.num_sequences; ++i) {
      std::fill(sums + begin, sums + end, 0.0f);
      kernels.add_rows(row_at(dy, i * tokens) + begin * size, dy.row_stride, tokens, end - begin, sums + begin);
      stack.push(sums + begin);
      stack.merge(fold.merges[i]);
    }
    std::copy_n(stack.result(), end - begin, dbias.as<float>() + begin);
  });
}

// ---- kEmbeddingGrad
// -----------------------------------------------------------------------------------------------------------
//
// dtable[v] = fold over the sequences of the sum of dx's rows whose id is v, each sum from +0 in row order; a sequence without
// v counts as +0. Rows of dtable that no token names are not touched: the caller zeroes the table before its first use in a
// step, and an untouched row is then the same +0 that a dense sum would give. Threads take columns, so every thread walks the
// same sorted list.

constexpr int64_t kRadixBits = 11;
constexpr int64_t kRadixBuckets = int64_t{1} << kRadixBits;

int64_t embedding_grad_workspace(const DeviceSpec&, const OpCall& call) {
  const int64_t tokens = call.in(0).rows(), width = call.in(0).row_width();
  return 2 * ((tokens * 4 + 63) / 64 * 64) + (kRadixBuckets + 16) * 4 + (kFoldEntries + 1) * width * 4;
}

// Those of rows 0 .. T - 1 whose ids are here, ordered by (id, row): a stable counting sort per 11-bit digit of the id, lowest digit first.
std::span<const int32_t> sort_rows_by_id(std::span<const int32_t> ids, int64_t height, int32_t* rows, int32_t* scratch, int32_t* starts) {
  int64_t num_rows = 0;
  for (size_t row = 0; row < ids.size(); ++row) {
    if (ids[row] == kElsewhere) continue;
    ORRERY_CHECK(ids[row] >= 0 && ids[row] < height, "id {} of a table of {}", ids[row], height);
    rows[num_rows++] = static_cast<int32_t>(row);
  }
  for (int64_t shift = 0; shift == 0 || ((height - 1) >> shift) != 0; shift += kRadixBits) {
    std::fill(starts, starts + kRadixBuckets + 1, 0);
    const auto digit = [&](int32_t row) { return (ids[row] >> shift) & (kRadixBuckets - 1); };
    for (int64_t i = 0; i < num_rows; ++i) ++starts[digit(rows[i]) + 1];
    for (int64_t i = 0; i < kRadixBuckets; ++i) starts[i + 1] += starts[i];
    for (int64_t i = 0; i < num_rows; ++i) scratch[starts[digit(rows[i])]++] = rows[i];
    std::swap(rows, scratch);
  }
  return {rows, static_cast<size_t>(num_rows)};
}

void run_embedding_grad(const KernelContext& context, const OpCall& call) {
  const TensorView &dx = call.in(0), &ids = call.in(1), &dtable = call.out(0);
  const GradFold& fold = *call.fold;
  const int64_t num_rows = dx.rows(), width = dx.row_width(), tokens = fold.sequence_tokens;
  ORRERY_CHECK(fold.num_sequences * tokens == num_rows && dtable.row_width() == width, "embedding_grad of {} rows", num_rows);
  ORRERY_CHECK(static_cast<int64_t>(call.workspace.size()) >= embedding_grad_workspace({}, call), "embedding_grad: workspace");
  if (num_rows == 0) return;
  const int64_t list = (num_rows * 4 + 63) / 64 * 16;
  int32_t* lists = reinterpret_cast<int32_t*>(call.workspace.data());
  int32_t* starts = lists + 2 * list;
  float* sums = reinterpret_cast<float*>(starts + kRadixBuckets + 16);
  const int32_t* id = ids.as<int32_t>();
  const std::span<const int32_t> sorted = sort_rows_by_id({id, static_cast<size_t>(num_rows)}, dtable.rows(), lists, lists + list, starts);
  const int32_t* rows = sorted.data();
  const auto num_sorted = static_cast<int64_t>(sorted.size());
  const RowKernels& kernels = row_kernels(context.isa, dx.dtype);
  const int64_t size = dtype_bytes(dx.dtype);
  context.pool->parallel_for(width, 64, [&](int64_t begin, int64_t end) {
    FoldStack stack(sums + width + begin, width, end - begin);
    for (int64_t i = 0; i < num_sorted;) {
      const int32_t v = id[rows[i]];
      float* destination = reinterpret_cast<float*>(row_at(dtable, v)) + begin;
      stack.clear();
      if (fold.add_to_destination) stack.push(destination);
      for (int64_t sequence = 0; sequence < fold.num_sequences; ++sequence) {
        int64_t last = i;
        while (last < num_sorted && id[rows[last]] == v && rows[last] < (sequence + 1) * tokens) ++last;
        stack.push(nullptr);
        kernels.add_rows_at(dx.data + begin * size, dx.row_stride, rows + i, last - i, end - begin, stack.top());
        stack.merge(fold.merges[sequence]);
        i = last;
      }
      std::copy_n(stack.result(), end - begin, destination);
    }
  });
}

constexpr KernelEntry kEntries[] = {
    {OpKind::kLocalIds, DType::kBF16, run_local_ids},
    {OpKind::kLocalIds, DType::kF32, run_local_ids},
    {OpKind::kTakeTokens, DType::kBF16, run_take_tokens},
    {OpKind::kTakeTokens, DType::kF32, run_take_tokens},
    {OpKind::kEmbedding, DType::kBF16, run_embedding},
    {OpKind::kEmbedding, DType::kF32, run_embedding},
    {OpKind::kGatherRows, DType::kBF16, run_gather_rows},
    {OpKind::kGatherRows, DType::kF32, run_gather_rows},
    {OpKind::kSplit, DType::kBF16, run_split},
    {OpKind::kSplit, DType::kF32, run_split},
    {OpKind::kConcat, DType::kBF16, run_concat},
    {OpKind::kConcat, DType::kF32, run_concat},
    {OpKind::kBiasGrad, DType::kBF16, run_bias_grad, bias_grad_workspace},
    {OpKind::kBiasGrad, DType::kF32, run_bias_grad, bias_grad_workspace},
    {OpKind::kEmbeddingGrad, DType::kBF16, run_embedding_grad, embedding_grad_workspace},
    {OpKind::kEmbeddingGrad, DType::kF32, run_embedding_grad, embedding_grad_workspace},
};

}  // namespace

std::span<const KernelEntry> gather_kernels() { return kEntries; }

}  // namespace orrery
