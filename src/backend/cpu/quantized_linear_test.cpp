// Quantized weights: rows of packed panels are the decoder's bits; products agree with f64 within the rounding of their sums; and a row's
// bits are the same for every number of rows, threads and instruction set (NUMERICS rule 13).
#include <gtest/gtest.h>

#include <random>

#include "backend/cpu/op_test_util.h"
#include "backend/cpu/quantized_kernels.h"
#include "backend/cpu/quantized_linear.h"
#include "backend/cpu/quantized_pack.h"

namespace orrery {

QuantizedKernels quantized_kernels_amx_in_software();  // quantized_amx_software_test.cpp

namespace test {
namespace {

constexpr BlockType kTypes[] = {BlockType::kQ4_0, BlockType::kQ4_1, BlockType::kQ5_0, BlockType::kQ5_1, BlockType::kQ8_0,
                                BlockType::kQ2_K, BlockType::kQ3_K, BlockType::kQ4_K, BlockType::kQ5_K, BlockType::kQ6_K};

/// Where the halves of a block lie, and which bytes are its codes.
struct Layout {
  std::vector<int> halves;
  int codes_begin, codes_end;
};
Layout layout_of(BlockType type) {
  switch (type) {
    case BlockType::kQ4_0: return {{0}, 2, 18};
    case BlockType::kQ4_1: return {{0, 2}, 4, 20};
    case BlockType::kQ5_0: return {{0}, 2, 22};
    case BlockType::kQ5_1: return {{0, 2}, 4, 24};
    case BlockType::kQ8_0: return {{0}, 2, 34};
    case BlockType::kQ2_K: return {{80, 82}, 16, 80};
    case BlockType::kQ3_K: return {{108}, 0, 96};
    case BlockType::kQ4_K: return {{0, 2}, 16, 144};
    case BlockType::kQ5_K: return {{0, 2}, 16, 176};
    case BlockType::kQ6_K: return {{208}, 0, 192};
    default: ADD_FAILURE(); return {};
  }
}

/// A weight of random blocks with ordinary scales.
struct Weight {
  BlockType type;
  WeightFormat format;
  int64_t n, k, row_bytes;
  std::vector<std::byte> blocks;

  Weight(BlockType block_type, int64_t rows, int64_t columns, unsigned seed) : type(block_type), format(*weight_format_of(block_type)), n(rows), k(columns), row_bytes(block_bytes(block_type, columns)) {
    std::mt19937 random(seed);
    blocks.resize(static_cast<size_t>(n * row_bytes));
    for (std::byte& byte : blocks) byte = static_cast<std::byte>(random());
    const int64_t size = block_type_info(type).block_bytes;
    for (size_t at = 0; at < blocks.size(); at += static_cast<size_t>(size))
      for (int half : layout_of(type).halves) {
        const uint16_t bits = f32_to_f16(0.001f + 0.0001f * static_cast<float>(random() % 100));
        std::memcpy(blocks.data() + at + half, &bits, 2);
      }
  }
  std::vector<float> decoded() const { return decode(blocks); }
  /// What is left of each number when its code is 0: the minimum, for formats with one.
  std::vector<float> minima() const {
    std::vector<std::byte> empty = blocks;
    const Layout layout = layout_of(type);
    const int64_t size = block_type_info(type).block_bytes;
    for (size_t at = 0; at < empty.size(); at += static_cast<size_t>(size))
      std::fill(empty.begin() + static_cast<int64_t>(at) + layout.codes_begin, empty.begin() + static_cast<int64_t>(at) + layout.codes_end, std::byte{0});
    return decode(empty);
  }
  void pack_to(std::byte* panels) const {
    for (int64_t row = 0; row < n; row += kQuantPanelColumns)
      pack_quantized_panel(format, blocks.data() + row * row_bytes, row_bytes, std::min(kQuantPanelColumns, n - row), k,
                           panels + row / kQuantPanelColumns * quantized_panel_bytes(format, k));
  }
  int64_t bytes() const { return quantized_weight_bytes(format, n, k); }

