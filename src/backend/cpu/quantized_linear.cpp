#include "backend/cpu/quantized_linear.h"

#include <algorithm>

#include "backend/cpu/gemm_rows.h"
#include "backend/cpu/ops.h"
#include "backend/cpu/quantized_kernels.h"
#include "backend/cpu/quantized_pack.h"
#include "base/bfloat16.h"

namespace orrery {
namespace {

// Up to so many rows, and numbers, every thread quantizes x for itself: that is cheaper than meeting once more.
constexpr int64_t kRowsEachForItself = 8, kNumbersEachForItself = 8192;
// Rows of accumulators between the product and its rounding: they stay in L1, and so do two panels while the next rows come.
constexpr int64_t kBandRows = 48;

int64_t num_tiles(const QuantizedKernels& kernels, int64_t m) {
  int64_t tiles = 0;
  for (int64_t i = 0; i < m; i += kernels.tile_rows(m - i)) ++tiles;
  return tiles;
}

/// Bytes of the tiles of m rows, the last of which may be a tall one.
int64_t tiles_bytes(VectorIsa isa, int64_t m, int64_t k) {
  const int64_t rows = m > kMaxTileRows && isa == VectorIsa::kAvx512 ? (m + kTallTileRows - 1) / kTallTileRows * kTallTileRows : m + 1;
  return (rows * (k / kQuantBlock) * kQuantizedRowBytes + 63) / 64 * 64;
}

/// The workspace: each thread's band and unpacked codes, then the tiles, of all threads or one for each.
constexpr int64_t kBandBytes = kBandRows * kMaxPanels * kQuantPanelColumns * 4;
/// Each thread's: the band and, for many rows, unpacked codes.
int64_t thread_bytes(int64_t m, int64_t k) { return kBandBytes + (m >= kUnpackRows ? kMaxPanels * quantized_unpacked_bytes(k) : 0); }

// The first of a thread's panels: borders lie at pairs of them.
int64_t first_panel(int64_t num_panels, int64_t index, int64_t threads) { return index == threads ? num_panels : num_panels * index / threads / kMaxPanels * kMaxPanels; }

struct ThreadWork {
  const QuantizedKernels& kernels;
  const GemmRows& rows;
  const PackedLinearAttributes& shape;
  const std::byte* weight;
  const std::byte* bias;
  TensorView y;
  int64_t m;
  int64_t compute_bytes;  // of a number of the compute dtype

  // The first two panels from `first` on: there is time for them while rows are quantized.
  void prefetch(int64_t first) const {
    const std::byte* at = weight;
    for (const PackedSegment& segment : shape.segments) {
      const int64_t panels = (segment.num_columns + kQuantPanelColumns - 1) / kQuantPanelColumns, panel_bytes = quantized_panel_bytes(segment.format, shape.depth);
      if (first < panels) {
        for (int64_t byte = 0; byte < std::min(kMaxPanels, panels - first) * panel_bytes; byte += 64) __builtin_prefetch(at + first * panel_bytes + byte, 0, 2);
        return;
      }
      first -= panels;
      at += panels * panel_bytes;
    }
  }

  // Panels [first, last) of the whole weight, for all rows; x is their tiles, `own` this thread's bytes of the workspace. `next`: what this thread will read in the next product, or null.
  void run(const std::byte* x, std::byte* own, int64_t first, int64_t last, const std::byte* next) const {
    const std::byte* at = weight;
    int64_t panel = 0, column = 0;
    for (const PackedSegment& segment : shape.segments) {
      const int64_t panel_bytes = quantized_panel_bytes(segment.format, shape.depth), panels = (segment.num_columns + kQuantPanelColumns - 1) / kQuantPanelColumns;
      const int64_t end = std::min(panels, last - panel);
      for (int64_t p = std::max<int64_t>(0, first - panel); p < end;) {
        const int64_t count = m == 1 && end - p >= kPanelsOfOneRow ? kPanelsOfOneRow : std::min(kMaxPanels, end - p), c = p * kQuantPanelColumns;
        const std::byte* here = at + p * panel_bytes;
        p += count;
        run_panels(segment.format, here, count, x, own, column + c, std::min(count * kQuantPanelColumns, segment.num_columns - c),
                   panel + p == last && next != nullptr ? next : here + count * panel_bytes);
      }
      at += panels * panel_bytes;
      panel += panels;
      column += segment.num_columns;
    }
  }

