#include "backend/cpu/tile_gemm.h"

#include <array>

#include "backend/cpu/loop_seconds.h"
#include "backend/cpu/tile_gemm_isa.h"
#include "base/error.h"

namespace orrery {
namespace {

// Whether the instruction behind an arithmetic id is here; fma1 is nobody's native instruction.
bool has_instruction(Arithmetic arithmetic) {
  const CpuFeatures& features = cpu_features();
  return arithmetic == Arithmetic::kAmx32 ? features.amx_bf16 : arithmetic == Arithmetic::kDp2 ? features.avx512_bf16 : false;
}

// A Zen 4 starts a vdpbf16ps in each cycle, as many as FMAs; an Intel core one every other cycle beside four FMAs, which do the same.
// Bits do not depend on the answer, and a factor of four lies between the two kinds.
bool vdpbf16ps_beats_fma() {
  static const bool beats = loop_seconds(vdpbf16ps_loop) < 2 * loop_seconds(fma_loop);
  return beats;
}

void no_op() {}

TileGemm by_avx2(Arithmetic arithmetic) {
  TileGemm table = simd_avx2::tile_gemm_without_bf16();
  simd_avx2::set_rows_by_fma(table, arithmetic);
  table.begin_thread = table.end_thread = no_op;
  return table;
}

// Native: by the instruction behind the arithmetic id, where FMAs are not the faster way to its bits.
TileGemm by_avx512(Arithmetic arithmetic, bool native) {
  TileGemm table = simd_avx512::tile_gemm_without_bf16();
  if (native && arithmetic == Arithmetic::kAmx32) {
    table.bf16 = tile_gemm_amx_native;
    table.ahead_bf16 = tile_gemm_ahead_amx_native;
    table.finish_bf16 = tile_gemm_finish_amx_native;
    table.begin_thread = amx_begin_thread;
    table.end_thread = amx_end_thread;
    return table;
  }
  if (arithmetic == Arithmetic::kAmx32)
    simd_avx512::set_rows_by_fma(table, arithmetic);
  else if (native && vdpbf16ps_beats_fma())
    set_blocks_by_vdpbf16ps(table);
  else
    simd_avx512::set_blocks_by_fma(table, arithmetic);
  table.begin_thread = table.end_thread = no_op;
  return table;
}

}  // namespace

bool sums_by_vdpbf16ps(const KernelContext& context) {
  return context.native_arithmetic && context.isa == VectorIsa::kAvx512 && context.arithmetic == Arithmetic::kDp2 && has_instruction(Arithmetic::kDp2) && vdpbf16ps_beats_fma();
}

const TileGemm& tile_gemm(const KernelContext& context) {
  // [arithmetic][AVX2, AVX-512, native]; empty where this processor has no such instructions.
  static const auto tables = [] {
    std::array<std::array<TileGemm, 3>, 3> all;
    for (Arithmetic arithmetic : {Arithmetic::kAmx32, Arithmetic::kDp2, Arithmetic::kFma1}) {
      auto& row = all[static_cast<size_t>(arithmetic)];
      row[0] = by_avx2(arithmetic);
      if (cpu_features().avx512) row[1] = by_avx512(arithmetic, false);
      if (has_instruction(arithmetic)) row[2] = by_avx512(arithmetic, true);
    }
    return all;
  }();
  const bool use_native = context.native_arithmetic && context.isa == VectorIsa::kAvx512 && has_instruction(context.arithmetic);
  const TileGemm& table = tables[static_cast<size_t>(context.arithmetic)][use_native ? 2 : context.isa == VectorIsa::kAvx512 ? 1 : 0];
  if (table.bf16 == nullptr) throw Error(ErrorCode::kUnsupported, "matrix products by AVX-512 on a processor without it; use VectorIsa::kAvx2");
  return table;
}

}  // namespace orrery
