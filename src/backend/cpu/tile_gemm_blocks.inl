// bf16 products in blocks of registers, for AVX-512; included by tile_gemm_avx512bf16.cpp (vdpbf16ps) and tile_gemm_blocks_avx512.cpp
// (FMA). A Dot says how the products of a pair of K are made and added:
//   kUnpacks                        whether b is unpacked to f32 for them
//   Rows<R, kPacked>                R rows of a, ready for a granule of K: prepare(a, row_step)
//   add<R, P>(sum, rows, pair, b, panel_stride)   a pair's products with P panels
//
// Blocks   of R rows by P panels of accumulators in registers, so that neither loads nor unpacking hold the multipliers back. vdpbf16ps:
//          Zen 4 starts one of 64 bytes and one such load a cycle, so one panel alone (13 loads for 12 products) waits for loads, 8 rows
//          by 3 panels (11 for 24) do not, nor 6 by 4 for what threes leave over: from L2 that runs at 99.7 % of a loop on registers.
//          FMA: 12 rows by 2 panels, 4 unpackings for 48 products.
//          Rows of a stand as they lie, or packed as b is.
// Bands    of 24 rows pass all panels. What would cost time is memory behind L2: the rows of the next band are requested while
//          a band multiplies, and sums are finished block by block, so that the stores of one wait while the next multiplies.
#pragma once

#include "backend/cpu/gemm_finish.h"
#include "backend/cpu/tile_gemm_isa.h"

namespace orrery::simd_avx512 {
namespace {

constexpr int64_t kPanel = 16, kBand = 24, kFewRows = 4;
// So few rows do not hide the time in which panels come from memory, and three streams side by side lose the prefetchers where panels end.
constexpr int64_t kRowsThatWait = 32;

// What c was counts from the beginning, not at all, or is added to the sum in the end.
enum class Start { kZero, kSum, kZeroThenAdd };

struct Operands {
  int64_t k;  // a multiple of 32
  const uint16_t* a;
  int64_t lda;
  const uint16_t* b;  // the first panel
  int64_t panel_stride;
  float* c;
  int64_t ldc;
  Start start;
};

// How a stands: row by row, or in panels of 16 rows.
struct Rows {
  static constexpr bool kPacked = false;
  static const uint16_t* at(const Operands& o, int64_t row) { return o.a + row * o.lda; }
};
struct PackedRows {
  static constexpr bool kPacked = true;
  static const uint16_t* at(const Operands& o, int64_t row) { return o.a + row / kPanel * o.lda + row % kPanel * 2; }
};

// What is wanted next, requested for 32 of K at a time while a block goes through its K: rows of a and, where it says so, the panels behind
// the block's own.
struct Ahead {
  const uint16_t* rows = nullptr;
  int64_t stride = 0, count = 0;
  bool panels = false;

  template <int P>
  ORRERY_MEMBER void request(const Operands& o, const uint16_t* b, int64_t k) const {
    for (int64_t i = 0; i < count; ++i) _mm_prefetch(reinterpret_cast<const char*>(rows + i * stride + k), _MM_HINT_T1);
    if (!panels) return;
    for (int64_t p = P; p < 2 * P; ++p)
      for (int64_t i = k; i < k + kGranuleK; i += 2) _mm_prefetch(reinterpret_cast<const char*>(b + p * o.panel_stride + i * kPanel), _MM_HINT_T1);
  }
};

// What is done with sums.
struct Finish {
  FinishKind kind = FinishKind::kPlain;
  const GemmBlock* whole = nullptr;  // null: they stay in c

  // Whether columns [column, column + count) are rounded, with a bias perhaps, and no more.
  bool only_rounds(int64_t column, int64_t count) const { return kind == FinishKind::kPlain && column + count <= whole->columns; }

  // Requests the lines that a block's results will be written to and made of, so that neither stores nor loads wait for them.
  ORRERY_MEMBER void expect(int64_t row, int64_t rows, int64_t column, int64_t columns) const {
    request<true>(whole->y, whole->ldy, kind == FinishKind::kF32 ? 4 : 2, row, rows, column, columns);
    if (kind == FinishKind::kGelu) request<true>(whole->gelu_y, whole->ld_gelu, 2, row, rows, column, columns);
    if (kind == FinishKind::kGeluGrad) request<false>(whole->u, whole->ldu, 2, row, rows, column, columns);
  }
  template <bool kForWriting>
  ORRERY_MEMBER static void request(const void* p, int64_t stride, int64_t bytes, int64_t row, int64_t rows, int64_t column, int64_t columns) {
    const char* line = static_cast<const char*>(p) + (row * stride + column) * bytes;
    for (int64_t r = 0; r < rows; ++r, line += stride * bytes)
      for (int64_t i = 0; i < columns * bytes; i += 64) __builtin_prefetch(line + i, kForWriting);
  }

