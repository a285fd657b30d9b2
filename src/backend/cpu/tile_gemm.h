// The in-cache matrix product that every other product is built on: C (+)= A . B with B packed in panels, in the exact order of
// an arithmetic id (NUMERICS rule 1). One function per way to compute; all ways of one id give identical bits.
//
// Panels   B [K, N] is cut in panels of 16 columns. bf16: [N/16][K/2][16][2], pairs of K side by side, K padded with zeros
// to 32.
//          f32: [N/16][K][16]. Columns beyond N are padded with zeros too.
#pragma once

#include <cstdint>

#include "backend/cpu/gemm_rows.h"
#include "backend/kernel.h"

namespace orrery {

constexpr int64_t kPanelColumns = 16;
constexpr int64_t kTileRows = 16;
constexpr int64_t kGranuleK = 32;  // K of a bf16 product is padded to it: one AMX tile
// An f32 product sums K in chains of this length. One chain over a vocabulary of 50,257 was 12 times PyTorch's distance from f64;
// the square root of a deep K is the best length for both deep and usual ones.
constexpr int64_t kChainF32 = 256;

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

/// c[m, n] (row stride ldc) = or += a[m, k] (row stride lda) . b. n is a multiple of 16, k of 32 for bf16; m is any. The sum
/// runs over k in the order of the arithmetic id, from +0 or, when accumulating, from c: cutting k at a multiple of 32
/// (f32: of kChainF32) changes no bit.
using TileGemmBf16 = void (*)(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                              int64_t panel_stride, float* c, int64_t ldc, bool accumulate);
using TileGemmF32 = void (*)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b_panels,
                             int64_t panel_stride, float* c, int64_t ldc, bool accumulate);

/// As TileGemmBf16, and what follows it (gemm_rows.h): block says where the results go, its c and ldc are those of the product,
/// whose contents are lost; when not accumulating, c needs only min(m, 64) rows.
using TileGemmFinishBf16 = void (*)(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                                    int64_t panel_stride, float* c, int64_t ldc, bool accumulate, FinishKind kind, const GemmBlock& block);

/// Memory that is needed after a product: rows of bytes, brought to L2 while it runs.
struct TilePrefetch {
  const void* begin = nullptr;
  int64_t stride_bytes = 0, row_bytes = 0, rows = 0;
};
using TileGemmAheadBf16 = void (*)(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                                   int64_t panel_stride, float* c, int64_t ldc, bool accumulate, const TilePrefetch& next);

/// The weight gradient's product: c = or, where `adds`, c += the product summed from +0. Where a_is_packed, a stands as b does, in panels
/// of 16 of its rows lda apart, and m counts from their first row.
using TileFoldBf16 = void (*)(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, bool a_is_packed, const uint16_t* b_panels,
                              int64_t panel_stride, float* c, int64_t ldc, bool adds, const TilePrefetch& next);

struct TileGemm {
  TileGemmBf16 bf16 = nullptr;
  TileGemmAheadBf16 ahead_bf16 = nullptr;    // null: bf16 does as well
  TileGemmBf16 cached_rows_bf16 = nullptr;   // few rows past panels that this core's cache holds; null: bf16 does as well
  TileGemmFinishBf16 finish_bf16 = nullptr;  // null: the caller finishes
  TileFoldBf16 fold_bf16 = nullptr;          // null: a is transposed for bf16, and what it adds is added afterwards
  TileGemmF32 f32 = nullptr;                 // chains of kChainF32, for every arithmetic id
  /// Around the products of one thread: loads and releases the AMX tile configuration; does nothing elsewhere.
  void (*begin_thread)() = nullptr;
  void (*end_thread)() = nullptr;

  /// src [n, k] (k contiguous, row stride ld) as B = src^T: panels of 16 rows of src. n is padded to 16, k to 32.
  void (*pack_transposed_bf16)(int64_t n, int64_t k, const uint16_t* src, int64_t ld, uint16_t* panels,
                               int64_t panel_stride) = nullptr;
  void (*pack_transposed_f32)(int64_t n, int64_t k, const float* src, int64_t ld, float* panels,
                              int64_t panel_stride) = nullptr;
  /// src [k, n] (n contiguous) as B = src.
  void (*pack_rows_bf16)(int64_t k, int64_t n, const uint16_t* src, int64_t ld, uint16_t* panels,
                         int64_t panel_stride) = nullptr;
  void (*pack_rows_f32)(int64_t k, int64_t n, const float* src, int64_t ld, float* panels, int64_t panel_stride) = nullptr;
  /// dst [n, k] (row stride ldd) = src [k, n]^T, k padded with zeros to 32 (bf16).
  void (*transpose_bf16)(int64_t k, int64_t n, const uint16_t* src, int64_t ld, uint16_t* dst, int64_t ldd) = nullptr;
  void (*transpose_f32)(int64_t k, int64_t n, const float* src, int64_t ld, float* dst, int64_t ldd) = nullptr;
};

/// Elements of one panel of depth k: the least panel_stride.
constexpr int64_t panel_elements_bf16(int64_t k) { return round_up(k, kGranuleK) * kPanelColumns; }
constexpr int64_t panel_elements_f32(int64_t k) { return k * kPanelColumns; }

/// Whether the products of this context are summed by vdpbf16ps: it asks for dp2's own instruction, which is there and faster than FMAs that give its bits.
bool sums_by_vdpbf16ps(const KernelContext& context);

/// The products for this context's arithmetic. Errors: kUnsupported when the processor lacks what the context asks for.
const TileGemm& tile_gemm(const KernelContext& context);

}  // namespace orrery
