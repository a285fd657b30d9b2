// Proves that numbers written by people parse to exact values, or not at all, and that printed ones stay within three digits.
#include "base/units.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/nearest_name.h"

namespace orrery {
namespace {

TEST(Units, Counts) {
  EXPECT_EQ(parse_count("4k"), 4000);
  EXPECT_EQ(parse_count("4Ki"), 4096);
  EXPECT_EQ(parse_count("1.5B"), 1'500'000'000);
  EXPECT_EQ(parse_count("0.1M"), 100'000);
  EXPECT_EQ(parse_count("1_000"), 1000);
  EXPECT_EQ(parse_count("1e6"), 1'000'000);
  EXPECT_EQ(parse_count("9223372036854775807"), std::numeric_limits<int64_t>::max());
  for (const char* bad :
       {"", "k", "4x", "-4", "1.5", "4 kk", "9223372036854775808", "1e30", "nan", "4kB", "0x10", "1.2345k5"}) {
    EXPECT_FALSE(parse_count(bad)) << bad;
  }
}

TEST(Units, Bytes) {
  EXPECT_EQ(parse_bytes("1.5GiB"), 1'610'612'736);
  EXPECT_EQ(parse_bytes("2GB"), 2'000'000'000);
  EXPECT_EQ(parse_bytes("512"), 512);
  EXPECT_EQ(parse_bytes("512B"), 512);
  EXPECT_EQ(parse_bytes("2 Gi"), int64_t{2} << 30);
  EXPECT_FALSE(parse_bytes("80%"));
}

TEST(Units, Durations) {
  EXPECT_EQ(parse_duration_seconds("30m"), 1800);
  EXPECT_EQ(parse_duration_seconds("1h30m"), 5400);
  EXPECT_EQ(parse_duration_seconds("500ms"), 0.5);
  EXPECT_EQ(parse_duration_seconds("90"), 90);
  EXPECT_EQ(parse_duration_seconds("1.5d"), 129600);
  for (const char* bad : {"", "m", "1h30", "-1s", "3 fortnights"}) EXPECT_FALSE(parse_duration_seconds(bad)) << bad;
}

TEST(Units, Printing) {
  EXPECT_EQ(format_count(512), "512");
  EXPECT_EQ(format_count(11'000'000), "11.0 M");
  EXPECT_EQ(format_count(999'700), "1.00 M");
  EXPECT_EQ(format_bytes(512), "512 B");
  EXPECT_EQ(format_bytes(1.5 * (1 << 30)), "1.50 GiB");
  EXPECT_EQ(format_rate(1.234e12, "FLOP/s"), "1.23 TFLOP/s");
  EXPECT_EQ(format_duration(0.85), "850ms");
  EXPECT_EQ(format_duration(4.2), "4.2s");
  EXPECT_EQ(format_duration(190), "3m10s");
  EXPECT_EQ(format_duration(7500), "2h05m");
  EXPECT_EQ(format_duration(3 * 86400 + 4 * 3600), "3d04h");
}

TEST(NearestName, FindsTypingErrorsAndNothingElse) {
  constexpr std::string_view kNames[] = {"num_heads", "num_kv_heads", "hidden_size", "gpt2-124m"};
  EXPECT_EQ(nearest_name("n_head", kNames), "num_heads");
  EXPECT_EQ(nearest_name("hiden-size", kNames), "hidden_size");
  EXPECT_EQ(nearest_name("hiddne_size", kNames), "hidden_size");
  EXPECT_EQ(nearest_name("gpt2", kNames), "gpt2-124m");
  EXPECT_FALSE(nearest_name("learning_rate", kNames));
  EXPECT_FALSE(nearest_name("", kNames));
  EXPECT_EQ(edit_distance("ab", "ba"), 1u);
}

}  // namespace
}  // namespace orrery
