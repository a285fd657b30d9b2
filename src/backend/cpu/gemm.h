// Products too large for cache, cut into blocks: out [M, N] = a [M, K] . B and the weight gradient with its fold. A thread takes
// a fixed range of output columns, packs the part of B that fits its L2 cache, and runs all rows past it; nothing splits K among
// threads, so no bit depends on their number.
#pragma once

#include <algorithm>

#include "backend/cpu/tile_gemm.h"
#include "backend/cpu/work_shares.h"

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
  void multiply(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* panels, int64_t stride, float* c, int64_t ldc,
                bool accumulate, const TilePrefetch& next) const {
    if constexpr (kBf16) {
      if (table.ahead_bf16 != nullptr) return table.ahead_bf16(m, n, k, a, lda, panels, stride, c, ldc, accumulate, next);
    }
    multiply(m, n, k, a, lda, panels, stride, c, ldc, accumulate);
  }
  bool has_fold() const { return kBf16 && table.fold_bf16 != nullptr; }
  void fold(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, bool a_is_packed, const T* panels, int64_t stride, float* c, int64_t ldc, bool adds,
            const TilePrefetch& next) const {
    if constexpr (kBf16) table.fold_bf16(m, n, k, a, lda, a_is_packed, panels, stride, c, ldc, adds, next);
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

/// A product of so few rows with packed weights waits for memory.
constexpr int64_t kStreamRows = 16;
/// From more than so many rows on, registers are full with three panels at once, so pieces of work are threes.
constexpr int64_t kRowsThatStream = 4, kPanelsOfManyRows = 3;

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

/// Sizes of one thread's blocks. Pure in the shape and the number of threads; a smaller m never needs more memory.
///
/// A core reads its L2 cache (1 to 2 MiB) at tile speed, but memory behind it at some 15 GB/s, where 1.5 TFLOP/s need at least 100
/// operations for each byte. K up to 4,096: 1 MiB of B (480 columns at K = 1,024, 128 at 4,096) stays in L2 and all rows of a
/// pass by, as many operations per byte of a as there are columns. A deeper K: 512 x 512 accumulators stay in L2, slices of 512 of
/// K pass by, 256 operations per byte of a and b; then B is packed once for all rows. Measured, the first way is faster by a
/// quarter at K = 2,048, because accumulators do not pass through L2, and by a tenth at 4,096.
struct ProductBlocks {
  static constexpr int64_t kUnit = 32;  // columns per thread are a multiple of it
  int64_t columns;                      // of B at a time
  int64_t depth;                        // of K at a time, a multiple of 32
  int64_t rows;                         // of a at a time
  int64_t c_rows;                       // of the accumulators

  static ProductBlocks of(int64_t m, int64_t n, int64_t k, int64_t element_bytes, int num_threads) {
    constexpr int64_t kPackedBytes = 1 << 20, kColumnsMax = 512, kThrees = 6 * kPanelColumns, kDeepRows = 512, kBandRows = 64;
    constexpr int64_t kDepthBytesMax = 8192, kSliceBytes = 1024;
    const int64_t padded = round_up(std::max<int64_t>(k, 1), kGranuleK);
    const bool deep = padded * element_bytes > kDepthBytesMax && m > kGranuleK;
    static_assert(kSliceBytes / 4 % kChainF32 == 0 && kSliceBytes / 2 % kGranuleK == 0, "cutting K must not change a bit");
    ProductBlocks blocks;
    blocks.depth = deep ? kSliceBytes / element_bytes : padded;
    blocks.rows = deep ? std::min(m, kDeepRows) : m;
    blocks.c_rows = deep ? blocks.rows : std::min(m, kBandRows);
    int64_t columns_max = deep ? kColumnsMax : std::clamp<int64_t>(kPackedBytes / (padded * element_bytes) / 32 * 32, 32, kColumnsMax);
    // Threes of panels fill the registers of dp2 best.
    if (columns_max >= 2 * kThrees) columns_max -= columns_max % kThrees;
    const int64_t per_thread = round_up((n + num_threads - 1) / num_threads, kUnit);
    const int64_t pieces = (per_thread + columns_max - 1) / columns_max;
    blocks.columns = round_up((per_thread + pieces - 1) / pieces, kUnit);
    return blocks;
  }
};

template <typename T>
struct ProductMemory {
  ProductBlocks blocks;
  T* a = nullptr;       // [m, k padded] when a's rows cannot be read beyond k
  T* panels = nullptr;  // per thread
  float* c = nullptr;   // per thread
  int64_t panel_elements, c_elements;

  ProductMemory(Workspace& workspace, const Product<T>& p, int num_threads)
      : blocks(ProductBlocks::of(p.m, p.n, p.k, sizeof(T), num_threads)) {
    panel_elements = p.operand == Operand::kPacked ? 0 : blocks.columns * round_up(p.k, kGranuleK);
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

/// The work of one thread: its columns, block by block, finished while they are in its cache.
template <typename T>
class ThreadProduct {
 public:
  ThreadProduct(const KernelContext& context, const Product<T>& product, const ProductBlocks& blocks, const Destination& to, T* packed, float* c)
      : tile_{tile_gemm(context)},
        functions_(gemm_rows(context.isa, sizeof(T) == 2 ? DType::kBF16 : DType::kF32)),
        p_(product),
        blocks_(blocks),
        to_(to),
        packed_(packed),
        c_(c) {}

  void begin() { tile_.table.begin_thread(); }
  void end() { tile_.table.end_thread(); }

  /// cached: this core's cache holds the packed columns already.
  void run(int64_t first, int64_t last, bool cached = false) {
    cached_ = cached;
    for (int64_t j = first; j < last; j += blocks_.columns) {
      const int64_t columns = std::min(blocks_.columns, last - j);
      for (int64_t i = 0; i < p_.m; i += blocks_.rows)
        for (int64_t d = 0; d < p_.k; d += blocks_.depth) {
          if (i == 0) pack(j, columns, d);
          slice(i, std::min(blocks_.rows, p_.m - i), j, columns, d);
        }
    }
  }

 private:
  int64_t depth_at(int64_t d) const { return std::min(blocks_.depth, p_.k - d); }
  int64_t stride() const { return TileOf<T>::panel_elements(p_.k); }

  void pack(int64_t j, int64_t columns, int64_t d) {
    T* panels = packed_ + d * kPanelColumns;
    if (p_.operand == Operand::kTransposed)
      tile_.pack_transposed(columns, depth_at(d), p_.b + j * p_.ldb + d, p_.ldb, panels, stride());
    else if (p_.operand == Operand::kRows)
      tile_.pack_rows(depth_at(d), columns, p_.b + d * p_.ldb + j, p_.ldb, panels, stride());
  }

  void slice(int64_t i, int64_t rows, int64_t j, int64_t columns, int64_t d) {
    const int64_t padded_columns = round_up(columns, kPanelColumns), depth = round_up(depth_at(d), TileOf<T>::kGranule), ldc = blocks_.columns;
    const T* panels = (p_.operand == Operand::kPacked ? p_.b + j / kPanelColumns * stride() : packed_) + d * kPanelColumns;
    const T* a = p_.a + i * p_.lda + d;
    if (d + blocks_.depth < p_.k) {
      // Packed before, the next slice is read from memory; the first rows pack it just in time.
      const bool from_memory = i > 0 || p_.operand == Operand::kPacked;
      constexpr auto kElement = static_cast<int64_t>(sizeof(T));
      const TilePrefetch next{panels + depth * kPanelColumns, stride() * kElement, depth_at(d + depth) * kPanelColumns * kElement,
                              from_memory ? padded_columns / kPanelColumns : 0};
      tile_.multiply(rows, padded_columns, depth, a, p_.lda, panels, stride(), c_, ldc, d > 0, next);
      return;
    }
    if constexpr (sizeof(T) == 2) {
      if (cached_ && tile_.table.cached_rows_bf16 != nullptr && d == 0 && rows <= blocks_.c_rows) {
        tile_.table.cached_rows_bf16(rows, padded_columns, depth, a, p_.lda, panels, stride(), c_, ldc, false);
        functions_.finish[static_cast<int>(to_.kind)](destination_block<T>(to_, i, rows, j, columns, c_, ldc));
        return;
      }
    }
    if constexpr (sizeof(T) == 2) {
      if (tile_.table.finish_bf16 != nullptr) {
        const GemmBlock part = destination_block<T>(to_, i, rows, j, columns, c_, ldc);
        tile_.table.finish_bf16(rows, padded_columns, depth, a, p_.lda, panels, stride(), c_, ldc, d > 0, to_.kind, part);
        return;
      }
    }
    const int64_t step = d > 0 ? rows : blocks_.c_rows;
    for (int64_t r = 0; r < rows; r += step) {
      const int64_t part_rows = std::min(step, rows - r);
      tile_.multiply(part_rows, padded_columns, depth, a + r * p_.lda, p_.lda, panels, stride(), c_, ldc, d > 0);
      functions_.finish[static_cast<int>(to_.kind)](destination_block<T>(to_, i + r, part_rows, j, columns, c_, ldc));
    }
  }

  TileOf<T> tile_;
  const GemmRows& functions_;
  const Product<T>& p_;
  const ProductBlocks& blocks_;
  const Destination& to_;
  T* packed_;
  float* c_;
  bool cached_ = false;
};

/// The product with packed weights that waits for memory. What a thread has read ahead it passes first; threads that are done early take
/// from the others.
template <typename T>
void multiply_streamed(const KernelContext& context, const Product<T>& p, const auto& thread_product) {
  ThreadPool& pool = *context.pool;
  const int64_t num_panels = (p.n + kPanelColumns - 1) / kPanelColumns, stride = TileOf<T>::panel_elements(p.k);
  const int64_t unit = p.m > kRowsThatStream ? kPanelsOfManyRows : 1, num_units = (num_panels + unit - 1) / unit;
  WorkShares shares(num_units, pool.num_threads());
  pool.run([&](int thread_index, int num_threads) {
    const T* part = p.b + num_units * thread_index / num_threads * unit * stride;
    int64_t ahead = pool.read_ahead_bytes(thread_index, reinterpret_cast<const std::byte*>(part)) / (stride * unit * static_cast<int64_t>(sizeof(T)));
    ThreadProduct<T> work = thread_product(thread_index);
    work.begin();
    while (const WorkShares::Piece piece = shares.take(thread_index, std::max<int64_t>(1, ahead))) {
      work.run(piece.begin * unit * kPanelColumns, std::min(p.n, piece.end * unit * kPanelColumns), ahead > 0);
      ahead = 0;
    }
    work.end();
  });
}

/// Computes the product; `workspace` has product_workspace_bytes() left.
template <typename T>
void multiply(const KernelContext& context, const Product<T>& product, Workspace& workspace, const Destination& to) {
  if (product.m == 0 || product.n == 0) return;
  const ProductMemory<T> memory(workspace, product, context.pool->num_threads());
  Product<T> p = product;
  if (memory.a != nullptr) {
    pad_rows(*context.pool, product, memory.a);
    p.a = memory.a;
    p.lda = round_up(p.k, kGranuleK);
  }
  const int num_threads = context.pool->num_threads();
  const auto thread_product = [&](int thread_index) {
    return ThreadProduct<T>(context, p, memory.blocks, to, memory.panels + thread_index * memory.panel_elements, memory.c + thread_index * memory.c_elements);
  };
  if (p.operand == Operand::kPacked && p.m <= kStreamRows && num_threads > 1 && num_threads <= WorkShares::kMaxShares)
    return multiply_streamed(context, p, thread_product);
  constexpr int64_t kUnit = ProductBlocks::kUnit;
  const int64_t num_units = (p.n + kUnit - 1) / kUnit;
  context.pool->run([&](int thread_index, int threads) {
    ThreadProduct<T> work = thread_product(thread_index);
    work.begin();
    work.run(num_units * thread_index / threads * kUnit, std::min(p.n, num_units * (thread_index + 1) / threads * kUnit));
    work.end();
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
