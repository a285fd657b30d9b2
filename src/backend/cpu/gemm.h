// Products too large for cache, cut into blocks: out [M, N] = a [M, K] . B and the weight gradient with its fold. A thread takes
// a fixed range of output columns, packs the part of B that fits its L2 cache, and runs all rows past it; nothing splits K among
// threads, so no bit depends on their number.
#pragma once

#include <algorithm>

#include "backend/cpu/tile_gemm.h"

namespace orrery {

/// Scratch memory handed out piece by piece; with a null base it only counts.
class Workspace {
 public:
  explicit Workspace(std::byte* base = nullptr) : base_(base) {}
  template <typename T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

/// The functions of TileGemm for one element type.
template <typename T>
struct TileOf {
  static constexpr bool kBf16 = sizeof(T) == 2;
  static constexpr int64_t kGranule = kBf16 ? kGranuleK : 1;
  static int64_t panel_elements(int64_t k) { return kBf16 ? panel_elements_bf16(k) : panel_elements_f32(k); }

  const TileGemm& table;

  void multiply(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* panels, int64_t stride, float* c, int64_t ldc, bool accumulate) const {
    if constexpr (kBf16)
      table.bf16(m, n, k, a, lda, panels, stride, c, ldc, accumulate);
    else
      table.f32(m, n, k, a, lda, panels, stride, c, ldc, accumulate);
  }
  void pack_transposed(int64_t n, int64_t k, const T* src, int64_t ld, T* panels, int64_t stride) const {
    if constexpr (kBf16)
      table.pack_transposed_bf16(n, k, src, ld, panels, stride);
    else
      table.pack_transposed_f32(n, k, src, ld, panels, stride);
  }
  void pack_rows(int64_t k, int64_t n, const T* src, int64_t ld, T* panels, int64_t stride) const {
    if constexpr (kBf16)
      table.pack_rows_bf16(k, n, src, ld, panels, stride);
    else
      table.pack_rows_f32(k, n, src, ld, panels, stride);
  }
  void transpose(int64_t k, int64_t n, const T* src, int64_t ld, T* dst, int64_t ldd) const {
    if constexpr (kBf16)
      table.transpose_bf16(k, n, src, ld, dst, ldd);
    else
      table.transpose_f32(k, n, src, ld, dst, ldd);
  }
};

/// How B [K, N] stands in memory: as the rows of B^T (a weight [N, K] in the forward product), as its own rows (the same weight
/// when it multiplies dy), or packed already.
enum class Operand { kTransposed, kRows, kPacked };

template <typename T>
struct Product {
  int64_t m = 0, n = 0, k = 0;
  const T* a = nullptr;
  int64_t lda = 0;
  bool a_padded = false;  // rows of a go on with zeros up to a multiple of 32
  const T* b = nullptr;
  int64_t ldb = 0;
  Operand operand = Operand::kTransposed;
};

/// Sizes of one thread's blocks. Pure in the shape and the number of threads.
struct ProductBlocks {
  int64_t rows;        // of c at a time
  int64_t columns;     // of B packed at a time
  int64_t depth;       // of K packed at a time, a multiple of 32
  int64_t c_rows;      // of the accumulator block: all of M when K is cut
  int64_t unit = 32;   // columns per thread are a multiple of it

  static ProductBlocks of(int64_t m, int64_t n, int64_t k, int64_t element_bytes, int num_threads) {
    // The packed block takes 768 KiB of an L2 cache of 1 to 2 MiB; the rest is for a's rows and the accumulators. A deep K (the
    // vocabulary) is cut, and then the accumulators of all rows stay in workspace between two cuts.
    constexpr int64_t kPackedBytes = 768 << 10, kDepthBytesMax = 8192, kDeepCutBytes = 4096;
    const int64_t padded = round_up(std::max<int64_t>(k, 1), kGranuleK);
    ProductBlocks blocks;
    const bool deep = padded * element_bytes > kDepthBytesMax;
    blocks.depth = deep ? kDeepCutBytes / element_bytes : padded;
    blocks.rows = std::clamp<int64_t>(m, 1, 64);
    blocks.c_rows = deep ? std::max<int64_t>(m, 1) : blocks.rows;
    const int64_t per_thread = round_up((n + num_threads - 1) / num_threads, blocks.unit);
    blocks.columns = std::clamp<int64_t>(kPackedBytes / (blocks.depth * element_bytes) / 32 * 32, 32, 512);
    blocks.columns = std::min(blocks.columns, per_thread);
    return blocks;
  }
};

template <typename T>
struct ProductMemory {
  ProductBlocks blocks;
  T* a = nullptr;        // [m, k padded] when a's rows cannot be read beyond k
  T* panels = nullptr;   // per thread
  float* c = nullptr;    // per thread
  int64_t panel_elements, c_elements;

  ProductMemory(Workspace& workspace, const Product<T>& p, int num_threads)
      : blocks(ProductBlocks::of(p.m, p.n, p.k, sizeof(T), num_threads)) {
    panel_elements = p.operand == Operand::kPacked ? 0 : blocks.columns * blocks.depth;
    c_elements = blocks.c_rows * blocks.columns;
    if (needs_padding(p)) a = workspace.take<T>(p.m * round_up(p.k, kGranuleK));
    panels = workspace.take<T>(num_threads * panel_elements);
    c = workspace.take<float>(num_threads * c_elements);
  }
  static bool needs_padding(const Product<T>& p) { return sizeof(T) == 2 && p.k % kGranuleK != 0 && !p.a_padded; }
};

template <typename T>
int64_t product_workspace_bytes(const Product<T>& product, int num_threads) {
  Workspace workspace;
  ProductMemory<T>(workspace, product, num_threads);
  return workspace.used();
}

/// Rows of a, zero padded to the granule.
template <typename T>
void pad_rows(ThreadPool& pool, const Product<T>& p, T* padded) {
  const int64_t width = round_up(p.k, kGranuleK);
  pool.parallel_for(p.m, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::copy_n(p.a + i * p.lda, p.k, padded + i * width);
      std::fill_n(padded + i * width + p.k, width - p.k, T{});
    }
  });
}

