// Stop strings are found wherever token boundaries fall, never leak, and hold back only what could still become one: random texts cut at
// random places against a search over the whole text.
#include "serve/chat/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"

namespace orrery {
namespace {

TEST(StopMatcher, HoldsBackOnlyPrefixesOfStops) {
  StopMatcher matcher({"END", "\n\n"});
  EXPECT_EQ(matcher.push("abc E"), "abc ");
  EXPECT_EQ(matcher.push("N"), "");
  EXPECT_EQ(matcher.push("x"), "ENx");
  EXPECT_EQ(matcher.push("\n"), "");
  EXPECT_EQ(matcher.push("\nmore"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.stop_index(), 1);
  EXPECT_EQ(matcher.push("ignored"), "");
  StopMatcher open({"END"});
  EXPECT_EQ(open.push("xEN"), "x");
  EXPECT_EQ(open.finish(), "EN");
  StopMatcher both({"ab", "abc"});
  EXPECT_EQ(both.push("xabcd"), "x");
  StopMatcher included({"b"}, true);
  EXPECT_EQ(included.push("abc"), "ab");
  EXPECT_THROW(StopMatcher({""}), Error);
}

TEST(StopMatcher, EqualsASearchOverTheWholeText) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 3000; ++round) {
    const auto word = [&](size_t most) {
      std::string text;
      for (size_t i = 0, n = 1 + random() % most; i < n; ++i) text += static_cast<char>('a' + random() % 2);
      return text;
    };
    std::vector<std::string> stops;
    for (uint64_t i = 0, n = random() % 4; i < n; ++i) stops.push_back(word(6));
    const std::string text = word(40);
    size_t end = std::string::npos, begin = text.size();
    for (const std::string& stop : stops) {
      const size_t at = text.find(stop);
      if (at == std::string::npos) continue;
      if (at + stop.size() < end || (at + stop.size() == end && at < begin)) {
        end = at + stop.size();
        begin = at;
      }
    }
    StopMatcher matcher(stops);
    std::string out;
    for (size_t at = 0; at < text.size() && !matcher.stopped();) {
      const size_t length = 1 + random() % 5;
      out += matcher.push(std::string_view(text).substr(at, length));
      at += length;
    }
    EXPECT_EQ(matcher.stopped(), end != std::string::npos);
    if (!matcher.stopped()) out += matcher.finish();
    EXPECT_EQ(out, text.substr(0, begin));
  }
}

}  // namespace
}  // namespace orrery
