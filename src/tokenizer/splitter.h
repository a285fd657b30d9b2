// The pre-tokenizer patterns of GPT-2's descendants, written out by hand: one pass, linear in any text, several times faster
// than a regex engine. A pattern is known by its exact text; splitter_test.cpp compares each with PCRE2 running that text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace orrery {

/// What the known patterns differ in.
struct SplitRule {
  enum class Letters { kSpaceLead, kAnyLead, kCased };
  Letters letters;             // ` ?\p{L}+`, `[^\r\n\p{L}\p{N}]?\p{L}+`, or o200k's two cased alternatives
  bool contractions_first;     // 's 't 're ... as words of their own
  bool contractions_any_case;  // (?i: )
  bool contractions_suffix;    // o200k: at the end of a cased word
  int digits_max;              // 0: ` ?\p{N}+`; else `\p{N}{1,max}`
  bool newlines_after_symbols;
  bool slash_after_symbols;
  bool newline_rule;          // `\s*[\r\n]+`
  bool trailing_space_first;  // `\s++$` before it
};

enum class KnownSplit { kGpt2, kCl100k, kLlama3, kQwen2, kO200k, kTekken };
SplitRule split_rule(KnownSplit split);
/// nullopt: not one of them.
std::optional<KnownSplit> known_split(std::string_view pattern);
/// The pattern as tokenizer.json files write it.
std::string_view split_pattern(KnownSplit split);
/// By the names of load_tiktoken; nullopt when unknown.
std::optional<KnownSplit> split_by_name(std::string_view name);

/// The end of the piece that starts at `p` (`p < end`). Every byte belongs to a piece.
using PieceEnd = const char* (*)(const char* p, const char* end);
PieceEnd piece_end_function(KnownSplit split);

}  // namespace orrery
