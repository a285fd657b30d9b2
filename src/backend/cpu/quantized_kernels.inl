// Body of quantized_kernels_avx2.cpp and quantized_kernels_avx512.cpp. What bounds it: Zen 4 multiplies on two of its four vector ports, so of a
// block's 8 vpdpbusd, product of scales and FMA the dots can be 80 %; conversions, unpacking and loads fit into the other ports as long as a
// code is used for several rows and a row for two panels. Two panels by six rows reach 79 % of the dot products' peak from L2.
#include "backend/cpu/quantized_blocks.h"

namespace orrery::ORRERY_SIMD {
namespace {

// ---- kPanels panels, kRows rows of a tile ------------------------------------------------------------------------------------------

constexpr int log2_of(int offset) { return offset <= 1 ? 0 : 1 + log2_of(offset / 2); }

template <WeightFormat kFormat, int kPanels, int kRows>
struct Sums {
  I32x16 s[kPanels][kRows];

  // s += codes of groups kGroup .. kLast - 1 times the rows' numbers.
  template <int kGroup, int kLast, int kTileRows>
  ORRERY_MEMBER void add(const uint8_t* codes, int64_t panel_bytes, TileBlock<kTileRows> x) {
    if constexpr (kGroup < kLast) {
      constexpr int kBits = weight_format_info(kFormat).bits;
      Codes w[kPanels];
      for (int p = 0; p < kPanels; ++p) w[p] = unpack_group<kBits, kGroup>(codes + p * panel_bytes);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const Four q = x.group(kGroup, r);
        for (int p = 0; p < kPanels; ++p) s[p][r] = add_dot<kBits>(s[p][r], w[p], q);
      }
      add<kGroup + 1, kLast>(codes, panel_bytes, x);
    }
  }
  // s = -offset * sum of q. minus(row) gives -(sum of q).
  template <typename Minus>
  ORRERY_MEMBER void start(Minus&& minus) {
    constexpr WeightFormatInfo kInfo = weight_format_info(kFormat);
    constexpr bool kOffset = kInfo.offset != 0 && kDotsTakeTheOffset[kInfo.bits];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      I32x16 first = splat_i32(0);
      if constexpr (kOffset) first = shift_left<log2_of(kInfo.offset)>(minus(r));
      for (int p = 0; p < kPanels; ++p) s[p][r] = first;
    }
  }
};