 private:
  std::vector<float> decode(const std::vector<std::byte>& from) const {
    std::vector<float> values(static_cast<size_t>(n * k));
    decode_blocks(type, from.data(), n * k, values.data());
    return values;
  }
};

Tensor packed_tensor(const std::vector<Weight>& weights, PackedLinearAttributes& attributes) {
  int64_t bytes = 0;
  for (const Weight& weight : weights) bytes += weight.bytes();
  Tensor packed(DType::kI32, {bytes / 4});
  std::byte* at = packed.data();
  for (const Weight& weight : weights) {
    weight.pack_to(at);
    at += weight.bytes();
    attributes.segments.push_back({weight.format, weight.n});
    attributes.num_columns += weight.n;
    attributes.depth = weight.k;
  }
  return packed;
}
TensorView bytes_view(const Tensor& packed) {
  TensorView view = packed.view();
  view.dtype = DType::kU8;
  view.dims[0] *= 4;
  return view;
}

class QuantizedLinear : public testing::TestWithParam<BlockType> {};

TEST_P(QuantizedLinear, RowsOfPanelsAreTheDecodersBits) {
  const Weight weight(GetParam(), 21, 512, 1);
  PackedLinearAttributes attributes;
  const Tensor packed = packed_tensor({weight}, attributes);
  const std::vector<float> wanted = weight.decoded();
  const Tensor ids = Tensor::ids({20, 0, 7, 20});
  for (const Machine& machine : machines()) {
    Tensor y(DType::kF32, {4, 512});
    run_views(OpKind::kEmbeddingPacked, DType::kF32, machine, attributes, {ids.view(), bytes_view(packed)}, {y.view()});
    for (int64_t i = 0; i < 4; ++i)
      ASSERT_EQ(0, std::memcmp(y.as<float>() + i * 512, wanted.data() + ids.as<int32_t>()[i] * 512, 512 * 4)) << "row " << i;
  }
}

TEST_P(QuantizedLinear, ProductIsWithinItsRoundingOfF64) {
  // x is quantized by the kernel's rule; given that, y differs from the f64 sum by the f32 roundings: of each fma onto a partial sum
  // below S = sum of |d code q| + |m q|, and of the factors d and scale (at most 4 a term).
  const int64_t n = 37, k = 768, m = 3;
  const Weight weight(GetParam(), n, k, 2);
  PackedLinearAttributes attributes;
  const Tensor packed = packed_tensor({weight}, attributes);
  const Tensor x = Tensor::random(DType::kF32, {m, k}, 3);
  Tensor y(DType::kF32, {m, n});
  run_views(OpKind::kLinearPacked, DType::kF32, machines()[0], attributes, {x.view(), bytes_view(packed)}, {y.view()});
  const std::vector<float> w = weight.decoded(), least = weight.minima();
  const bool has_min = weight_format_info(weight.format).has_min;
  const double roundings = static_cast<double>(4 * k / 32 + 4);
  for (int64_t i = 0; i < m; ++i) {
    std::vector<double> xq(k);
    for (int64_t block = 0; block < k; block += 32) {
      float amax = 0;
      for (int64_t j = 0; j < 32; ++j) amax = std::max(amax, std::fabs(x.as<float>()[i * k + block + j]));
      const float inverse = 127.0f / amax, scale = amax / 127.0f;
      for (int64_t j = 0; j < 32; ++j) xq[block + j] = static_cast<double>(std::nearbyint(x.as<float>()[i * k + block + j] * inverse)) * scale;
    }
    for (int64_t c = 0; c < n; ++c) {
      double sum = 0, size = 0;
      for (int64_t j = 0; j < k; ++j) {
        const double value = w[c * k + j], minimum = has_min ? least[c * k + j] : 0.0;
        sum += value * xq[j];
        size += (std::fabs(value - minimum) + std::fabs(minimum)) * std::fabs(xq[j]);
      }
      ASSERT_NEAR(y.get(i * n + c), sum, roundings * std::ldexp(size, -24)) << block_type_name(GetParam()) << " " << i << ", " << c;
    }
  }
}

TEST_P(QuantizedLinear, BitsDoNotDependOnRowsThreadsOrInstructionSet) {
  // Two segments, the first not whole panels, as a fused q, k, v has, the second with more panels than one row takes at once; with a bias
  // and without; every way in which rows are cut.
  PackedLinearAttributes attributes;
  const Tensor packed = packed_tensor({Weight(GetParam(), 23, 256, 4), Weight(GetParam(), 112, 256, 5), Weight(BlockType::kQ8_0, 16, 256, 6)}, attributes);
  std::vector<Machine> all = machines();
  if (cpu_features().avx512) all.push_back({VectorIsa::kAvx512, 2, Arithmetic::kFma1, /*native_arithmetic=*/true});  // AMX where it is
  for (DType dtype : {DType::kF32, DType::kBF16})
    for (bool with_bias : {false, true}) {
      const int64_t most = 61, n = 151;
      const Tensor x = Tensor::random(dtype, {most, 256}, 6), bias = Tensor::random(dtype, {n}, 7);
      const auto inputs = [&](int64_t begin, int64_t end) {
        std::vector<TensorView> views = {x.rows(begin, end), bytes_view(packed)};
        if (with_bias) views.push_back(bias.view());
        return views;
      };
      Tensor alone(DType::kF32, {most, n});
      for (int64_t row = 0; row < most; ++row) run_views(OpKind::kLinearPacked, dtype, machines()[0], attributes, inputs(row, row + 1), {alone.rows(row, row + 1)});
      for (const Machine& machine : all)
        for (int64_t m : {1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 33, 48, 61}) {
          Tensor y(DType::kF32, {most, n});
          run_views(OpKind::kLinearPacked, dtype, machine, attributes, inputs(0, m), {y.rows(0, m)});
          ASSERT_EQ(0, std::memcmp(y.data(), alone.data(), static_cast<size_t>(m * n * 4))) << m << " rows, " << machine.num_threads << " threads";
          ASSERT_TRUE(y.guard_intact());
        }
    }
}

/// The op by these kernels, on two threads.
void run_by(const QuantizedKernels& kernels, VectorIsa isa, const PackedLinearAttributes& attributes, const std::vector<TensorView>& inputs, const TensorView& y) {
  const Attributes attribute = attributes;
  OpCall call{OpKind::kLinearPacked, inputs, {&y, 1}, &attribute, nullptr, {}};
  const int64_t bytes = quantized_linear_workspace_bytes({isa, Arithmetic::kFma1, true, 2}, inputs[0].rows(), attributes.depth);
  std::vector<uint8_t> memory(bytes + 64, 0xFF);
  call.workspace = {reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64), static_cast<size_t>(bytes)};
  quantized_linear_by(kernels, {&pool_of(2), isa, Arithmetic::kFma1, true}, call);
}

TEST_P(QuantizedLinear, UnpackedCodesGiveTheBitsOfPackedOnes) {
  // Whatever this processor is better at; from 13 rows on, with every number of rows that may be left for the last tile.
  const int64_t k = 512, most = 41;
  for (VectorIsa isa : {VectorIsa::kAvx2, VectorIsa::kAvx512}) {
    if (isa == VectorIsa::kAvx512 && !cpu_features().avx512) continue;
    QuantizedKernels packed_codes = quantized_kernels({nullptr, isa, Arithmetic::kFma1, false}), unpacked_codes = packed_codes;
    packed_codes.unpacks = false;
    unpacked_codes.unpacks = true;
    for (const auto& [n, with_bias] : {std::pair<int64_t, bool>{48, false}, {71, true}}) {
      PackedLinearAttributes attributes;
      const Tensor packed = packed_tensor({Weight(GetParam(), n, k, 8)}, attributes);
      for (DType dtype : {DType::kF32, DType::kBF16}) {
        const Tensor x = Tensor::random(dtype, {most, k}, 9), bias = Tensor::random(dtype, {n}, 10);
        for (int64_t m : {12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 41}) {
          std::vector<TensorView> inputs = {x.rows(0, m), bytes_view(packed)};
          if (with_bias) inputs.push_back(bias.view());
          Tensor wanted(dtype, {most, n}), y(dtype, {most, n});
          run_by(packed_codes, isa, attributes, inputs, wanted.rows(0, m));
          run_by(unpacked_codes, isa, attributes, inputs, y.rows(0, m));
          ASSERT_TRUE(y.same_bits(wanted)) << m << " rows of " << dtype_name(dtype) << " by " << n;
        }
      }
    }
  }
}

TEST_P(QuantizedLinear, TilesOfAmxInSoftwareGiveTheBitsOfVpdpbusd) {
  // Every way in which tall tiles are cut and mixed with others, whole panels that are stored at once and others with a bias; bf16 and f32.
  if (!cpu_features().avx512) GTEST_SKIP() << "needs AVX-512";
  const QuantizedKernels software = quantized_kernels_amx_in_software();
  const int64_t k = 512, most = 100;
  for (const auto& [n, with_bias] : {std::pair<int64_t, bool>{48, false}, {71, true}}) {
    PackedLinearAttributes attributes;
    const Tensor packed = packed_tensor({Weight(GetParam(), n, k, 8)}, attributes);
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      const Tensor x = Tensor::random(dtype, {most, k}, 9), bias = Tensor::random(dtype, {n}, 10);
      for (int64_t m : {1, 6, 7, 8, 9, 15, 16, 17, 22, 23, 32, 40, 48, 55, 100}) {
        std::vector<TensorView> inputs = {x.rows(0, m), bytes_view(packed)};
        if (with_bias) inputs.push_back(bias.view());
        Tensor wanted(dtype, {most, n}), y(dtype, {most, n});
        run_views(OpKind::kLinearPacked, dtype, {VectorIsa::kAvx512, 2, Arithmetic::kFma1, false}, attributes, inputs, {wanted.rows(0, m)});
        run_by(software, VectorIsa::kAvx512, attributes, inputs, y.rows(0, m));
        ASSERT_TRUE(y.same_bits(wanted)) << m << " rows of " << dtype_name(dtype) << " by " << n;
        ASSERT_TRUE(y.guard_intact());
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, QuantizedLinear, testing::ValuesIn(kTypes), [](const auto& test) { return std::string(block_type_name(test.param)); });

TEST(QuantizedLinear, AWorkspaceServesFewerRowsToo) {
  // A serving plan lays out memory for its largest step, and most steps are smaller.
  for (VectorIsa isa : {VectorIsa::kAvx2, VectorIsa::kAvx512})
    for (int threads : {1, 2, 5})
      for (int64_t m = 1; m < 80; ++m) {
        const DeviceSpec device{isa, Arithmetic::kFma1, true, threads};
        ASSERT_GE(quantized_linear_workspace_bytes(device, m + 1, 512), quantized_linear_workspace_bytes(device, m, 512)) << m << " rows, " << threads << " threads";
      }
}

TEST(QuantizedLinear, ExtremesStayExact) {
  // Codes and activations of the largest magnitude in every place: the 8-bit sums of AVX2 reach 32,512 of 32,767.
  const int64_t k = 64;
  std::vector<std::byte> blocks(68, std::byte{0x80});  // every weight -128
  const uint16_t one = f32_to_f16(1.0f);
  std::memcpy(blocks.data(), &one, 2);
  std::memcpy(blocks.data() + 34, &one, 2);
  Tensor packed(DType::kI32, {quantized_weight_bytes(WeightFormat::kQ8_0, 1, k) / 4});
  pack_quantized_panel(WeightFormat::kQ8_0, blocks.data(), 68, 1, k, packed.data());
  const PackedLinearAttributes attributes{1, k, {{WeightFormat::kQ8_0, 1}}};
  const Tensor x = Tensor::filled(DType::kF32, {1, k}, -127.0);
  for (const Machine& machine : machines()) {
    Tensor y(DType::kF32, {1, 1});
    run_views(OpKind::kLinearPacked, DType::kF32, machine, attributes, {x.view(), bytes_view(packed)}, {y.view()});
    EXPECT_EQ(y.get(0), 128.0 * 127.0 * 64);
  }
}

// Codes cannot say it, so a row with a NaN or an infinity anywhere makes every output NaN, and the other rows stay what they were.
TEST(QuantizedLinear, WhatIsNotFiniteIsNotLost) {
  const int64_t k = 64;
  std::vector<std::byte> blocks(68, std::byte{0x01});
  const uint16_t one = f32_to_f16(1.0f);
  std::memcpy(blocks.data(), &one, 2);
  std::memcpy(blocks.data() + 34, &one, 2);
  Tensor packed(DType::kI32, {quantized_weight_bytes(WeightFormat::kQ8_0, 1, k) / 4});
  pack_quantized_panel(WeightFormat::kQ8_0, blocks.data(), 68, 1, k, packed.data());
  const PackedLinearAttributes attributes{1, k, {{WeightFormat::kQ8_0, 1}}};
  for (const Machine& machine : machines())
    for (const DType dtype : {DType::kF32, DType::kBF16})
      for (const float bad : {std::nanf(""), INFINITY, -INFINITY})
        for (const int64_t place : {0, 17, 63}) {
          Tensor x = Tensor::filled(dtype, {2, k}, 127.0);
          x.set(place, bad);
          Tensor y(DType::kF32, {2, 1});
          run_views(OpKind::kLinearPacked, dtype, machine, attributes, {x.view(), bytes_view(packed)}, {y.view()});
          EXPECT_TRUE(std::isnan(y.get(0))) << bad << " at " << place;
          EXPECT_EQ(y.get(1), 127.0 * 64);
        }
}

// Every byte of a row's place in a tile against the rule, number by number, for every number of blocks in which kernels take them together.
TEST(QuantizedLinear, RowsAreQuantizedByTheRule) {
  ThreadPool pool(1);
  set_floating_point_mode();
  for (const Machine& machine : machines()) {
    const QuantizedKernels& kernels = quantized_kernels({&pool, machine.isa, Arithmetic::kFma1, false});
    for (const DType dtype : {DType::kF32, DType::kBF16})
      for (int64_t blocks = 1; blocks <= 33; ++blocks)
        for (const int64_t tile_rows : {int64_t{1}, int64_t{4}, kMaxTileRows, kTallTileRows}) {
          const int64_t k = 32 * blocks, row = tile_rows - 1, stride = 4 * tile_rows;
          Tensor x = Tensor::random(dtype, {1, k}, static_cast<uint64_t>(blocks));
          for (int64_t i = 0; i < 32; ++i) x.set((blocks / 2) * 32 + i, i == 5 ? 1e-40 : 0.0);  // a subnormal is a zero
          std::vector<std::byte> tile(static_cast<size_t>(blocks * tile_rows * kQuantizedRowBytes));
          kernels.quantize_row[dtype == DType::kBF16](x.data(), k, tile.data(), tile_rows, row);
          for (int64_t b = 0; b < blocks; ++b) {
            const std::byte* at = tile.data() + b * tile_rows * kQuantizedRowBytes;
            float amax = 0;
            for (int64_t i = 0; i < 32; ++i) amax = std::max(amax, std::fabs(static_cast<float>(x.get(b * 32 + i))));
            if (amax < std::numeric_limits<float>::min()) amax = 0;
            const float inverse = amax > 0 ? 127.0f / amax : 0.0f, scale = amax / 127.0f;
            int32_t sum = 0, half = 0;
            for (int64_t i = 0; i < 32; ++i) {
              const auto code = static_cast<int32_t>(std::nearbyint(static_cast<float>(x.get(b * 32 + i)) * inverse));
              const int64_t place = tile_rows == kTallTileRows ? row * 32 + i : i / 4 * stride + row * 4 + i % 4;
              ASSERT_EQ(static_cast<int8_t>(at[place]), code) << blocks << " blocks, " << tile_rows << " rows: " << b << ", " << i;
              sum += code;
              if (i == 15) half = sum;
            }
            const auto beside = [&]<typename T>(int64_t field, T) {
              T value;
              std::memcpy(&value, at + (8 + field) * stride + row * 4, 4);
              return value;
            };
            ASSERT_EQ(beside(0, 0.0f), scale) << blocks << ", " << b;
            ASSERT_EQ(beside(1, 0), -sum) << blocks << ", " << b;
            ASSERT_EQ(beside(2, 0), -half) << blocks << ", " << b;
            ASSERT_EQ(beside(3, 0.0f), -(scale * static_cast<float>(sum))) << blocks << ", " << b;
          }
        }
  }
}

}  // namespace
}  // namespace test
}  // namespace orrery