  void operator()(int64_t row, int64_t rows, int64_t column, int64_t columns, const float* c, int64_t ldc) const {
    const int64_t rest = whole->columns - column;
    if (rest <= 0) return;
    const GemmBlock part = part_of(*whole, kind, row, rows, column, rest < columns ? rest : columns, c, ldc);
    switch (kind) {
      case FinishKind::kPlain: return finish_block<uint16_t, FinishKind::kPlain>(part);
      case FinishKind::kF32: return finish_block<uint16_t, FinishKind::kF32>(part);
      case FinishKind::kGelu: return finish_block<uint16_t, FinishKind::kGelu>(part);
      case FinishKind::kGeluGrad: return finish_block<uint16_t, FinishKind::kGeluGrad>(part);
    }
  }
};

template <int R, int P>
ORRERY_INLINE void store_sums(const __m512 (&sum)[R][P], float* c, int64_t ldc) {
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r, c += ldc)
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) _mm512_storeu_ps(c + p * kPanel, sum[r][p]);
}

template <int R, int P>
ORRERY_INLINE void add_sums(const __m512 (&sum)[R][P], float* c, int64_t ldc) {
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r, c += ldc)
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) _mm512_storeu_ps(c + p * kPanel, _mm512_add_ps(_mm512_loadu_ps(c + p * kPanel), sum[r][p]));
}

// FinishKind::kPlain of whole panels, without a way through memory.
template <int R, int P>
ORRERY_INLINE void round_sums(const __m512 (&sum)[R][P], const GemmBlock& whole, int64_t row, int64_t column) {
  F32x16 bias[P];
  uint16_t* y = static_cast<uint16_t*>(whole.y) + row * whole.ldy + column;
  if (whole.bias != nullptr) {
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) bias[p] = load(static_cast<const uint16_t*>(whole.bias) + column + p * kPanel);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r, y += whole.ldy)
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) store(y + p * kPanel, F32x16{sum[r][p]} + bias[p]);
    return;
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r, y += whole.ldy)
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) store(y + p * kPanel, F32x16{sum[r][p]});
}

// R rows by P panels, finished.
template <typename Dot, int R, int P, typename A>
void block(const Operands& o, int64_t row, int64_t panel, const Finish& finish, const Ahead& next) {
  const uint16_t* a = A::at(o, row);
  const int64_t row_step = A::kPacked ? 2 : o.lda, k_step = A::kPacked ? kPanel : 1;
  const uint16_t* b = o.b + panel * o.panel_stride;
  float* c = o.c + row * o.ldc + panel * kPanel;
  __m512 sum[R][P];
  if (o.start == Start::kSum) {
    const float* from = c;
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r, from += o.ldc)
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) sum[r][p] = _mm512_loadu_ps(from + p * kPanel);
  } else {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) sum[r][p] = _mm512_setzero_ps();
  }
  if (finish.whole != nullptr) finish.expect(row, R, panel * kPanel, P * kPanel);
  const int64_t k = o.k;
  typename Dot::template Rows<R, A::kPacked> rows;
  for (int64_t k0 = 0; k0 < k; k0 += kGranuleK) {
    next.request<P>(o, b, k0);
    rows.prepare(a + k0 * k_step, row_step);
#pragma GCC unroll 4
    for (int64_t pair = 0; pair < kGranuleK / 2; ++pair) Dot::template add<R, P>(sum, rows, pair, b + (k0 + 2 * pair) * kPanel, o.panel_stride);
  }
  // Addresses are made here, not before the loop, which needs all registers.
  __asm__("" : "+r"(c));
  if (o.start == Start::kZeroThenAdd) return add_sums(sum, c, o.ldc);
  if (finish.whole == nullptr) return store_sums(sum, c, o.ldc);
  const int64_t column = panel * kPanel;
  if (finish.only_rounds(column, P * kPanel)) return round_sums(sum, *finish.whole, row, column);
  // Sums that need not stay take turns in one place, which stays in L1.
  const int64_t ldc = o.start == Start::kSum ? o.ldc : P * kPanel;
  if (o.start == Start::kZero) c = o.c;
  store_sums(sum, c, ldc);
  finish(row, R, column, P * kPanel, c, ldc);
}

