// Body of quantized_kernels_avx2.cpp and quantized_kernels_avx512.cpp. What bounds it: Zen 4 multiplies on two of its four vector ports, so of a
// block's 8 vpdpbusd, product of scales and FMA the dots can be 80 %; conversions, unpacking and loads fit into the other ports as long as a
// code is used for several rows and a row for two panels. Two panels by six rows reach 79 % of the dot products' peak from L2.
#include "backend/cpu/quantized_blocks.h"
#include "backend/cpu/transpose.h"

namespace orrery::ORRERY_SIMD {
namespace {

// ---- kPanels panels, kRows rows of a tile ------------------------------------------------------------------------------------------

constexpr int log2_of(int offset) { return offset <= 1 ? 0 : 1 + log2_of(offset / 2); }

template <WeightFormat kFormat, bool kUnpacked, int kPanels, int kRows>
struct Sums {
  I32x16 s[kPanels][kRows];

  // s += codes of groups kGroup .. kLast - 1 times the rows' numbers.
  template <int kGroup, int kLast, int kTileRows>
  ORRERY_MEMBER void add(const uint8_t* codes, int64_t panel_bytes, TileBlock<kTileRows> x) {
    if constexpr (kGroup < kLast) {
      constexpr int kBits = weight_format_info(kFormat).bits;
      Codes w[kPanels];
      for (int p = 0; p < kPanels; ++p) w[p] = unpack_group<kUnpacked ? 8 : kBits, kGroup>(codes + p * panel_bytes);
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

/// Rows [first, first + kRows) of a tile of kTileRows. kUnpacked: by product.codes.
template <WeightFormat kFormat, int kPanels, int kTileRows, int kRows, bool kUnpacked = false>
void tile_rows(const PanelProduct& product, int64_t first) {
  constexpr WeightFormatInfo kInfo = weight_format_info(kFormat);
  constexpr bool kHalves = kInfo.scales == ScaleKind::kHalf;
  const int64_t num_blocks = product.k / kQuantBlock, panel_bytes = quantized_panel_bytes(kFormat, product.k);
  const auto* codes = reinterpret_cast<const uint8_t*>(kUnpacked ? product.codes : product.panels);
  const int64_t codes_bytes = kUnpacked ? quantized_unpacked_bytes(product.k) : panel_bytes;  // from panel to panel
  BlockScales<kFormat, kPanels> scales;
  scales.at = reinterpret_cast<const uint8_t*>(product.panels) + quantized_code_bytes(kFormat, product.k);
  scales.panel_bytes = panel_bytes;
  // One row takes lines of 8-bit codes faster than a core can have requests under way: every second is left to the prefetchers.
  constexpr int64_t kStep = kRows == 1 && kInfo.bits == 8 ? 2 : 1;
  const auto* next = reinterpret_cast<const char*>(product.ahead);
  const int64_t lines_a_block = (product.ahead_bytes + 64 * num_blocks - 1) / (64 * num_blocks);
  // What will be written was read by other cores: it is asked for while there is time.
  for (int r = 0; r < kRows; ++r)
    if (first + r < product.num_rows) __builtin_prefetch(static_cast<std::byte*>(product.y) + (first + r) * product.ldy * (product.bf16 ? 2 : 4), 1, 3);
  F32x16 acc[kPanels][kRows];
  for (int p = 0; p < kPanels; ++p)
    for (int r = 0; r < kRows; ++r) acc[p][r] = zero();
  TileBlock<kTileRows> x{product.tile + first * 4};
  Sums<kFormat, kUnpacked, kPanels, kRows> sums;
  for (int64_t block = 0; block < num_blocks; ++block) {
    for (int64_t line = 0; line < lines_a_block; line += kStep) __builtin_prefetch(next + 64 * line, 0, 2);
    next += 64 * lines_a_block;
    scales.next();
    if constexpr (!kHalves) {
      sums.start([&](int r) { return x.minus_sum(r); });
      sums.template add<0, 8>(codes, codes_bytes, x);
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
      sums.template add<0, 4>(codes, codes_bytes, x);
      add_half(0, minus_first);
      sums.start(minus_second);
      sums.template add<4, 8>(codes, codes_bytes, x);
      add_half(1, minus_second);
    }
    codes += 64 * (kUnpacked ? 8 : kInfo.bits);
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
  if constexpr (kTileRows >= 4 && weight_format_info(kFormat).bits < 8)
    if (product.codes != nullptr && product.num_panels == 2) return tile_rows<kFormat, 2, kTileRows, kTileRows, true>(product, 0);
  if (product.num_panels == 2) return tile_rows<kFormat, 2, kTileRows, kTileRows>(product, 0);
  tile_rows<kFormat, 1, kTileRows, kTileRows>(product, 0);
#else
  // Sixteen registers hold the sums of one panel and two rows.
  constexpr int kRows = kTileRows < 2 ? 1 : 2;
  PanelProduct part = product;
  for (int64_t p = 0; p < product.num_panels; ++p) {
    for (int64_t first = 0; first < product.num_rows; first += kRows) {
      if constexpr (kRows == 2 && weight_format_info(kFormat).bits < 8) {
        if (part.codes != nullptr)
          tile_rows<kFormat, 1, kTileRows, kRows, true>(part, first);
        else
          tile_rows<kFormat, 1, kTileRows, kRows>(part, first);
      } else {
        tile_rows<kFormat, 1, kTileRows, kRows>(part, first);
      }
      part.ahead_bytes = 0;
    }
    part.panels += quantized_panel_bytes(kFormat, product.k);
    if (part.codes != nullptr) part.codes += quantized_unpacked_bytes(product.k);
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

template <int kBits, int kGroup = 0>
ORRERY_INLINE void unpack_groups(const uint8_t* block, uint8_t* out) {
  store_codes(out + 64 * kGroup, unpack_group<kBits, kGroup>(block));
  if constexpr (kGroup < 7) unpack_groups<kBits, kGroup + 1>(block, out);
}

void unpack(const PanelProduct& product, std::byte* unpacked) {
  const int64_t num_blocks = product.k / kQuantBlock;
  const int bits = weight_format_info(product.format).bits;
  auto* out = reinterpret_cast<uint8_t*>(unpacked);
  for (int64_t p = 0; p < product.num_panels; ++p) {
    const auto* block = reinterpret_cast<const uint8_t*>(product.panels) + p * quantized_panel_bytes(product.format, product.k);
    for (int64_t b = 0; b < num_blocks; ++b, block += 64 * bits, out += 64 * 8) switch (bits) {
        case 4: unpack_groups<4>(block, out); break;
        case 5: unpack_groups<5>(block, out); break;
        case 6: unpack_groups<6>(block, out); break;
        default: unpack_groups<8>(block, out); break;
      }
  }
}

// ---- rows of x ---------------------------------------------------------------------------------------------------------------------

ORRERY_INLINE __m256i bytes_of(I32x16 a, I32x16 b) {
#if ORRERY_SIMD_AVX512
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm512_cvtepi32_epi8(a.v)), _mm512_cvtepi32_epi8(b.v), 1);
#else
  const __m256i first = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xD8), second = _mm256_permute4x64_epi64(_mm256_packs_epi32(b.lo, b.hi), 0xD8);
  return _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xD8);
#endif
}
/// Sums of four bytes each.
ORRERY_INLINE __m256i fours_of(__m256i bytes) {
#if ORRERY_SIMD_AVX512
  return _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
#else
  return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), _mm256_set1_epi16(1));
#endif
}

/// The largest magnitude of each of `count` blocks, up to 16, zeros behind them. `finite` becomes false with a number that is not, whose block has any.
template <typename T>
ORRERY_INLINE F32x16 block_maxima(const T* x, int64_t count, bool& finite) {
  F32x16 most[16], poison = zero();
#pragma GCC unroll 16
  for (int64_t b = 0; b < 16; ++b) {
    most[b] = zero();
    if (b >= count) continue;
    const F32x16 first = load(x + b * kQuantBlock), second = load(x + b * kQuantBlock + 16);
    poison = fma(second, zero(), fma(first, zero(), poison));  // 0 x is 0, and NaN where x is not finite
    most[b] = max(max(first, zero() - first), max(second, zero() - second));
  }
  transpose_16x16(most);
  F32x16 amax = zero();
  for (const F32x16& lanes : most) amax = max(lanes, amax);
  finite = finite && reduce_add(poison) == 0;
  return amax;
}
#if ORRERY_SIMD_AVX512
// Eight blocks: what two vectors interleave, the larger of each pair, until a lane of 128 bits has one number of each.
ORRERY_INLINE __m128i maxima_of_8(const uint16_t* x, int64_t count) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  __m512i most[8];
#pragma GCC unroll 8
  for (int64_t b = 0; b < 8; ++b) most[b] = b < count ? _mm512_and_si512(_mm512_loadu_si512(x + b * kQuantBlock), magnitude) : _mm512_setzero_si512();
#pragma GCC unroll 3
  for (int half = 4; half > 0; half /= 2)
#pragma GCC unroll 4
    for (int i = 0; i < half; ++i) most[i] = _mm512_max_epu16(_mm512_unpacklo_epi16(most[i], most[i + half]), _mm512_unpackhi_epi16(most[i], most[i + half]));
  const __m256i halves = _mm256_max_epu16(_mm512_castsi512_si256(most[0]), _mm512_extracti64x4_epi64(most[0], 1));
  return _mm_max_epu16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}
// Magnitudes of bf16 have the order of their bits.
ORRERY_INLINE F32x16 block_maxima(const uint16_t* x, int64_t count, bool& finite) {
  const __m128i second = count > 8 ? maxima_of_8(x + 8 * kQuantBlock, count - 8) : _mm_setzero_si128();
  const __m256i bits = _mm256_inserti128_si256(_mm256_castsi128_si256(maxima_of_8(x, count)), second, 1);
  finite = finite && _mm256_cmpge_epu16_mask(bits, _mm256_set1_epi16(0x7f80)) == 0;
  return max(F32x16{_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))}, zero());  // subnormals are zeros
}
#endif

