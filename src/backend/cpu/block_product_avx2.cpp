#include "backend/cpu/block_product.inl"

namespace orrery {

const EmulatedProducts kEmulatedProductsAvx2 = {simd_avx2::product_f32, simd_avx2::product_bf16<simd_avx2::Chain::kFma1>,
                                                simd_avx2::product_bf16<simd_avx2::Chain::kDp2>,
                                                simd_avx2::product_bf16<simd_avx2::Chain::kAmx32>};

}  // namespace orrery
