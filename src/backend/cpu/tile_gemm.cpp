#include "backend/cpu/tile_gemm.h"

#include <array>

#include "backend/cpu/tile_gemm_isa.h"

namespace orrery {
namespace {

TileGemm by_fma(VectorIsa isa, Arithmetic arithmetic) {
  return isa == VectorIsa::kAvx512 ? simd_avx512::tile_gemm_by_fma(arithmetic) : simd_avx2::tile_gemm_by_fma(arithmetic);
}

TileGemm native(VectorIsa isa, Arithmetic arithmetic) {
  TileGemm table = by_fma(isa, arithmetic);
  if (arithmetic == Arithmetic::kAmx32) {
    table.bf16 = tile_gemm_amx_native;
    table.ahead_bf16 = tile_gemm_ahead_amx_native;
    table.finish_bf16 = tile_gemm_finish_amx_native;
    table.begin_thread = amx_begin_thread;
    table.end_thread = amx_end_thread;
  } else if (arithmetic == Arithmetic::kDp2) {
    table.bf16 = tile_gemm_dp2_native;
    table.ahead_bf16 = tile_gemm_ahead_dp2_native;
    table.finish_bf16 = tile_gemm_finish_dp2_native;
    table.fold_bf16 = tile_gemm_fold_dp2_native;
    table.cached_rows_bf16 = tile_gemm_cached_rows_dp2_native;
  }
  return table;
}

// Whether the instruction behind an arithmetic id is here; fma1 is nobody's native instruction.
bool has_instruction(Arithmetic arithmetic) {
  const CpuFeatures& features = cpu_features();
  return arithmetic == Arithmetic::kAmx32 ? features.amx_bf16 : arithmetic == Arithmetic::kDp2 ? features.avx512_bf16 : false;
}

}  // namespace

const TileGemm& tile_gemm(const KernelContext& context) {
  // [isa][arithmetic][native]
  static const auto tables = [] {
    std::array<std::array<std::array<TileGemm, 2>, 3>, 2> all;
    for (VectorIsa isa : {VectorIsa::kAvx2, VectorIsa::kAvx512})
      for (Arithmetic arithmetic : {Arithmetic::kAmx32, Arithmetic::kDp2, Arithmetic::kFma1})
        for (bool use_native : {false, true})
          all[static_cast<size_t>(isa)][static_cast<size_t>(arithmetic)][use_native] =
              use_native ? native(isa, arithmetic) : by_fma(isa, arithmetic);
    return all;
  }();
  const bool use_native = context.native_arithmetic && context.isa == VectorIsa::kAvx512 && has_instruction(context.arithmetic);
  return tables[static_cast<size_t>(context.isa)][static_cast<size_t>(context.arithmetic)][use_native];
}

}  // namespace orrery