/// Sixteen blocks of a row, lanes being blocks where a step of one number waits for the one before: the reduction over a block and its two divisions.
struct BlockRun {
  static constexpr int64_t kBlocks = 16;
  alignas(64) float scale[kBlocks], minus_min[kBlocks];
  alignas(64) int32_t minus_sum[kBlocks], minus_half[kBlocks];
  alignas(64) int8_t codes[kBlocks][kQuantBlock];

  /// The first `count` blocks of x.
  template <typename T>
  ORRERY_MEMBER void quantize(const T* x, int64_t count, bool& finite) {
    const F32x16 amax = block_maxima(x, count, finite);
    alignas(64) float inverse[kBlocks];
    store(inverse, select(zero() < amax, splat(127.0f) / amax, zero()));
    const F32x16 scales = amax / splat(127.0f);
    store(scale, scales);
    alignas(64) int32_t first_sums[kBlocks] = {}, second_sums[kBlocks] = {};
    for (int64_t b = 0; b < count; b += 4) {
      __m256i fours[4];
      for (int64_t i = 0; i < 4; ++i) {
        const int64_t block = b + i < count ? b + i : count - 1;
        const F32x16 factor = splat(inverse[block]);
        const __m256i bytes = bytes_of(to_i32(load(x + block * kQuantBlock) * factor), to_i32(load(x + block * kQuantBlock + 16) * factor));
        _mm256_store_si256(reinterpret_cast<__m256i*>(codes[block]), bytes);
        fours[i] = fours_of(bytes);
      }
      const __m256i halves = _mm256_hadd_epi32(_mm256_hadd_epi32(fours[0], fours[1]), _mm256_hadd_epi32(fours[2], fours[3]));
      _mm_store_si128(reinterpret_cast<__m128i*>(first_sums + b), _mm256_castsi256_si128(halves));
      _mm_store_si128(reinterpret_cast<__m128i*>(second_sums + b), _mm256_extracti128_si256(halves, 1));
    }
    const I32x16 halves = load(first_sums), sums = halves + load(second_sums), none = splat_i32(0);
    store(minus_half, none - halves);
    store(minus_sum, none - sums);
    store(minus_min, zero() - scales * to_f32(sums));
  }
};

