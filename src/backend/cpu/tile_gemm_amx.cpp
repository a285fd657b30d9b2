// amx32 by AMX tiles: 2 x 2 accumulators of 16 x 16, so that each loaded tile is used twice. K runs in one order, one tile of
// 32 at a time; a row count that is no multiple of 16 is done with a configuration of fewer rows, so that nothing is read or
// written beyond the operands.
#include "backend/cpu/amx_tiles.h"
#include "backend/cpu/gemm_finish.h"
#include "backend/cpu/tile_gemm_isa.h"

namespace orrery {
namespace {

// Accumulators 0..3, A tiles 4 (upper rows) and 5 (lower rows), B tiles 6 and 7.
void configure(int upper_rows, int lower_rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.shape(tile, 16, 64);
  for (int upper : {0, 1, 4}) config.shape(upper, upper_rows, 64);
  for (int lower : {2, 3, 5}) config.shape(lower, lower_rows, 64);
  config.load();
}

constexpr int64_t kPanel = 16;
constexpr int64_t kKBlock = 512;
constexpr int64_t kBandTile = 32 * 32;  // elements of 32 rows of one tile of K

// 17 to 32 rows, two panels. between() is called once per step of K, in the shadow of the products.
// From one tile of K to the next a moves a_step elements: 32 in place, kBandTile in a packed band.
template <typename Between>
ORRERY_INLINE void block_2x2(int64_t k, const uint16_t* a, int64_t lda, int64_t a_step, const uint16_t* b0, const uint16_t* b1, float* c,
                             int64_t ldc, bool accumulate, Between&& between) {
  if (accumulate) {
    _tile_loadd(0, c, ldc * 4);
    _tile_loadd(1, c + kPanel, ldc * 4);
    _tile_loadd(2, c + 16 * ldc, ldc * 4);
    _tile_loadd(3, c + 16 * ldc + kPanel, ldc * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < k; i += 32) {
    _tile_loadd(4, a, lda * 2);
    _tile_loadd(6, b0 + i * kPanel, 64);
    _tile_loadd(7, b1 + i * kPanel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + 16 * lda, lda * 2);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    a += a_step;
    between();
  }
  _tile_stored(0, c, ldc * 4);
  _tile_stored(1, c + kPanel, ldc * 4);
  _tile_stored(2, c + 16 * ldc, ldc * 4);
  _tile_stored(3, c + 16 * ldc + kPanel, ldc * 4);
}

void block_2x1(int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b, float* c, int64_t ldc, bool accumulate) {
  if (accumulate) {
    _tile_loadd(0, c, ldc * 4);
    _tile_loadd(2, c + 16 * ldc, ldc * 4);
  } else {
    _tile_zero(0);
    _tile_zero(2);
  }
  for (int64_t i = 0; i < k; i += 32) {
    _tile_loadd(4, a + i, lda * 2);
    _tile_loadd(5, a + 16 * lda + i, lda * 2);
    _tile_loadd(6, b + i * kPanel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
  }
  _tile_stored(0, c, ldc * 4);
  _tile_stored(2, c + 16 * ldc, ldc * 4);
}

// At most 16 rows, two panels or one.
void block_1x2(int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b0, const uint16_t* b1, float* c, int64_t ldc,
               bool accumulate) {
  if (accumulate) {
    _tile_loadd(0, c, ldc * 4);
    _tile_loadd(1, c + kPanel, ldc * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  for (int64_t i = 0; i < k; i += 32) {
    _tile_loadd(4, a + i, lda * 2);
    _tile_loadd(6, b0 + i * kPanel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b1 + i * kPanel, 64);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, c, ldc * 4);
  _tile_stored(1, c + kPanel, ldc * 4);
}

void block_1x1(int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b, float* c, int64_t ldc, bool accumulate) {
  if (accumulate)
    _tile_loadd(0, c, ldc * 4);
  else
    _tile_zero(0);
  for (int64_t i = 0; i < k; i += 32) {
    _tile_loadd(4, a + i, lda * 2);
    _tile_loadd(6, b + i * kPanel, 64);
    _tile_dpbf16ps(0, 4, 6);
  }
  _tile_stored(0, c, ldc * 4);
}

// Brings rows of memory to L2, a few cache lines per step of K: the hardware does not follow sixteen rows at once.
class RowPrefetch {
 public:
  RowPrefetch(const TilePrefetch& what, int64_t lines_per_step)
      : row_(static_cast<const char*>(what.begin)),
        stride_(what.stride_bytes),
        row_bytes_(what.row_bytes),
        rows_(what.rows),
        lines_per_step_(lines_per_step) {}
  // Spread over all steps of a product.
  static RowPrefetch during(int64_t m, int64_t n, int64_t k, const TilePrefetch& what) {
    const int64_t steps = (m / 32) * (n / 32) * (k / 32), lines = what.rows * ((what.row_bytes + 63) / 64);
    return {what, steps == 0 ? 0 : (lines + steps - 1) / steps};
  }
  void step() {
    if (rows_ <= 0) return;
    for (int64_t i = 0; i < lines_per_step_; ++i) _mm_prefetch(row_ + offset_ + i * 64, _MM_HINT_T1);
    offset_ += lines_per_step_ * 64;
    if (offset_ < row_bytes_) return;
    offset_ = 0;
    row_ += stride_;
    --rows_;
  }

 private:
  const char* row_;
  int64_t stride_, row_bytes_, rows_, lines_per_step_;
  int64_t offset_ = 0;
};

// K in equal blocks of at most 512.
int64_t k_block_of(int64_t k) {
  const int64_t steps = k / 32, blocks = (steps + kKBlock / 32 - 1) / (kKBlock / 32);
  return (steps + blocks - 1) / blocks * 32;
}

// The operands of one call; a block is named by its row and column.
struct Operands {
  const uint16_t* a;
  int64_t lda;
  const uint16_t* b;
  int64_t panel_stride;
  float* c;
  int64_t ldc;
  bool accumulate;

  const uint16_t* panel(int64_t column, int64_t k) const { return b + column / kPanel * panel_stride + k * kPanel; }
};

// Columns [j, j + 32) or the last 16 of m <= 32 rows, K from k0, under the present configuration.
template <typename Between>
ORRERY_INLINE void block(const Operands& o, int64_t m, int64_t row, int64_t j, bool pair, int64_t k0, int64_t k, Between&& between) {
  const uint16_t* a = o.a + row * o.lda + k0;
  const uint16_t* b0 = o.panel(j, k0);
  float* c = o.c + row * o.ldc + j;
  const bool accumulate = o.accumulate || k0 > 0;
  if (pair && m > 16)
    block_2x2(k, a, o.lda, 32, b0, b0 + o.panel_stride, c, o.ldc, accumulate, between);
  else if (pair)
    block_1x2(k, a, o.lda, b0, b0 + o.panel_stride, c, o.ldc, accumulate);
  else if (m > 16)
    block_2x1(k, a, o.lda, b0, c, o.ldc, accumulate);
  else
    block_1x1(k, a, o.lda, b0, c, o.ldc, accumulate);
}

// The rows of a below the band that starts at `row`, spread over the band's steps.
RowPrefetch next_band(const Operands& o, int64_t row, int64_t m, int64_t n, int64_t k) {
  const int64_t rest = m - row - 32;
  return RowPrefetch::during(32, n, k, {o.a + (row + 32) * o.lda, o.lda * 2, k * 2, rest < 32 ? rest : 32});
}

// Whether 32 rows of k elements fit L1, 64 sets of 12 lines, as they stand. A row stride with a large power of two in it maps all
// rows to the same sets.
bool fits_l1(int64_t lda, int64_t k) {
  int64_t lines = lda / 32, spacing = 1;
  while (spacing < 64 && lines % 2 == 0) {
    lines /= 2;
    spacing *= 2;
  }
  const int64_t rows_per_start = 32 * spacing / 64 > 1 ? 32 * spacing / 64 : 1;
  return rows_per_start * ((k / 32 + spacing - 1) / spacing) <= 10;
}

// 32 rows of a, k <= kKBlock elements each, tile after tile.
void pack_band(const uint16_t* a, int64_t lda, int64_t k, uint16_t* packed) {
  for (int64_t row = 0; row < 32; ++row)
    for (int64_t i = 0; i < k; i += 32) _mm512_store_si512(packed + i * 32 + row * 32, _mm512_loadu_si512(a + row * lda + i));
}

// The 32 rows of a from `row`, K from k0, in place or packed.
struct Band {
  alignas(64) uint16_t packed[32 * kKBlock];
  const uint16_t* a;
  int64_t lda, step;

  void load(const Operands& o, int64_t row, int64_t k0, int64_t k) {
    a = o.a + row * o.lda + k0;
    lda = o.lda;
    step = 32;
    if (fits_l1(o.lda, k)) return;
    pack_band(a, lda, k, packed);
    __asm__ volatile("" : : : "memory");
    a = packed;
    lda = 32;
    step = kBandTile;
  }
};

// At most 32 rows of the m of a call: a's rows stay in L1. With at most 16 rows, the case of decoding, b is read once and nothing
// is gained by cuts.
void row_band(const Operands& o, int64_t rows, int64_t row, int64_t m, int64_t n, int64_t k) {
  const int64_t k_block = rows > 16 ? k_block_of(k) : k;
  RowPrefetch next = next_band(o, row, m, n, k);
  for (int64_t k0 = 0; k0 < k; k0 += k_block)
    for (int64_t j = 0; j < n; j += 32) block(o, rows, row, j, j + 32 <= n, k0, k - k0 < k_block ? k - k0 : k_block, [&] { next.step(); });
}

// Panels [0, n), n a multiple of 32, of 32 rows and one block of K.
template <typename Between>
ORRERY_INLINE void band_block(const Operands& o, const Band& band, int64_t row, int64_t j, int64_t k0, int64_t k, Between&& between) {
  const uint16_t* b0 = o.panel(j, k0);
  block_2x2(k, band.a, band.lda, band.step, b0, b0 + o.panel_stride, o.c + row * o.ldc + j, o.ldc, o.accumulate || k0 > 0, between);
}

// 32 rows by n columns, n a multiple of 32.
void whole_band(const Operands& o, int64_t row, int64_t m, int64_t n, int64_t k, RowPrefetch& ahead) {
  const int64_t k_block = k_block_of(k);
  RowPrefetch next = next_band(o, row, m, n, k);
  Band band;
  for (int64_t k0 = 0; k0 < k; k0 += k_block) {
    const int64_t depth = k - k0 < k_block ? k - k0 : k_block;
    band.load(o, row, k0, depth);
    for (int64_t j = 0; j < n; j += 32) band_block(o, band, row, j, k0, depth, [&] {
      next.step();
      ahead.step();
    });
  }
}

// More rows than columns: two panels of b stay in L1 and a streams from L2; the panels that come next are fetched meanwhile.
void column_bands(const Operands& o, int64_t m, int64_t n, int64_t k, RowPrefetch& ahead) {
  if (m == 0) return;
  const int64_t k_block = k_block_of(k);
  for (int64_t j = 0; j < n; j += 32)
    for (int64_t k0 = 0; k0 < k; k0 += k_block) {
      const int64_t depth = k - k0 < k_block ? k - k0 : k_block;
      const uint16_t* following = k0 + depth < k ? o.panel(j, k0 + depth) : o.panel(j + 32, 0);
      RowPrefetch next = RowPrefetch::during(m, 32, depth, {following, o.panel_stride * 2, depth * kPanel * 2, 2});
      for (int64_t i = 0; i < m; i += 32) block(o, 32, i, j, j + 32 <= n, k0, depth, [&] {
        next.step();
        ahead.step();
      });
    }
}

// The last rows, fewer than 32, under a configuration of their own.
void last_rows(const Operands& o, int64_t rest, int64_t row, int64_t n, int64_t k) {
  const bool odd_rows = rest % 16 != 0;
  if (odd_rows) configure(rest > 16 ? 16 : static_cast<int>(rest), rest > 16 ? static_cast<int>(rest - 16) : 16);
  row_band(o, rest, row, 0, n, k);
  if (odd_rows) configure(16, 16);
}

// The part of a block that is to be finished, whose sums stand in c.
GemmBlock part_of(const GemmBlock& whole, const Operands& o, FinishKind kind, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  return simd_avx512::part_of(whole, kind, row, rows, column, columns, o.c + row * o.ldc + column, o.ldc);
}

// 32 x 32 accumulators that wait to be finished during the next block's products: a few rows per step of K.
template <FinishKind kKind>
struct Pending {
  GemmBlock part;
  int64_t row = 0;  // the next one; part.rows when nothing waits

  void advance(int64_t rows) {
    const int64_t end = row + rows < part.rows ? row + rows : part.rows;
    for (; row < end; ++row) {
      simd_avx512::finish_lanes<uint16_t, kKind>(part, row, 0, 16);
      simd_avx512::finish_lanes<uint16_t, kKind>(part, row, 16, 16);
    }
  }
};

template <FinishKind kKind>
void multiply_and_finish(const Operands& o, int64_t m, int64_t n, int64_t k, const GemmBlock& whole) {
  const int64_t k_block = k_block_of(k), last_k0 = (k - 1) / k_block * k_block;
  const int64_t rows_per_step = (32 * 32 + k - last_k0 - 1) / (k - last_k0);
  const int64_t paired = whole.columns / 32 * 32, rows = m / 32 * 32;
  Pending<kKind> pending;
  Band rows_of_a;
  for (int64_t i = 0; i < rows; i += 32) {
    RowPrefetch next = next_band(o, i, m, paired, k);
    // Without a sum to continue, two bands of c serve in turn: one is computed while the end of the other is finished.
    Operands band = o;
    if (!o.accumulate) band.c = o.c + (i % 64 - i) * o.ldc;
    for (int64_t k0 = 0; k0 < last_k0; k0 += k_block) {
      rows_of_a.load(o, i, k0, k_block);
      for (int64_t j = 0; j < paired; j += 32) band_block(band, rows_of_a, i, j, k0, k_block, [&] { next.step(); });
    }
    rows_of_a.load(o, i, last_k0, k - last_k0);
    for (int64_t j = 0; j < paired; j += 32) {
      band_block(band, rows_of_a, i, j, last_k0, k - last_k0, [&] {
        next.step();
        pending.advance(rows_per_step);
      });
      pending.advance(32);
      __asm__ volatile("" : : : "memory");  // the tiles' stores come before the loads of what follows
      pending.part = part_of(whole, band, kKind, i, 32, j, 32);
      pending.row = 0;
    }
    if (paired == whole.columns) continue;
    Operands edge = band;
    edge.b = o.panel(paired, 0);
    edge.c = band.c + paired;
    row_band(edge, 32, i, 0, n - paired, k);
    __asm__ volatile("" : : : "memory");
    simd_avx512::finish_block<uint16_t, kKind>(part_of(whole, band, kKind, i, 32, paired, whole.columns - paired));
  }
  pending.advance(32);
  if (rows == m) return;
  Operands band = o;
  if (!o.accumulate) band.c = o.c + (rows % 64 - rows) * o.ldc;
  last_rows(band, m - rows, rows, n, k);
  __asm__ volatile("" : : : "memory");
  simd_avx512::finish_block<uint16_t, kKind>(part_of(whole, band, kKind, rows, m - rows, 0, whole.columns));
}

}  // namespace

void amx_begin_thread() { configure(16, 16); }
void amx_end_thread() { _tile_release(); }

void tile_gemm_ahead_amx_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                                int64_t panel_stride, float* c, int64_t ldc, bool accumulate, const TilePrefetch& next) {
  __asm__ volatile("" : : : "memory");  // operands written just before must be in memory: see configure()
  const Operands o{a, lda, b_panels, panel_stride, c, ldc, accumulate};
  const int64_t rows = m / 32 * 32, paired = n / 32 * 32;
  RowPrefetch ahead = RowPrefetch::during(rows, n, k, next);
  if (m > n) {
    column_bands(o, rows, n, k, ahead);
  } else {
    for (int64_t i = 0; i < rows; i += 32) {
      whole_band(o, i, m, paired, k, ahead);
      if (paired == n) continue;
      Operands edge = o;
      edge.b = o.panel(paired, 0);
      edge.c = o.c + paired;
      row_band(edge, 32, i, 0, n - paired, k);
    }
  }
  if (rows < m) last_rows(o, m - rows, rows, n, k);
  __asm__ volatile("" : : : "memory");
}

void tile_gemm_amx_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels, int64_t panel_stride,
                          float* c, int64_t ldc, bool accumulate) {
  tile_gemm_ahead_amx_native(m, n, k, a, lda, b_panels, panel_stride, c, ldc, accumulate, {});
}

void tile_gemm_finish_amx_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                                 int64_t panel_stride, float* c, int64_t ldc, bool accumulate, FinishKind kind, const GemmBlock& block) {
  __asm__ volatile("" : : : "memory");
  const Operands o{a, lda, b_panels, panel_stride, c, ldc, accumulate};
  switch (kind) {
    case FinishKind::kPlain: return multiply_and_finish<FinishKind::kPlain>(o, m, n, k, block);
    case FinishKind::kF32: return multiply_and_finish<FinishKind::kF32>(o, m, n, k, block);
    case FinishKind::kGelu: return multiply_and_finish<FinishKind::kGelu>(o, m, n, k, block);
    case FinishKind::kGeluGrad: return multiply_and_finish<FinishKind::kGeluGrad>(o, m, n, k, block);
  }
}

}  // namespace orrery