// Few rows read b once, at the speed of memory. Measured on Zen 4: one panel after the other is one stream, which the prefetchers follow as they
// follow a read loop; two or four panels side by side are a fifth slower, and requests ahead by instruction a tenth. A chain of vdpbf16ps
// takes 64 bytes in six cycles, no more than memory gives; from cache, and where the rows take most of L1, four panels are passed at once.
// A chain of FMAs takes eight cycles, and an Intel core keeps more lines on their way in four streams: 0.9 of a read loop for 0.7.
template <typename Dot, int R>
void few_rows(const Operands& o, int64_t num_panels, bool cached) {
  constexpr int64_t kRowElements = 8 << 10;  // 16 KiB
  int64_t panel = 0;
  if (Dot::kUnpacks || cached || R * o.k > kRowElements)
    for (; panel + 4 <= num_panels; panel += 4) block<Dot, R, 4, Rows>(o, 0, panel, {}, {});
  for (; panel < num_panels; ++panel) block<Dot, R, 1, Rows>(o, 0, panel, {}, {});
}

template <typename Dot>
void few_rows(const Operands& o, int64_t m, int64_t num_panels, bool cached) {
  switch (m) {
    case 1: return few_rows<Dot, 1>(o, num_panels, cached);
    case 2: return few_rows<Dot, 2>(o, num_panels, cached);
    case 3: return few_rows<Dot, 3>(o, num_panels, cached);
    default: return few_rows<Dot, 4>(o, num_panels, cached);
  }
}

// P panels of a band, in blocks of R rows and then fewer.
template <typename Dot, int R, int P, typename A, typename Next>
void panels(const Operands& o, int64_t row, int64_t end, int64_t panel, const Finish& finish, Next&& next) {
  for (; row + R <= end; row += R) block<Dot, R, P, A>(o, row, panel, finish, next(row));
  if constexpr (R > 8 && Dot::kUnpacks)
    for (; row + 8 <= end; row += 8) block<Dot, 8, P, A>(o, row, panel, finish, next(row));
  for (; row + 4 <= end; row += 4) block<Dot, 4, P, A>(o, row, panel, finish, next(row));
  for (; row < end; ++row) block<Dot, 1, P, A>(o, row, panel, finish, next(row));
}

// Blocks of a product of so many rows, about.
int64_t num_blocks(int64_t rows, int64_t num_panels) { return (rows + 7) / 8 * ((num_panels + 2) / 3); }

// Rows of memory, some of them requested with each of so many blocks.
class WantedRows {
 public:
  WantedRows(const TilePrefetch& wanted, int64_t blocks) : wanted_(wanted), rows_(wanted.rows == 0 ? 0 : (wanted.rows + blocks - 1) / blocks) {}
  void request() {
    for (const int64_t end = row_ + rows_ < wanted_.rows ? row_ + rows_ : wanted_.rows; row_ < end; ++row_)
      for (int64_t byte = 0; byte < wanted_.row_bytes; byte += 64)
        _mm_prefetch(static_cast<const char*>(wanted_.begin) + row_ * wanted_.stride_bytes + byte, _MM_HINT_T1);
  }

 private:
  TilePrefetch wanted_;
  int64_t rows_, row_ = 0;
};

template <typename Dot>
void multiply(const Operands& o, int64_t m, int64_t num_panels, const Finish& finish, const TilePrefetch& next) {
  WantedRows wanted(next, num_blocks(m, num_panels));
  const int64_t blocks = num_blocks(kBand, num_panels), rows_a_block = (kBand + blocks - 1) / blocks;
  for (int64_t row = 0; row < m; row += kBand) {
    const int64_t end = row + kBand < m ? row + kBand : m, next_end = end + kBand < m ? end + kBand : m;
    int64_t next_row = end;
    const auto following = [&](int64_t block_row) -> Ahead {
      wanted.request();
      const int64_t first = next_row, rest = next_end - first;
      next_row += rows_a_block;
      return {o.a + first * o.lda, o.lda, rest < rows_a_block ? rest : rows_a_block, block_row == 0 && m <= kRowsThatWait};
    };
    int64_t panel = 0;
    if constexpr (Dot::kUnpacks) {
      // An odd number ends in threes: one panel has two loads for each two products.
      for (; num_panels - panel >= 4 || num_panels - panel == 2; panel += 2) panels<Dot, 12, 2, Rows>(o, row, end, panel, finish, following);
      if (num_panels - panel == 3) panels<Dot, 8, 3, Rows>(o, row, end, panel, finish, following);
      if (num_panels - panel == 1) panels<Dot, 12, 1, Rows>(o, row, end, panel, finish, following);
      continue;
    }
    for (; num_panels - panel >= 5 || num_panels - panel == 3; panel += 3) panels<Dot, 8, 3, Rows>(o, row, end, panel, finish, following);
    switch (num_panels - panel) {
      case 4: panels<Dot, 6, 4, Rows>(o, row, end, panel, finish, following); break;
      case 2: panels<Dot, 12, 2, Rows>(o, row, end, panel, finish, following); break;
      case 1: panels<Dot, 12, 1, Rows>(o, row, end, panel, finish, following); break;
      default: break;
    }
  }
}

