#include "backend/cpu/block_product.inl"

namespace orrery {

const EmulatedProducts kEmulatedProductsAvx512 = {
    simd_avx512::product_f32, simd_avx512::product_bf16<simd_avx512::Chain::kFma1>,
    simd_avx512::product_bf16<simd_avx512::Chain::kDp2>, simd_avx512::product_bf16<simd_avx512::Chain::kAmx32>};

}  // namespace orrery