/// Rows [first, first + kRows) of a tile of kTileRows.
template <WeightFormat kFormat, int kPanels, int kTileRows, int kRows>
void tile_rows(const PanelProduct& product, int64_t first) {
  constexpr WeightFormatInfo kInfo = weight_format_info(kFormat);
  constexpr bool kHalves = kInfo.scales == ScaleKind::kHalf;
  const int64_t num_blocks = product.k / kQuantBlock, panel_bytes = quantized_panel_bytes(kFormat, product.k);
  const auto* codes = reinterpret_cast<const uint8_t*>(product.panels);
  BlockScales<kFormat, kPanels> scales;
  scales.at = codes + quantized_code_bytes(kFormat, product.k);
  scales.panel_bytes = panel_bytes;
  // One row takes lines of 8-bit codes faster than a core can have requests under way: every second is left to the prefetchers.
  constexpr int64_t kStep = kRows == 1 && kInfo.bits == 8 ? 2 : 1;
  const auto* next = reinterpret_cast<const char*>(product.ahead);
  const int64_t lines_a_block = (product.ahead_bytes + 64 * num_blocks - 1) / (64 * num_blocks);
  F32x16 acc[kPanels][kRows];
  for (int p = 0; p < kPanels; ++p)
    for (int r = 0; r < kRows; ++r) acc[p][r] = zero();
  TileBlock<kTileRows> x{product.tile + first * 4};
  Sums<kFormat, kPanels, kRows> sums;
  for (int64_t block = 0; block < num_blocks; ++block) {
    for (int64_t line = 0; line < lines_a_block; line += kStep) __builtin_prefetch(next + 64 * line, 0, 2);
    next += 64 * lines_a_block;
    scales.next();
    if constexpr (!kHalves) {
      sums.start([&](int r) { return x.minus_sum(r); });
      sums.template add<0, 8>(codes, panel_bytes, x);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const F32x16 scale = x.scale(r);
        for (int p = 0; p < kPanels; ++p) acc[p][r] = fma(to_f32(sums.s[p][r]), scales.d[p][0] * scale, acc[p][r]);
        if constexpr (kInfo.has_min) {
          const F32x16 minus_min = x.minus_min(r);
          for (int p = 0; p < kPanels; ++p) acc[p][r] = fma(scales.min[p][0], minus_min, acc[p][r]);
        }
      }
    } else {
      const auto add_half = [&](int half, auto&& minus) {
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const F32x16 scale = x.scale(r);
          for (int p = 0; p < kPanels; ++p) acc[p][r] = fma(to_f32(sums.s[p][r]), scales.d[p][half] * scale, acc[p][r]);
          if constexpr (kInfo.has_min) {
            const F32x16 minus_min = scale * to_f32(minus(r));
            for (int p = 0; p < kPanels; ++p) acc[p][r] = fma(scales.min[p][half], minus_min, acc[p][r]);
          }
        }
      };
      const auto minus_first = [&](int r) { return x.minus_half(r); };
      const auto minus_second = [&](int r) { return x.minus_sum(r) - x.minus_half(r); };
      sums.start(minus_first);
      sums.template add<0, 4>(codes, panel_bytes, x);
      add_half(0, minus_first);
      sums.start(minus_second);
      sums.template add<4, 8>(codes, panel_bytes, x);
      add_half(1, minus_second);
    }
    codes += 64 * kInfo.bits;
    x.at += kTileRows * kQuantizedRowBytes;
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    if (first + r >= product.num_rows) return;
    for (int p = 0; p < kPanels; ++p) {
      const int64_t at = (first + r) * product.ldy + p * kQuantPanelColumns;
      if (product.bf16)
        store(static_cast<uint16_t*>(product.y) + at, acc[p][r]);
      else
        store(static_cast<float*>(product.y) + at, acc[p][r]);
    }
  }
}

template <WeightFormat kFormat, int kTileRows>
void tile_product(const PanelProduct& product) {
#if ORRERY_SIMD_AVX512
  if constexpr (kTileRows == 1)
    if (product.num_panels == kPanelsOfOneRow) return tile_rows<kFormat, kPanelsOfOneRow, 1, 1>(product, 0);
  if (product.num_panels == 2) return tile_rows<kFormat, 2, kTileRows, kTileRows>(product, 0);
  tile_rows<kFormat, 1, kTileRows, kTileRows>(product, 0);
#else
  // Sixteen registers hold the sums of one panel and two rows.
  constexpr int kRows = kTileRows < 2 ? 1 : 2;
  PanelProduct part = product;
  for (int64_t p = 0; p < product.num_panels; ++p) {
    for (int64_t first = 0; first < product.num_rows; first += kRows) {
      tile_rows<kFormat, 1, kTileRows, kRows>(part, first);
      part.ahead_bytes = 0;
    }
    part.panels += quantized_panel_bytes(kFormat, product.k);
    part.y = static_cast<std::byte*>(part.y) + kQuantPanelColumns * (product.bf16 ? 2 : 4);
  }
#endif
}

template <WeightFormat kFormat>
void product_of(const PanelProduct& product) {
  switch (product.tile_rows) {
    case 1: return tile_product<kFormat, 1>(product);
    case 2: return tile_product<kFormat, 2>(product);
    case 4: return tile_product<kFormat, 4>(product);
    default: return tile_product<kFormat, 6>(product);
  }
}

