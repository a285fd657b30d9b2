#include "backend/cpu/block_product.h"

#include "backend/cpu/block_product_table.h"

namespace orrery {
namespace {

void nothing() {}

}  // namespace

const BlockProduct& block_product(DType dtype, VectorIsa isa, Arithmetic arithmetic, bool native_arithmetic) {
  static const BlockProduct f32[] = {{nothing, nothing, kEmulatedProductsAvx2.f32},
                                     {nothing, nothing, kEmulatedProductsAvx512.f32}};
  static const BlockProduct fma1[] = {{nothing, nothing, kEmulatedProductsAvx2.bf16_fma1},
                                      {nothing, nothing, kEmulatedProductsAvx512.bf16_fma1}};
  static const BlockProduct dp2[] = {{nothing, nothing, kEmulatedProductsAvx2.bf16_dp2},
                                     {nothing, nothing, kEmulatedProductsAvx512.bf16_dp2}};
  static const BlockProduct amx32[] = {{nothing, nothing, kEmulatedProductsAvx2.bf16_amx32},
                                       {nothing, nothing, kEmulatedProductsAvx512.bf16_amx32}};
  static const BlockProduct native_dp2{nothing, nothing, product_dp2_native};
  static const BlockProduct native_amx{configure_tiles, release_tiles, product_amx_native};
  const int index = isa == VectorIsa::kAvx512;
  if (dtype == DType::kF32) return f32[index];
  if (arithmetic == Arithmetic::kFma1) return fma1[index];
  if (arithmetic == Arithmetic::kDp2) return native_arithmetic && cpu_features().avx512_bf16 ? native_dp2 : dp2[index];
  return native_arithmetic && cpu_features().amx_bf16 ? native_amx : amx32[index];
}

}  // namespace orrery
