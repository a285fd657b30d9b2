// The products of quantized_kernels.h by AMX's tiles of bytes: 16 rows at a time meet one panel, block after block, and what is left is
// vpdpbusd's. A block's exact i32 sums come from one tdpbssd (two, where each half has a scale); the f32 FMAs on them are those of
// quantized_kernels.inl in the same order, so the bits are equal.
// What it should be worth, by counting: a block of 16 rows and columns takes tdpbssd 16 cycles, and the conversion, product of scales and FMA
// on its sums as many instructions as 24 cycles of two ports take, beside 88 cycles for all by vpdpbusd. Not measured: it was written on
// processors without AMX, and is tested there over tiles in software (quantized_amx_software_test.cpp).
#include "backend/cpu/amx_tiles.h"
#include "backend/cpu/quantized_blocks.h"
#include "backend/cpu/quantized_kernels_isa.h"

namespace orrery {

namespace {

using namespace simd_avx512;

// Tiles 0 and 1 are sums, 2 the rows and 3 the codes of a block, 4 and 5 those of half a block.
void begin_thread() {
  TileConfig config;
  for (int sums : {0, 1}) config.shape(sums, 16, 64);
  config.shape(2, 16, kQuantBlock);
  config.shape(3, kQuantBlock / 4, 64);
  config.shape(4, 16, kQuantBlock / 2);
  config.shape(5, kQuantBlock / 8, 64);
  config.load();
}
void end_thread() { _tile_release(); }

/// A block's codes minus the format's offset, which fit i8 in every format.
template <int kBits, int kGroup = 0>
ORRERY_INLINE void signed_groups(const uint8_t* block, __m512i offset, int8_t* out) {
  _mm512_store_si512(out + 64 * kGroup, _mm512_sub_epi8(unpack_group<kBits, kGroup>(block), offset));
  if constexpr (kGroup < 7) signed_groups<kBits, kGroup + 1>(block, offset, out);
}
void signed_codes(WeightFormatInfo format, const uint8_t* block, int8_t* out) {
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(format.offset));
  switch (format.bits) {
    case 4: return signed_groups<4>(block, offset, out);
    case 5: return signed_groups<5>(block, offset, out);
    case 6: return signed_groups<6>(block, offset, out);
    default: return signed_groups<8>(block, offset, out);
  }
}

/// The first kRows rows of a tile by one panel of any format with kFormat's scales; rows beyond those that count hold anything and go nowhere.
template <WeightFormat kFormat, int kRows>
void panel(const PanelProduct& product) {
  constexpr WeightFormatInfo kInfo = weight_format_info(kFormat);
  constexpr bool kHalves = kInfo.scales == ScaleKind::kHalf;
  const WeightFormatInfo format = weight_format_info(product.format);
  const int64_t num_blocks = product.k / kQuantBlock;
  const auto* codes = reinterpret_cast<const uint8_t*>(product.panels);
  BlockScales<kFormat, 1> scales;
  scales.at = codes + quantized_code_bytes(product.format, product.k);
  scales.panel_bytes = 0;
  const auto* next = reinterpret_cast<const char*>(product.ahead);
  const int64_t lines_a_block = (product.ahead_bytes + 64 * num_blocks - 1) / (64 * num_blocks);
  TileBlock<kTallTileRows> x{product.tile};
  alignas(64) int8_t w[8 * 64];
  alignas(64) int32_t sums[2][16 * 16];
  F32x16 acc[kRows];
  for (F32x16& a : acc) a = zero();

  const auto add = [&](int half, auto&& minus) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      acc[r] = fma(to_f32(load(sums[half] + 16 * r)), scales.d[0][half] * x.scale(r), acc[r]);
      if constexpr (kInfo.has_min) acc[r] = fma(scales.min[0][half], kHalves ? x.scale(r) * to_f32(minus(r)) : x.minus_min(r), acc[r]);
    }
  };
  for (int64_t block = 0; block < num_blocks; ++block) {
    for (int64_t line = 0; line < lines_a_block; ++line) __builtin_prefetch(next + 64 * line, 0, 2);
    next += 64 * lines_a_block;
    scales.next();
    signed_codes(format, codes, w);
    __asm__ volatile("" : : : "memory");  // the intrinsics do not say that tiles are loaded from memory
    _tile_zero(0);
    if constexpr (!kHalves) {
      _tile_loadd(2, x.at, kQuantBlock);
      _tile_loadd(3, w, 64);
      _tile_dpbssd(0, 2, 3);
      _tile_stored(0, sums[0], 64);
      add(0, [&](int r) { return x.minus_sum(r); });
    } else {
      _tile_loadd(4, x.at, kQuantBlock);
      _tile_loadd(5, w, 64);
      _tile_dpbssd(0, 4, 5);
      _tile_stored(0, sums[0], 64);
      _tile_zero(1);
      _tile_loadd(4, x.at + kQuantBlock / 2, kQuantBlock);
      _tile_loadd(5, w + 4 * 64, 64);
      _tile_dpbssd(1, 4, 5);
      _tile_stored(1, sums[1], 64);
      add(0, [&](int r) { return x.minus_half(r); });
      add(1, [&](int r) { return x.minus_sum(r) - x.minus_half(r); });
    }
    codes += 64 * format.bits;
    x.at += kTallTileRows * kQuantizedRowBytes;
  }
  for (int64_t r = 0; r < kRows; ++r) {
    if (r >= product.num_rows) return;
    if (product.bf16)
      store(static_cast<uint16_t*>(product.y) + r * product.ldy, acc[r]);
    else
      store(static_cast<float*>(product.y) + r * product.ldy, acc[r]);
  }
}

template <WeightFormat kFormat>
void panel_with_scales_of(const PanelProduct& product) {
  product.num_rows > kTallTileRows / 2 ? panel<kFormat, 16>(product) : panel<kFormat, 8>(product);
}

// By scales alone: a kernel for each format takes twice as long to compile and saves a jump a block.
void one_panel(const PanelProduct& product) {
  const WeightFormatInfo format = weight_format_info(product.format);
  switch (format.scales) {
    case ScaleKind::kBlock: return format.has_min ? panel_with_scales_of<WeightFormat::kQ4_1>(product) : panel_with_scales_of<WeightFormat::kQ8_0>(product);
    case ScaleKind::kSuper: return panel_with_scales_of<WeightFormat::kQ4_K>(product);
    case ScaleKind::kHalf: return format.has_min ? panel_with_scales_of<WeightFormat::kQ2_K>(product) : panel_with_scales_of<WeightFormat::kQ6_K>(product);
  }
}

void panel_product(const PanelProduct& product) {
  if (product.tile_rows != kTallTileRows) return kQuantized.panel_product(product);
  PanelProduct part = product;
  for (int64_t p = 0; p < product.num_panels; ++p) {
    one_panel(part);
    part.ahead_bytes = 0;
    part.panels += quantized_panel_bytes(product.format, product.k);
    part.y = static_cast<std::byte*>(part.y) + kQuantPanelColumns * (product.bf16 ? 2 : 4);
  }
}

// Six rows are one tile of vpdpbusd; seven cost it more than this does.
int64_t tile_rows(int64_t remaining) { return remaining > kMaxTileRows ? kTallTileRows : quantized_tile_rows(remaining); }

}  // namespace

QuantizedKernels quantized_kernels_amx_native() {
  QuantizedKernels kernels = kQuantized;
  kernels.panel_product = panel_product;
  kernels.tile_rows = tile_rows;
  kernels.begin_thread = begin_thread;
  kernels.end_thread = end_thread;
  return kernels;
}

}  // namespace orrery