// Packed rows follow each other in memory, as the prefetchers like it.
template <typename Dot>
void multiply_packed(const Operands& o, int64_t m, int64_t num_panels, const TilePrefetch& next) {
  constexpr int64_t kPackedBand = 2 * kPanel;
  WantedRows wanted(next, num_blocks(m, num_panels));
  const auto following = [&](int64_t) -> Ahead {
    wanted.request();
    return {};
  };
  for (int64_t row = 0; row < m; row += kPackedBand) {
    const int64_t end = row + kPackedBand < m ? row + kPackedBand : m;
    int64_t panel = 0;
    for (; num_panels - panel >= 3 && num_panels - panel != 4; panel += 3) panels<Dot, 8, 3, PackedRows>(o, row, end, panel, {}, following);
    for (; num_panels - panel >= 2; panel += 2) panels<Dot, 8, 2, PackedRows>(o, row, end, panel, {}, following);
    if (panel < num_panels) panels<Dot, 8, 1, PackedRows>(o, row, end, panel, {}, following);
  }
}

template <typename Dot>
void ahead_bf16(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels, int64_t panel_stride, float* c, int64_t ldc,
                bool accumulate, const TilePrefetch& next) {
  const Operands o{k, a, lda, b_panels, panel_stride, c, ldc, accumulate ? Start::kSum : Start::kZero};
  if (m <= kFewRows) return few_rows<Dot>(o, m, n / kPanel, false);
  multiply<Dot>(o, m, n / kPanel, {}, next);
}

template <typename Dot>
void bf16(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels, int64_t panel_stride, float* c, int64_t ldc,
          bool accumulate) {
  ahead_bf16<Dot>(m, n, k, a, lda, b_panels, panel_stride, c, ldc, accumulate, {});
}

template <typename Dot>
void finish_bf16(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels, int64_t panel_stride, float* c, int64_t ldc,
                 bool accumulate, FinishKind kind, const GemmBlock& block) {
  const Operands o{k, a, lda, b_panels, panel_stride, c, ldc, accumulate ? Start::kSum : Start::kZero};
  const Finish finish{kind, &block};
  if (m > kFewRows) return multiply<Dot>(o, m, n / kPanel, finish, {});
  few_rows<Dot>(o, m, n / kPanel, false);
  finish(0, m, 0, n, c, ldc);
}

template <typename Dot>
void fold_bf16(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, bool a_is_packed, const uint16_t* b_panels, int64_t panel_stride, float* c,
               int64_t ldc, bool adds, const TilePrefetch& next) {
  const Operands o{k, a, lda, b_panels, panel_stride, c, ldc, adds ? Start::kZeroThenAdd : Start::kZero};
  if (a_is_packed) return multiply_packed<Dot>(o, m, n / kPanel, next);
  multiply<Dot>(o, m, n / kPanel, {}, next);
}

template <typename Dot>
void cached_rows_bf16(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels, int64_t panel_stride, float* c, int64_t ldc,
                      bool accumulate) {
  if (m > kFewRows) return bf16<Dot>(m, n, k, a, lda, b_panels, panel_stride, c, ldc, accumulate);
  few_rows<Dot>({k, a, lda, b_panels, panel_stride, c, ldc, accumulate ? Start::kSum : Start::kZero}, m, n / kPanel, true);
}

template <typename Dot>
void set_blocked(TileGemm& table) {
  table.bf16 = bf16<Dot>;
  table.ahead_bf16 = ahead_bf16<Dot>;
  table.cached_rows_bf16 = cached_rows_bf16<Dot>;
  table.finish_bf16 = finish_bf16<Dot>;
  table.fold_bf16 = fold_bf16<Dot>;
}

}  // namespace
}  // namespace orrery::simd_avx512
