// kLinearGradWeight. A thread owns a range of dweight's rows: it transposes or packs its columns of dy, and for every tile of output sums
// each sequence from +0 and folds the sums on a small stack of tiles that stays in its cache (NUMERICS rules 3 and 4). x is packed
// once and shared.
#include <cstring>

#include "backend/cpu/fold_tiles.h"
#include "backend/cpu/gemm_kernels.h"

namespace orrery {
namespace {

template <typename T>
struct FoldMemory {
  FoldTiles<T> sequences;
  int64_t transposed_elements, tile_elements;  // of one thread
  T* dy = nullptr;         // per thread [rows][sequences * padded_tokens]
  float* stacks = nullptr;  // per thread, kFoldEntries of [rows, columns]

  FoldMemory(Workspace& workspace, const FoldProduct<T>& p, const GradFold& fold, int num_threads) {
    // 1 MiB of transposed dy stays in L2 while all of x passes: the more rows, the less often x is read.
    constexpr int64_t kTransposedBytes = 1 << 20, kRowsMax = 256;
    sequences = FoldTiles<T>::of(p.k, fold);
    // An odd number of cache lines, so that the rows of a tile do not fall on the same cache sets.
    const int64_t line = 64 / static_cast<int64_t>(sizeof(T));
    const int64_t stride = round_up(fold.num_sequences * sequences.padded_tokens, 2 * line) + line;
    const int64_t rows_max = std::min<int64_t>(kRowsMax, round_up((p.n + num_threads - 1) / num_threads, 32));
    sequences.dy_stride = stride;
    sequences.dy_sequence = sequences.padded_tokens;
    sequences.rows = std::clamp<int64_t>(kTransposedBytes / (stride * static_cast<int64_t>(sizeof(T))) / 32 * 32, 32, rows_max);
    sequences.x = workspace.take<T>(fold.num_sequences * sequences.sequence_elements);
    // Sized without the number of tokens where possible: a shorter micro-batch, with more rows to a block, must not need more.
    transposed_elements = std::max<int64_t>(32 * stride, kTransposedBytes / static_cast<int64_t>(sizeof(T)));
    tile_elements = kFoldEntries * rows_max * sequences.columns;
    dy = workspace.take<T>(num_threads * transposed_elements);
    stacks = workspace.take<float>(num_threads * tile_elements);
  }
};

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
  FoldTiles<T> tiles = memory.sequences;
  if (tile.has_fold()) {
    // A quarter of the L2 for dy in panels, the rest for x and the sums.
    constexpr int64_t kPackedRows = 128;
    tiles.rows = std::min(tiles.rows, kPackedRows);
    tiles.dy_is_packed = true;
    tiles.dy_stride = tiles.panel_stride;
    tiles.dy_sequence = tiles.rows / kPanelColumns * tiles.panel_stride;
  }
  pack_sequences(context, tiles, p.x, p.ldx, fold);
  constexpr int64_t kUnit = 32;
  const int64_t num_units = (p.n + kUnit - 1) / kUnit;
  context.pool->run([&](int thread_index, int threads) {
    const int64_t first = num_units * thread_index / threads * kUnit;
    const int64_t last = std::min(p.n, num_units * (thread_index + 1) / threads * kUnit);
    T* transposed = memory.dy + thread_index * memory.transposed_elements;
    float* stack = memory.stacks + thread_index * memory.tile_elements;
    tile.table.begin_thread();
    for (int64_t row = first; row < last; row += tiles.rows) {
      const int64_t rows = std::min(tiles.rows, last - row);
      for (int64_t s = 0; s < fold.num_sequences; ++s) {
        const T* dy = p.dy + s * fold.sequence_tokens * p.ldy + row;
        if (tiles.dy_is_packed)
          tile.pack_rows(fold.sequence_tokens, rows, dy, p.ldy, transposed + s * tiles.dy_sequence, tiles.dy_stride);
        else
          tile.transpose(fold.sequence_tokens, rows, dy, p.ldy, transposed + s * tiles.dy_sequence, tiles.dy_stride);
      }
      fold_rows(tile, functions, tiles, fold, transposed, rows, p.dweight + row * p.ldw, p.ldw, stack);
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
