// The per-instruction-set halves of tile_gemm.cpp.
#pragma once

#include "backend/cpu/tile_gemm.h"

namespace orrery {

namespace simd_avx2 {
/// Packing and f32 products: what all arithmetic ids share.
TileGemm tile_gemm_without_bf16();
/// The bf16 products by f32 FMAs in rows of one panel.
void set_rows_by_fma(TileGemm& table, Arithmetic arithmetic);
}
namespace simd_avx512 {
TileGemm tile_gemm_without_bf16();
void set_rows_by_fma(TileGemm& table, Arithmetic arithmetic);  // of amx32, whose two chains a granule are too many sums for blocks
/// dp2 and fma1 at the speed of f32 FMAs.
void set_blocks_by_fma(TileGemm& table, Arithmetic arithmetic);
}

/// dp2 by its own instruction.
void set_blocks_by_vdpbf16ps(TileGemm& table);
/// So many times twelve independent ones, and twelve FMAs of the same width, to see which is the faster way. Need the instruction.
void vdpbf16ps_loop(int64_t steps);
void fma_loop(int64_t steps);
void tile_gemm_amx_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                          int64_t panel_stride, float* c, int64_t ldc, bool accumulate);
void tile_gemm_ahead_amx_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                                int64_t panel_stride, float* c, int64_t ldc, bool accumulate, const TilePrefetch& next);
void tile_gemm_finish_amx_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                                 int64_t panel_stride, float* c, int64_t ldc, bool accumulate, FinishKind kind, const GemmBlock& block);
void amx_begin_thread();
void amx_end_thread();

}  // namespace orrery
