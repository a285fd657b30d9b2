// kLinearGradWeight. A thread owns a range of dweight's rows: it transposes its columns of dy, and for every tile of output sums
// each sequence from +0 and folds the sums on a small stack of tiles that stays in its cache (NUMERICS rules 3 and 4). x is packed
// once and shared.
#include <cstring>

#include "backend/cpu/fold.h"
#include "backend/cpu/gemm.h"
#include "backend/cpu/gemm_kernels.h"
#include "backend/cpu/gemm_rows.h"

namespace orrery {
namespace {

// The sequences' places in the packed x and the transposed dy, and one thread's blocks.
template <typename T>
struct FoldMemory {
  int64_t padded_tokens;    // of a sequence
  int64_t transposed_stride;  // elements from one row of the transposed dy to the next
  int64_t rows, columns;    // of an output tile
  int64_t panel_stride, sequence_elements;
  int64_t transposed_elements, tile_elements;  // of one thread
  T* x = nullptr;           // [sequences][panels]
  T* dy = nullptr;          // per thread [rows][sequences * padded_tokens]
  float* tiles = nullptr;   // per thread, kFoldEntries of [rows, columns]

  FoldMemory(Workspace& workspace, const FoldProduct<T>& p, const GradFold& fold, int num_threads) {
    // 1 MiB of transposed dy stays in L2 while all of x passes: the more rows, the less often x is read.
    constexpr int64_t kTransposedBytes = 1 << 20, kRowsMax = 256;
    padded_tokens = round_up(fold.sequence_tokens, kGranuleK);
    // An odd number of cache lines, so that the rows of a tile do not fall on the same cache sets.
    const int64_t line = 64 / static_cast<int64_t>(sizeof(T));
    transposed_stride = round_up(fold.num_sequences * padded_tokens, 2 * line) + line;
    rows = std::clamp<int64_t>(kTransposedBytes / (transposed_stride * static_cast<int64_t>(sizeof(T))) / 32 * 32, 32, kRowsMax);
    rows = std::min(rows, round_up((p.n + num_threads - 1) / num_threads, 32));
    columns = std::min<int64_t>(64, round_up(p.k, kPanelColumns));
    panel_stride = TileOf<T>::panel_elements(fold.sequence_tokens);
    sequence_elements = round_up(p.k, kPanelColumns) / kPanelColumns * panel_stride;
    x = workspace.take<T>(fold.num_sequences * sequence_elements);
    // Sized without the number of tokens where possible: a shorter micro-batch, with more rows to a block, must not need more.
    const int64_t rows_max = std::min<int64_t>(kRowsMax, round_up((p.n + num_threads - 1) / num_threads, 32));
    transposed_elements = std::max<int64_t>(32 * transposed_stride, kTransposedBytes / static_cast<int64_t>(sizeof(T)));
    tile_elements = kFoldEntries * rows_max * columns;
    dy = workspace.take<T>(num_threads * transposed_elements);
    tiles = workspace.take<float>(num_threads * tile_elements);
  }
};

template <typename T>
void pack_sequences(const KernelContext& context, const TileOf<T>& tile, const FoldProduct<T>& p, const GradFold& fold, const FoldMemory<T>& memory) {
  // 256 columns at a time: whole cache lines of x, and enough pieces for every thread.
  constexpr int64_t kColumns = 256;
  const int64_t pieces = (p.k + kColumns - 1) / kColumns;
  context.pool->parallel_for(fold.num_sequences * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sequence = i / pieces, column = i % pieces * kColumns;
      tile.pack_rows(fold.sequence_tokens, std::min(kColumns, p.k - column), p.x + sequence * fold.sequence_tokens * p.ldx + column, p.ldx,
                     memory.x + sequence * memory.sequence_elements + column / kPanelColumns * memory.panel_stride, memory.panel_stride);
    }
  });
}

void copy_block(int64_t rows, int64_t columns, const float* from, int64_t ld_from, float* to, int64_t ld_to) {
  for (int64_t i = 0; i < rows; ++i) std::memcpy(to + i * ld_to, from + i * ld_from, columns * sizeof(float));
}

// One tile of dweight: rows [row, row + rows), columns [column, column + columns). Where the tile is whole panels wide the
// bottom of the stack is the destination itself.
template <typename T>
void fold_tile(const TileOf<T>& tile, const GemmRows& functions, const FoldProduct<T>& p, const GradFold& fold, const FoldMemory<T>& memory,
               const T* transposed, float* stack, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  float* destination = p.dweight + row * p.ldw + column;
  const bool in_place = columns % kPanelColumns == 0;
  const auto entry = [&](int64_t i) { return i == 0 && in_place ? destination : stack + i * memory.rows * memory.columns; };
  const auto stride = [&](int64_t i) { return i == 0 && in_place ? p.ldw : memory.columns; };
  int64_t depth = 0;
  if (fold.add_to_destination) {
    if (!in_place) copy_block(rows, columns, destination, p.ldw, entry(0), stride(0));
    depth = 1;
  }
  const int64_t summed = round_up(fold.sequence_tokens, TileOf<T>::kGranule);
  for (int64_t s = 0; s < fold.num_sequences; ++s) {
    ORRERY_CHECK(depth < kFoldEntries, "fold deeper than {}", kFoldEntries);
    // The first product fetches what the sums will be added to.
    const TilePrefetch next{destination, p.ldw * 4, columns * 4, s == 0 ? rows : 0};
    tile.multiply(rows, round_up(columns, kPanelColumns), summed, transposed + s * memory.padded_tokens, memory.transposed_stride,
                  memory.x + s * memory.sequence_elements + column / kPanelColumns * memory.panel_stride, memory.panel_stride, entry(depth),
                  stride(depth), false, next);
    ++depth;
    for (int merge = 0; merge < fold.merges[s]; ++merge) {
      ORRERY_CHECK(depth >= 2, "merge of {} entries", depth);
      functions.add_blocks(rows, columns, entry(depth - 2), stride(depth - 2), entry(depth - 1), stride(depth - 1));
      --depth;
    }
  }
  ORRERY_CHECK(depth == 1, "a fold left {} entries", depth);
  if (!in_place) copy_block(rows, columns, entry(0), stride(0), destination, p.ldw);
}

}  // namespace