/// Where a product's results go: what gemm_rows.h does with them, and the destination as if the whole product were one block.
struct Destination {
  FinishKind kind = FinishKind::kPlain;
  GemmBlock block;
};

/// The part of the destination for rows x columns at (row, column), with accumulators c.
template <typename T>
GemmBlock destination_block(const Destination& to, int64_t row, int64_t rows, int64_t column, int64_t columns, const float* c, int64_t ldc) {
  GemmBlock block = to.block;
  block.rows = rows;
  block.columns = columns;
  block.c = c;
  block.ldc = ldc;
  if (block.bias != nullptr) block.bias = static_cast<const T*>(block.bias) + column;
  if (to.kind == FinishKind::kF32)
    block.y = static_cast<float*>(block.y) + row * block.ldy + column;
  else
    block.y = static_cast<T*>(block.y) + row * block.ldy + column;
  if (block.u != nullptr) block.u = static_cast<const T*>(block.u) + row * block.ldu + column;
  if (block.gelu_y != nullptr) block.gelu_y = static_cast<T*>(block.gelu_y) + row * block.ld_gelu + column;
  return block;
}

/// Computes the product block by block and finishes each block while it is in the cache of the thread that computed it.
template <typename T>
void multiply(const KernelContext& context, const Product<T>& product, Workspace& workspace, const Destination& to) {
  if (product.m == 0 || product.n == 0) return;
  const TileOf<T> tile{tile_gemm(context)};
  const GemmRows& functions = gemm_rows(context.isa, sizeof(T) == 2 ? DType::kBF16 : DType::kF32);
  const int num_threads = context.pool->num_threads();
  const ProductMemory<T> memory(workspace, product, num_threads);
  Product<T> p = product;
  if (memory.a != nullptr) {
    pad_rows(*context.pool, product, memory.a);
    p.a = memory.a;
    p.lda = round_up(p.k, kGranuleK);
  }
  const ProductBlocks& blocks = memory.blocks;
  const int64_t num_units = (p.n + blocks.unit - 1) / blocks.unit;
  context.pool->run([&](int thread_index, int threads) {
    const int64_t first = num_units * thread_index / threads * blocks.unit;
    const int64_t last = std::min(p.n, num_units * (thread_index + 1) / threads * blocks.unit);
    T* packed = memory.panels + thread_index * memory.panel_elements;
    float* c = memory.c + thread_index * memory.c_elements;
    tile.table.begin_thread();
    for (int64_t j = first; j < last; j += blocks.columns) {
      const int64_t columns = std::min(blocks.columns, last - j), padded_columns = round_up(columns, kPanelColumns);
      for (int64_t d = 0; d < p.k; d += blocks.depth) {
        const int64_t depth = std::min(blocks.depth, p.k - d), padded_depth = round_up(depth, TileOf<T>::kGranule);
        int64_t stride = TileOf<T>::panel_elements(depth);
        const T* panels = packed;
        if (p.operand == Operand::kTransposed) {
          tile.pack_transposed(columns, depth, p.b + j * p.ldb + d, p.ldb, packed, stride);
        } else if (p.operand == Operand::kRows) {
          tile.pack_rows(depth, columns, p.b + d * p.ldb + j, p.ldb, packed, stride);
        } else {
          stride = TileOf<T>::panel_elements(p.k);
          panels = p.b + j / kPanelColumns * stride + d * kPanelColumns;
        }
        const bool complete = d + depth == p.k;
        for (int64_t i = 0; i < p.m; i += blocks.rows) {
          const int64_t rows = std::min(blocks.rows, p.m - i);
          float* block = blocks.c_rows == blocks.rows ? c : c + i * blocks.columns;
          const T* a = p.a + i * p.lda + d;
          if (!complete) {
            tile.multiply(rows, padded_columns, padded_depth, a, p.lda, panels, stride, block, blocks.columns, d > 0);
            continue;
          }
          const GemmBlock part = destination_block<T>(to, i, rows, j, columns, block, blocks.columns);
          if constexpr (sizeof(T) == 2) {
            if (tile.table.finish_bf16 != nullptr) {
              tile.table.finish_bf16(rows, padded_columns, padded_depth, a, p.lda, panels, stride, block, blocks.columns, d > 0, to.kind, part);
              continue;
            }
          }
          tile.multiply(rows, padded_columns, padded_depth, a, p.lda, panels, stride, block, blocks.columns, d > 0);
          functions.finish[static_cast<int>(to.kind)](part);
        }
      }
    }
    tile.table.end_thread();
  });
}

/// The weight gradient's operands: dweight [n, k] f32 (row stride ldw) = or += the fold over sequences of dy^T x.
template <typename T>
struct FoldProduct {
  int64_t n = 0, k = 0;
  const T* dy = nullptr;  // [T, n]
  int64_t ldy = 0;
  const T* x = nullptr;  // [T, k]
  int64_t ldx = 0;
  float* dweight = nullptr;
  int64_t ldw = 0;
};

template <typename T>
int64_t fold_product_workspace_bytes(const FoldProduct<T>& product, const GradFold& fold, int num_threads);
template <typename T>
void fold_product(const KernelContext& context, const FoldProduct<T>& product, const GradFold& fold, Workspace& workspace);

inline DeviceSpec device_of(const KernelContext& context) {
  return {context.isa, context.arithmetic, context.native_arithmetic, context.pool->num_threads()};
}

}  // namespace orrery
