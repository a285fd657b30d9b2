// The per-instruction-set halves of tile_gemm.cpp.
#pragma once

#include "backend/cpu/tile_gemm.h"

namespace orrery {

namespace simd_avx2 {
TileGemm tile_gemm_by_fma(Arithmetic arithmetic);
}
namespace simd_avx512 {
TileGemm tile_gemm_by_fma(Arithmetic arithmetic);
}

void tile_gemm_dp2_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                          int64_t panel_stride, float* c, int64_t ldc, bool accumulate);
void tile_gemm_ahead_dp2_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                                int64_t panel_stride, float* c, int64_t ldc, bool accumulate, const TilePrefetch& next);
void tile_gemm_finish_dp2_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                                 int64_t panel_stride, float* c, int64_t ldc, bool accumulate, FinishKind kind, const GemmBlock& block);
void tile_gemm_fold_dp2_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, bool a_is_packed, const uint16_t* b_panels,
                               int64_t panel_stride, float* c, int64_t ldc, bool adds, const TilePrefetch& next);
void tile_gemm_cached_rows_dp2_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                                      int64_t panel_stride, float* c, int64_t ldc, bool accumulate);
void tile_gemm_amx_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                          int64_t panel_stride, float* c, int64_t ldc, bool accumulate);
void tile_gemm_ahead_amx_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                                int64_t panel_stride, float* c, int64_t ldc, bool accumulate, const TilePrefetch& next);
void tile_gemm_finish_amx_native(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b_panels,
                                 int64_t panel_stride, float* c, int64_t ldc, bool accumulate, FinishKind kind, const GemmBlock& block);
void amx_begin_thread();
void amx_end_thread();

}  // namespace orrery
