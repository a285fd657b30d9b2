// What the per-instruction-set files of the block product give to block_product.cpp.
#pragma once

#include <cstdint>

namespace orrery {

struct ProductArgs;
using ProductFn = void (*)(const ProductArgs& args);

struct EmulatedProducts {
  ProductFn f32, bf16_fma1, bf16_dp2, bf16_amx32;
};
extern const EmulatedProducts kEmulatedProductsAvx2;
extern const EmulatedProducts kEmulatedProductsAvx512;

void product_dp2_native(const ProductArgs& args);
void product_amx_native(const ProductArgs& args);
void configure_tiles();
void release_tiles();

}  // namespace orrery
