// Proves that each hand-written splitter cuts as PCRE2 does with the pattern's own text, on random strings of the characters
// that decide: cases, marks, digits of other scripts, spaces, newlines, apostrophes.
#include "tokenizer/splitter.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tokenizer/regex.h"

namespace orrery {
namespace {

std::string random_text(std::mt19937_64* random) {
  static const std::vector<std::string> kParts = {
      "a", "Z", "x",  "s",  "S",      "t",      "LL",     "re",     "'", "'s", "'T",     "'Ve", "0", "12", "٣",
      "½", " ", "  ", "\t", "\n",     "\r\n",   "\u00a0", "\u3000", ".", "!?", "/",      "-",   "é", "É",  "ß",
      "я", "Я", "中", "ข",  "\u0301", "\u0e31", "ǅ",      "ʰ",      "ª", "👍",  "\u200d", "ſ",   "_"};
  std::string text;
  for (uint64_t n = (*random)() % 24; n > 0; --n) text += kParts[(*random)() % kParts.size()];
  return text;
}

class Splitter : public testing::TestWithParam<KnownSplit> {};

TEST_P(Splitter, CutsAsTheRegexDoes) {
  const Regex regex{std::string(split_pattern(GetParam()))};
  const PieceEnd piece_end = piece_end_function(GetParam());
  EXPECT_EQ(known_split(split_pattern(GetParam())), GetParam());
  std::mt19937_64 random(7);
  for (int round = 0; round < 20000; ++round) {
    const std::string text = random_text(&random);
    std::vector<size_t> wanted, found;
    regex.for_each_match(text, [&](size_t, size_t end) { wanted.push_back(end); });
    for (const char *p = text.data(), *end = p + text.size(); p < end;) {
      p = piece_end(p, end);
      found.push_back(static_cast<size_t>(p - text.data()));
    }
    ASSERT_EQ(found, wanted) << "round " << round << ": " << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Patterns, Splitter,
                         testing::Values(KnownSplit::kGpt2, KnownSplit::kCl100k, KnownSplit::kLlama3, KnownSplit::kQwen2,
                                         KnownSplit::kO200k, KnownSplit::kTekken));

}  // namespace
}  // namespace orrery
