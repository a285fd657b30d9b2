// Proves both CRC-32C paths against the published check value and against each other at every length and split.
#include "base/crc32c.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace orrery {
namespace {

TEST(Crc32c, CheckValue) {
  const char text[] = "123456789";
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(text), 9);
  EXPECT_EQ(crc32c(0, bytes), 0xE3069283u);
  EXPECT_EQ(crc32c_portable(0, bytes), 0xE3069283u);
}

TEST(Crc32c, PathsAgreeAndContinue) {
  std::mt19937 random(7);
  std::vector<std::byte> data(300);
  for (std::byte& byte : data) byte = static_cast<std::byte>(random());
  for (size_t length = 0; length <= data.size(); ++length) {
    const std::span<const std::byte> all(data.data(), length);
    const uint32_t whole = crc32c(0, all);
    EXPECT_EQ(whole, crc32c_portable(0, all));
    const size_t split = length / 3;
    EXPECT_EQ(whole, crc32c(crc32c(0, all.first(split)), all.subspan(split)));
  }
}

}  // namespace
}  // namespace orrery
