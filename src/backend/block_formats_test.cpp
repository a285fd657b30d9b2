// Proves that every block type decodes to exactly the f32 bits of the `gguf` package's decoder, on random blocks, and that Q8_0
// encodes to its bytes. Goldens: tests/golden/make_block_goldens.py.
#include "backend/block_formats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>
#include <vector>

#include "base/error.h"
#include "base/golden.h"

namespace orrery {
namespace {

std::vector<std::byte> read_golden() {
  std::ifstream file(golden_path("block_formats.bin"), std::ios::binary);
  EXPECT_TRUE(file.good());
  std::vector<char> text((std::istreambuf_iterator<char>(file)), {});
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

TEST(BlockFormats, DecodeAndEncodeEqualTheReferenceBitForBit) {
  const std::vector<std::byte> golden = read_golden();
  std::set<uint32_t> seen;
  size_t at = 0;
  while (at < golden.size()) {
    uint32_t header[2];
    std::memcpy(header, golden.data() + at, 8);
    at += 8;
    const bool encode = (header[0] & 0x80000000u) != 0;
    const BlockTypeInfo* info = find_block_type(header[0] & 0x7FFFFFFFu);
    ASSERT_NE(info, nullptr);
    const int64_t count = header[1] * info->block_elements;
    const size_t raw_bytes = static_cast<size_t>(header[1] * info->block_bytes), value_bytes = static_cast<size_t>(count) * 4;
    const size_t blocks_at = encode ? at + value_bytes : at, values_at = encode ? at : at + raw_bytes;
    std::vector<float> values(static_cast<size_t>(count));
    std::memcpy(values.data(), golden.data() + values_at, value_bytes);
    if (encode) {
      std::vector<std::byte> made(raw_bytes);
      encode_q8_0(values.data(), count, made.data());
      EXPECT_EQ(std::memcmp(made.data(), golden.data() + blocks_at, raw_bytes), 0) << "encode " << info->name;
    } else {
      std::vector<float> made(static_cast<size_t>(count));
      decode_blocks(info->type, golden.data() + blocks_at, count, made.data());
      for (size_t i = 0; i < made.size(); ++i) {
        ASSERT_EQ(std::bit_cast<uint32_t>(made[i]), std::bit_cast<uint32_t>(values[i]))
            << info->name << " element " << i << ": " << made[i] << " wanted " << values[i];
      }
      seen.insert(header[0]);
    }
    at += raw_bytes + value_bytes;
  }
  // Everything that decodes is in the goldens, but the plain numbers.
  for (const BlockTypeInfo& info : all_block_types()) {
    const bool number = info.block_elements == 1 && info.type != BlockType::kF16 && info.type != BlockType::kBF16;
    if (info.decode != nullptr && !number) {
      EXPECT_TRUE(seen.contains(static_cast<uint32_t>(info.type))) << info.name;
    }
  }
}

TEST(BlockFormats, Q8EncodingOfOddNumbersIsDefined) {
  std::vector<float> values(32, 1.0f);
  values[3] = std::numeric_limits<float>::infinity();
  values[4] = std::nanf("");
  std::vector<std::byte> blocks(34);
  encode_q8_0(values.data(), 32, blocks.data());
}

TEST(BlockFormats, UnknownAndRemovedTypesAreAbsent) {
  for (const uint32_t type : {4u, 5u, 9u, 15u, 31u, 36u, 43u, 0xFFFFFFFFu}) EXPECT_EQ(find_block_type(type), nullptr) << type;
  std::vector<std::byte> block(66);
  std::vector<float> out(256);
  EXPECT_THROW(decode_blocks(BlockType::kIQ2_XXS, block.data(), 256, out.data()), Error);
}

}  // namespace
}  // namespace orrery