template <typename T>
void quantize_row(const void* row_of_x, int64_t k, std::byte* tile, int64_t tile_rows, int64_t row) {
  const T* x = static_cast<const T*>(row_of_x);
  bool finite = true;
  std::byte* const place = tile + row * 4;
  const int64_t stride = tile_rows * 4, num_blocks = k / kQuantBlock;
  // The numbers of a row together: one row alone, and a tall tile's.
  const bool together = tile_rows == 1 || tile_rows == kTallTileRows;
  BlockRun run;
  for (int64_t begin = 0; begin < num_blocks; begin += BlockRun::kBlocks) {
    const int64_t count = num_blocks - begin < BlockRun::kBlocks ? num_blocks - begin : BlockRun::kBlocks;
    run.quantize(x + begin * kQuantBlock, count, finite);
    for (int64_t b = 0; b < count; ++b) {
      std::byte* to = place + (begin + b) * tile_rows * kQuantizedRowBytes;
      if (together)
        __builtin_memcpy(to + row * (kQuantBlock - 4), run.codes[b], kQuantBlock);
      else
        for (int g = 0; g < 8; ++g) __builtin_memcpy(to + g * stride, run.codes[b] + 4 * g, 4);
      __builtin_memcpy(to + 8 * stride, run.scale + b, 4);
      __builtin_memcpy(to + 9 * stride, run.minus_sum + b, 4);
      __builtin_memcpy(to + 10 * stride, run.minus_half + b, 4);
      __builtin_memcpy(to + 11 * stride, run.minus_min + b, 4);
    }
  }
  // Codes have no way to say NaN or infinity: one scale does, and with it every product of the row.
  const float not_a_number = __builtin_nanf("");
  if (!finite) __builtin_memcpy(place + 8 * stride, &not_a_number, 4);
}

}  // namespace

extern const QuantizedKernels kQuantized;
const QuantizedKernels kQuantized = {.quantize_row = {quantize_row<float>, quantize_row<uint16_t>},
                                     .panel_product = panel_product,
                                     .unpack = unpack,
                                     .unpacks = !ORRERY_SIMD_AVX512};  // AVX2 multiplies two rows at a time, which would unpack anew each time

}  // namespace orrery::ORRERY_SIMD