template <typename T>
int64_t fold_product_workspace_bytes(const FoldProduct<T>& product, const GradFold& fold, int num_threads) {
  Workspace workspace;
  FoldMemory<T>(workspace, product, fold, num_threads);
  return workspace.used();
}

template <typename T>
void fold_product(const KernelContext& context, const FoldProduct<T>& p, const GradFold& fold, Workspace& workspace) {
  if (fold.num_sequences == 0) {
    for (int64_t i = 0; i < p.n && !fold.add_to_destination; ++i) std::memset(p.dweight + i * p.ldw, 0, p.k * sizeof(float));
    return;
  }
  const TileOf<T> tile{tile_gemm(context)};
  const GemmRows& functions = gemm_rows(context.isa, sizeof(T) == 2 ? DType::kBF16 : DType::kF32);
  const FoldMemory<T> memory(workspace, p, fold, context.pool->num_threads());
  pack_sequences(context, tile, p, fold, memory);
  constexpr int64_t kUnit = 32;
  const int64_t num_units = (p.n + kUnit - 1) / kUnit;
  context.pool->run([&](int thread_index, int threads) {
    const int64_t first = num_units * thread_index / threads * kUnit;
    const int64_t last = std::min(p.n, num_units * (thread_index + 1) / threads * kUnit);
    T* transposed = memory.dy + thread_index * memory.transposed_elements;
    float* stack = memory.tiles + thread_index * memory.tile_elements;
    tile.table.begin_thread();
    for (int64_t row = first; row < last; row += memory.rows) {
      const int64_t rows = std::min(memory.rows, last - row);
      for (int64_t s = 0; s < fold.num_sequences; ++s)
        tile.transpose(fold.sequence_tokens, rows, p.dy + s * fold.sequence_tokens * p.ldy + row, p.ldy, transposed + s * memory.padded_tokens,
                       memory.transposed_stride);
      for (int64_t column = 0; column < p.k; column += memory.columns)
        fold_tile(tile, functions, p, fold, memory, transposed, stack, row, rows, column, std::min(memory.columns, p.k - column));
    }
    tile.table.end_thread();
  });
}

template int64_t fold_product_workspace_bytes(const FoldProduct<uint16_t>&, const GradFold&, int);
template int64_t fold_product_workspace_bytes(const FoldProduct<float>&, const GradFold&, int);
template void fold_product(const KernelContext&, const FoldProduct<uint16_t>&, const GradFold&, Workspace&);
template void fold_product(const KernelContext&, const FoldProduct<float>&, const GradFold&, Workspace&);

namespace {

template <typename T>
FoldProduct<T> fold_product_of(const OpCall& call) {
  const TensorView &dy = call.in(0), &x = call.in(1), &dweight = call.out(0);
  ORRERY_CHECK(dy.rows() == x.rows() && dweight.rows() == dy.row_width() && dweight.row_width() == x.row_width() && dweight.dtype == DType::kF32,
               "linear_grad_weight: dy [{}, {}], x [{}, {}], dweight [{}, {}]", dy.rows(), dy.row_width(), x.rows(), x.row_width(),
               dweight.rows(), dweight.row_width());
  ORRERY_CHECK(call.fold != nullptr && call.fold->num_sequences * call.fold->sequence_tokens == dy.rows(), "linear_grad_weight: fold of {} rows",
               dy.rows());
  return {dy.row_width(), x.row_width(), dy.as<T>(), dy.row_stride, x.as<T>(), x.row_stride, dweight.as<float>(), dweight.row_stride};
}

template <typename T>
int64_t grad_weight_workspace(const DeviceSpec& device, const OpCall& call) {
  return fold_product_workspace_bytes(fold_product_of<T>(call), *call.fold, device.num_threads);
}

template <typename T>
void run_grad_weight(const KernelContext& context, const OpCall& call) {
  ORRERY_CHECK(static_cast<int64_t>(call.workspace.size()) >= grad_weight_workspace<T>(device_of(context), call), "{}: workspace of {}",
               op_name(call.kind), call.workspace.size());
  Workspace workspace(call.workspace.data());
  fold_product(context, fold_product_of<T>(call), *call.fold, workspace);
}

}  // namespace

std::span<const KernelEntry> linear_grad_weight_kernels() {
  static constexpr KernelEntry kEntries[] = {
      {OpKind::kLinearGradWeight, DType::kBF16, run_grad_weight<uint16_t>, grad_weight_workspace<uint16_t>},
      {OpKind::kLinearGradWeight, DType::kF32, run_grad_weight<float>, grad_weight_workspace<float>},
  };
  return kEntries;
}

}  // namespace orrery