 private:
  void run_panels(WeightFormat format, const std::byte* panels, int64_t num_panels, const std::byte* x, std::byte* own, int64_t column, int64_t columns,
                  const std::byte* ahead) const {
    // Whole panels without bias are stored as they come; others go by way of a band of rows.
    const int64_t all_columns = num_panels * kQuantPanelColumns;
    const bool direct = bias == nullptr && columns == all_columns;
    const int64_t behind = num_panels * quantized_panel_bytes(format, shape.depth), tiles = num_tiles(kernels, m);
    PanelProduct product;
    product.format = format;
    product.k = shape.depth;
    product.panels = panels;
    product.num_panels = num_panels;
    product.tile = x;
    product.ldy = direct ? y.row_stride : all_columns;
    product.bf16 = direct && y.dtype == DType::kBF16;
    // What will be read next comes meanwhile, in as many parts as there are tiles: the memory works all the time.
    product.ahead = ahead;
    product.ahead_bytes = (behind / 64 + tiles - 1) / tiles * 64;
    float* band = reinterpret_cast<float*>(own);
    if (kernels.unpacks && m >= kUnpackRows && weight_format_info(format).bits < 8) {
      kernels.unpack(product, own + kBandBytes);
      product.codes = own + kBandBytes;
    }
    for (int64_t i = 0; i < m;) {
      GemmBlock block;
      block.columns = columns;
      block.c = band;
      block.ldc = all_columns;
      block.bias = bias == nullptr ? nullptr : bias + column * compute_bytes;
      block.ldy = y.row_stride;
      block.y = row_at(y, i) + column * dtype_bytes(y.dtype);
      while (i < m) {
        product.tile_rows = kernels.tile_rows(m - i);
        if (block.rows + product.tile_rows > kBandRows) break;
        product.num_rows = std::min(product.tile_rows, m - i);
        product.y = direct ? row_at(y, i) + column * dtype_bytes(y.dtype) : reinterpret_cast<std::byte*>(band + block.rows * all_columns);
        kernels.panel_product(product);
        product.ahead += product.ahead_bytes;
        product.tile += product.tile_rows * (shape.depth / kQuantBlock) * kQuantizedRowBytes;
        block.rows += product.num_rows;
        i += product.num_rows;
      }
      if (!direct) rows.finish[static_cast<int>(y.dtype == DType::kF32 && compute_bytes == 2 ? FinishKind::kF32 : FinishKind::kPlain)](block);
    }
  }
};

/// Tiles of x's rows; of `parts` parts, part `part`.
void quantize_rows(const QuantizedKernels& kernels, const TensorView& x, int64_t row_bytes, int64_t part, int64_t parts, std::byte* tiles) {
  const int64_t m = x.rows();
  for (int64_t i = 0; i < m;) {
    const int64_t tile_rows = kernels.tile_rows(m - i), used = std::min(tile_rows, m - i);
    // A tile belongs to the part that its first row falls into.
    if (i * parts / m == part)
      for (int64_t row = 0; row < used; ++row)
        kernels.quantize_row[x.dtype == DType::kBF16](row_at(x, i + row), x.row_width(), tiles, tile_rows, row);
    tiles += tile_rows * row_bytes;
    i += used;
  }
}

int64_t num_panels(const PackedLinearAttributes& shape) {
  int64_t count = 0;
  for (const PackedSegment& segment : shape.segments) count += (segment.num_columns + kQuantPanelColumns - 1) / kQuantPanelColumns;
  return count;
}

int64_t packed_bytes(const PackedLinearAttributes& shape) {
  int64_t bytes = 0;
  for (const PackedSegment& segment : shape.segments) bytes += quantized_weight_bytes(segment.format, segment.num_columns, shape.depth);
  return bytes;
}

void run_embedding_packed(const KernelContext& context, const OpCall& call) {
  const auto& shape = call.attribute<PackedLinearAttributes>();
  const TensorView &ids = call.in(0), &y = call.out(0);
  ORRERY_CHECK(shape.segments.size() == 1 && y.row_width() == shape.depth && y.rows() == ids.rows() && call.in(1).num_elements() >= packed_bytes(shape),
               "embedding_packed of {} to {}", shape.depth, y.row_width());
  const WeightFormat format = shape.segments[0].format;
  ORRERY_CHECK(y.dtype == DType::kF32 || static_cast<int64_t>(call.workspace.size()) >= context.pool->num_threads() * shape.depth * 4,
               "embedding_packed: workspace");
  context.pool->run([&](int thread_index, int threads) {
    float* values = reinterpret_cast<float*>(call.workspace.data()) + thread_index * shape.depth;
    for (int64_t i = ids.rows() * thread_index / threads; i < ids.rows() * (thread_index + 1) / threads; ++i) {
      const int32_t id = ids.as<int32_t>()[i];
      ORRERY_CHECK(id >= 0 && id < shape.num_columns, "row {} of a table of {}", id, shape.num_columns);
      if (y.dtype == DType::kF32) {
        unpack_quantized_row(format, call.in(1).data, id, shape.depth, reinterpret_cast<float*>(row_at(y, i)));
        continue;
      }
      unpack_quantized_row(format, call.in(1).data, id, shape.depth, values);
      auto* out = reinterpret_cast<uint16_t*>(row_at(y, i));
      for (int64_t j = 0; j < shape.depth; ++j) out[j] = f32_to_bf16(values[j]);
    }
  });
}

int64_t embedding_packed_workspace(const DeviceSpec& device, const OpCall& call) {
  return call.out(0).dtype == DType::kF32 ? 0 : device.num_threads * call.attribute<PackedLinearAttributes>().depth * 4;
}

constexpr KernelEntry kEntries[] = {
    {OpKind::kEmbeddingPacked, DType::kBF16, run_embedding_packed, embedding_packed_workspace},
    {OpKind::kEmbeddingPacked, DType::kF32, run_embedding_packed, embedding_packed_workspace},
};

}  // namespace

std::span<const KernelEntry> quantized_kernel_entries() { return kEntries; }

int64_t quantized_linear_workspace_bytes(const DeviceSpec& device, int64_t m, int64_t k) {
  // A plan's workspace serves fewer rows too, so many rows have room for each thread's few.
  const int64_t each = device.num_threads * tiles_bytes(device.isa, std::min(m, kRowsEachForItself), k);
  return device.num_threads * thread_bytes(m, k) + (m > kRowsEachForItself ? std::max(each, tiles_bytes(device.isa, m, k)) : each);
}

ReadAhead quantized_weight_stream(const PackedLinearAttributes& shape, const std::byte* packed) {
  const int64_t panel_bytes = quantized_panel_bytes(shape.segments[0].format, shape.depth);
  for (const PackedSegment& segment : shape.segments)
    if (quantized_panel_bytes(segment.format, shape.depth) != panel_bytes) return {};
  return {packed, num_panels(shape), panel_bytes};
}

void quantized_linear(const KernelContext& context, const OpCall& call) { quantized_linear_by(quantized_kernels(context), context, call); }

void quantized_linear_by(const QuantizedKernels& kernels, const KernelContext& context, const OpCall& call) {
  const auto& shape = call.attribute<PackedLinearAttributes>();
  const TensorView &x = call.in(0), &y = call.out(0);
  const int64_t m = x.rows(), k = shape.depth;
  ORRERY_CHECK(x.row_width() == k && y.rows() == m && y.row_width() == shape.num_columns && call.in(1).num_elements() >= packed_bytes(shape),
               "linear_packed: x [{}, {}], weight [{}, {}], y [{}, {}]", m, x.row_width(), shape.num_columns, k, y.rows(), y.row_width());
  const int num_threads = context.pool->num_threads();
  ORRERY_CHECK(quantized_linear_workspace_bytes({context.isa, context.arithmetic, context.native_arithmetic, num_threads}, m, k) <= static_cast<int64_t>(call.workspace.size()),
               "linear_packed: workspace of {}", call.workspace.size());
  const bool together = m > kRowsEachForItself || (m > kernels.tile_rows(m) && m * k > kNumbersEachForItself);
  const int64_t own = thread_bytes(m, k);
  std::byte *bands = call.workspace.data(), *tiles = bands + num_threads * own;
  const int64_t row_bytes = k / kQuantBlock * kQuantizedRowBytes, own_bytes = tiles_bytes(context.isa, m, k);
  const ThreadWork work{kernels, gemm_rows(context.isa, x.dtype), shape, call.in(1).data, call.inputs.size() > 2 ? call.in(2).data : nullptr, y, m,
                        dtype_bytes(x.dtype)};
  const int64_t panels = num_panels(shape);
  const ReadAhead& next = call.next_weights;
  if (together)
    context.pool->run([&](int thread_index, int threads) {
      work.prefetch(first_panel(panels, thread_index, threads));
      quantize_rows(kernels, x, row_bytes, thread_index, threads, tiles);
    });
  context.pool->run([&](int thread_index, int threads) {
    std::byte* rows = together ? tiles : tiles + thread_index * own_bytes;
    const int64_t first = first_panel(panels, thread_index, threads), last = first_panel(panels, thread_index + 1, threads);
    if (!together) {
      work.prefetch(first);
      quantize_rows(kernels, x, row_bytes, 0, 1, rows);
    }
    if (kernels.begin_thread != nullptr) kernels.begin_thread();
    work.run(rows, bands + thread_index * own, first, last,
             next.data == nullptr ? nullptr : next.data + first_panel(next.num_units, thread_index, threads) * next.unit_bytes);
    if (kernels.end_thread != nullptr) kernels.end_thread();
  });
}

}  // namespace orrery