void panel_product(const PanelProduct& product) {
  switch (product.format) {
    case WeightFormat::kDense: return;
    case WeightFormat::kQ4_0: return product_of<WeightFormat::kQ4_0>(product);
    case WeightFormat::kQ4_1: return product_of<WeightFormat::kQ4_1>(product);
    case WeightFormat::kQ5_0: return product_of<WeightFormat::kQ5_0>(product);
    case WeightFormat::kQ5_1: return product_of<WeightFormat::kQ5_1>(product);
    case WeightFormat::kQ8_0: return product_of<WeightFormat::kQ8_0>(product);
    case WeightFormat::kQ2_K: return product_of<WeightFormat::kQ2_K>(product);
    case WeightFormat::kQ3_K: return product_of<WeightFormat::kQ3_K>(product);
    case WeightFormat::kQ4_K: return product_of<WeightFormat::kQ4_K>(product);
    case WeightFormat::kQ5_K: return product_of<WeightFormat::kQ5_K>(product);
    case WeightFormat::kQ6_K: return product_of<WeightFormat::kQ6_K>(product);
  }
}

// ---- rows of x ---------------------------------------------------------------------------------------------------------------------

/// 32 numbers as i8, and the sums of the first sixteen and of all.
ORRERY_INLINE void store_codes(int8_t* q, I32x16 a, I32x16 b, int32_t* first, int32_t* sum) {
#if ORRERY_SIMD_AVX512
  const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm512_cvtepi32_epi8(a.v)), _mm512_cvtepi32_epi8(b.v), 1);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), bytes);
  const __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
  const __m256i pairs = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4E));
  const __m256i all = _mm256_add_epi32(pairs, _mm256_shuffle_epi32(pairs, 0xB1));
  *first = _mm256_cvtsi256_si32(all);
  *sum = *first + _mm_cvtsi128_si32(_mm256_extracti128_si256(all, 1));
#else
  alignas(32) int32_t lanes[32];
  store(lanes, a);
  store(lanes + 16, b);
  *first = *sum = 0;
  for (int i = 0; i < 32; ++i) {
    q[i] = static_cast<int8_t>(lanes[i]);
    *sum += q[i];  // of what is stored: a lane of a row that is not finite may be any number
    if (i == 15) *first = *sum;
  }
#endif
}

template <typename T>
void quantize_row(const void* row_of_x, int64_t k, std::byte* tile, int64_t tile_rows, int64_t row) {
  const T* x = static_cast<const T*>(row_of_x);
  F32x16 poison = zero();  // 0 x is 0, and NaN where x is not finite
  std::byte* const place = tile + row * 4;
  const int64_t stride = tile_rows * 4;
  const bool tall = tile_rows == kTallTileRows;  // numbers of a row together
  const int64_t first_group = tall ? row * (kQuantBlock - 4) : 0, group_stride = tall ? 4 : stride;
  for (int64_t block = 0; block < k / kQuantBlock; ++block) {
    const F32x16 a = load(x + block * kQuantBlock), b = load(x + block * kQuantBlock + 16);
    poison = fma(b, zero(), fma(a, zero(), poison));
    const float amax = reduce_max(max(max(a, zero() - a), max(b, zero() - b)));
    const F32x16 inverse = splat(amax > 0 ? 127.0f / amax : 0.0f);
    alignas(32) int8_t q[32];
    int32_t first, sum;
    store_codes(q, to_i32(a * inverse), to_i32(b * inverse), &first, &sum);
    const float scale = amax / 127.0f, minus_min = -(scale * static_cast<float>(sum));
    const int32_t minus_sum = -sum, minus_half = -first;
    std::byte* to = place + block * tile_rows * kQuantizedRowBytes;
    for (int g = 0; g < 8; ++g) __builtin_memcpy(to + first_group + g * group_stride, q + 4 * g, 4);
    __builtin_memcpy(to + 8 * stride, &scale, 4);
    __builtin_memcpy(to + 9 * stride, &minus_sum, 4);
    __builtin_memcpy(to + 10 * stride, &minus_half, 4);
    __builtin_memcpy(to + 11 * stride, &minus_min, 4);
  }
  // Codes have no way to say NaN or infinity: one scale does, and with it every product of the row.
  const float not_a_number = __builtin_nanf("");
  if (k > 0 && !(reduce_add(poison) == 0)) __builtin_memcpy(place + 8 * stride, &not_a_number, 4);
}

}  // namespace

extern const QuantizedKernels kQuantized;
const QuantizedKernels kQuantized = {{quantize_row<float>, quantize_row<uint16_t>}, panel_product};

}  // namespace orrery::ORRERY_SIMD
