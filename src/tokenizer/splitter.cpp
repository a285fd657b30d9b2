#include "tokenizer/splitter.h"

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace orrery {
namespace {

using Letters = SplitRule::Letters;
constexpr SplitRule kGpt2Rule{Letters::kSpaceLead, true, false, false, 0, false, false, false, false};
constexpr SplitRule kCl100kRule{Letters::kAnyLead, true, true, false, 3, true, false, true, true};
constexpr SplitRule kLlama3Rule{Letters::kAnyLead, true, true, false, 3, true, false, true, false};
constexpr SplitRule kQwen2Rule{Letters::kAnyLead, true, true, false, 1, true, false, true, false};
constexpr SplitRule kO200kRule{Letters::kCased, false, false, true, 3, true, true, true, false};
constexpr SplitRule kTekkenRule{Letters::kCased, false, false, false, 1, true, true, true, false};

struct Char {
  uint8_t bits;
  uint32_t length;
};

inline Char char_at(const uint8_t* classes, const char* p, const char* end) {
  const auto byte = static_cast<uint8_t>(*p);
  if (byte < 0x80) return {classes[byte], 1};
  const DecodedChar c = decode_utf8(p, end);
  return {classes[c.code_point], c.length};
}

inline const char* skip_in(const uint8_t* classes, const char* p, const char* end, uint8_t mask) {
  while (p < end) {
    const Char c = char_at(classes, p, end);
    if (!(c.bits & mask)) break;
    p += c.length;
  }
  return p;
}

inline const char* skip_not_in(const uint8_t* classes, const char* p, const char* end, uint8_t mask) {
  while (p < end) {
    const Char c = char_at(classes, p, end);
    if (c.bits & mask) break;
    p += c.length;
  }
  return p;
}

// The end of 's 't 're 've 'm 'll 'd at p, or p. Without case, s is also U+017F (long s), as Unicode folds it.
inline const char* contraction_end(const char* p, const char* end, bool any_case) {
  if (end - p < 2 || *p != '\'') return p;
  const auto lower = [&](char c) { return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
  const char a = lower(p[1]);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return p + 2;
  if (end - p < 3) return p;
  if (any_case && p[1] == '\xC5' && p[2] == '\xBF') return p + 3;
  const char b = lower(p[2]);
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return p + 3;
  return p;
}

// One of o200k's cased words without its lead, or p. Upper* Lower+ | Upper+ Lower*, greedy with backtracking into the
// characters that are on both sides (Lm Lo M): the first part ends at the last of them when no lower-side character follows.
inline const char* cased_word_end(const uint8_t* classes, const char* p, const char* end) {
  const char* q = p;
  const char* after_both = nullptr;
  while (q < end) {
    const Char c = char_at(classes, q, end);
    if (!(c.bits & kUpperSide)) break;
    q += c.length;
    if (c.bits & kLowerSide) after_both = q;
  }
  const char* lower_end = skip_in(classes, q, end, kLowerSide);
  if (lower_end > q) return lower_end;
  return after_both ? after_both : q;
}

// As above, but only the first alternative (a lower side of at least one character), or nullptr.
inline const char* cased_first_end(const uint8_t* classes, const char* p, const char* end) {
  const char* q = p;
  const char* after_both = nullptr;
  while (q < end) {
    const Char c = char_at(classes, q, end);
    if (!(c.bits & kUpperSide)) break;
    q += c.length;
    if (c.bits & kLowerSide) after_both = q;
  }
  const char* lower_end = skip_in(classes, q, end, kLowerSide);
  if (lower_end > q) return lower_end;
  return after_both;
}

// `p` where no word matches. Order of the alternatives: first form with lead, without; second form with lead, without.
template <const SplitRule& rule>
inline const char* cased_match(const uint8_t* classes, const char* p, const char* end, Char first) {
  const bool may_lead = !(first.bits & (kLetter | kNumber | kNewline));
  const char* word = p;
  if (may_lead) {
    const char* after = p + first.length;
    const char* match = after < end ? cased_first_end(classes, after, end) : nullptr;
    if (!match && (first.bits & kUpperSide)) match = cased_first_end(classes, p, end);
    if (!match && after < end) {
      match = cased_word_end(classes, after, end);
      if (match == after) match = nullptr;
    }
    if (!match) return p;
    word = match;
  } else if (first.bits & (kUpperSide | kLowerSide)) {
    word = cased_word_end(classes, p, end);
  }
  if (word > p && rule.contractions_suffix) word = contraction_end(word, end, true);
  return word;
}

template <const SplitRule& rule>
inline const char* letters_match(const uint8_t* classes, const char* p, const char* end, Char first) {
  if constexpr (rule.letters == Letters::kCased) return cased_match<rule>(classes, p, end, first);
  if (first.bits & kLetter) return skip_in(classes, p + first.length, end, kLetter);
  const bool lead = rule.letters == Letters::kSpaceLead ? *p == ' ' : !(first.bits & (kNumber | kNewline));
  const char* after = p + first.length;
  if (!lead || after >= end) return p;
  const char* match = skip_in(classes, after, end, kLetter);
  return match > after ? match : p;
}

template <const SplitRule& rule>
inline const char* digits_match(const uint8_t* classes, const char* p, const char* end, Char first) {
  if constexpr (rule.digits_max == 0) {
    const char* start = *p == ' ' ? p + 1 : p;
    const char* match = skip_in(classes, start, end, kNumber);
    return match > start ? match : p;
  }
  if (!(first.bits & kNumber)) return p;
  p += first.length;
  for (int i = 1; i < rule.digits_max && p < end; ++i) {
    const Char c = char_at(classes, p, end);
    if (!(c.bits & kNumber)) break;
    p += c.length;
  }
  return p;
}

template <const SplitRule& rule>
inline const char* space_match(const uint8_t* classes, const char* p, const char* end) {
  const char* q = p;
  const char* last_start = p;
  const char* after_newline = nullptr;
  while (q < end) {
    const Char c = char_at(classes, q, end);
    if (!(c.bits & kSpace)) break;
    last_start = q;
    q += c.length;
    if (c.bits & kNewline) after_newline = q;
  }
  if (rule.trailing_space_first && q == end) return q;
  if (rule.newline_rule && after_newline) return after_newline;
  if (q == end || last_start == p) return q;
  return last_start;
}

template <const SplitRule& rule>
const char* piece_end(const char* p, const char* end) {
  static const uint8_t* const classes = character_classes();
  const Char first = char_at(classes, p, end);
  if (rule.contractions_first && *p == '\'') {
    const char* match = contraction_end(p, end, rule.contractions_any_case);
    if (match > p) return match;
  }
  const char* match = letters_match<rule>(classes, p, end, first);
  if (match > p) return match;
  match = digits_match<rule>(classes, p, end, first);
  if (match > p) return match;
  const char* symbols = *p == ' ' ? p + 1 : p;
  match = skip_not_in(classes, symbols, end, kSpace | kLetter | kNumber);
  if (match > symbols) {
    if (rule.newlines_after_symbols) {
      while (match < end && (*match == '\r' || *match == '\n' || (rule.slash_after_symbols && *match == '/'))) ++match;
    }
    return match;
  }
  return space_match<rule>(classes, p, end);
}

constexpr std::string_view kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kCl100kPattern =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s)";
constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kO200kPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekkenPattern = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
                                            R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
                                            R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

}  // namespace

SplitRule split_rule(KnownSplit split) {
  switch (split) {
    case KnownSplit::kGpt2:
      return kGpt2Rule;
    case KnownSplit::kCl100k:
      return kCl100kRule;
    case KnownSplit::kLlama3:
      return kLlama3Rule;
    case KnownSplit::kQwen2:
      return kQwen2Rule;
    case KnownSplit::kO200k:
      return kO200kRule;
    case KnownSplit::kTekken:
      return kTekkenRule;
  }
  ORRERY_CHECK(false, "split {}", static_cast<int>(split));
}

std::string_view split_pattern(KnownSplit split) {
  switch (split) {
    case KnownSplit::kGpt2:
      return kGpt2Pattern;
    case KnownSplit::kCl100k:
      return kCl100kPattern;
    case KnownSplit::kLlama3:
      return kLlama3Pattern;
    case KnownSplit::kQwen2:
      return kQwen2Pattern;
    case KnownSplit::kO200k:
      return kO200kPattern;
    case KnownSplit::kTekken:
      return kTekkenPattern;
  }
  ORRERY_CHECK(false, "split {}", static_cast<int>(split));
}

std::optional<KnownSplit> known_split(std::string_view pattern) {
  for (const auto split : {KnownSplit::kGpt2, KnownSplit::kCl100k, KnownSplit::kLlama3, KnownSplit::kQwen2, KnownSplit::kO200k,
                           KnownSplit::kTekken}) {
    if (pattern == split_pattern(split)) return split;
  }
  // Other spellings of the same languages, as tiktoken and older files write them.
  if (pattern == R"('(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s)" ||
      pattern == R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)") {
    return KnownSplit::kGpt2;
  }
  return std::nullopt;
}

std::optional<KnownSplit> split_by_name(std::string_view name) {
  if (name == "gpt2") return KnownSplit::kGpt2;
  if (name == "cl100k") return KnownSplit::kCl100k;
  if (name == "llama3") return KnownSplit::kLlama3;
  if (name == "qwen2") return KnownSplit::kQwen2;
  if (name == "o200k") return KnownSplit::kO200k;
  if (name == "tekken") return KnownSplit::kTekken;
  return std::nullopt;
}

PieceEnd piece_end_function(KnownSplit split) {
  switch (split) {
    case KnownSplit::kGpt2:
      return &piece_end<kGpt2Rule>;
    case KnownSplit::kCl100k:
      return &piece_end<kCl100kRule>;
    case KnownSplit::kLlama3:
      return &piece_end<kLlama3Rule>;
    case KnownSplit::kQwen2:
      return &piece_end<kQwen2Rule>;
    case KnownSplit::kO200k:
      return &piece_end<kO200kRule>;
    case KnownSplit::kTekken:
      return &piece_end<kTekkenRule>;
  }
  ORRERY_CHECK(false, "split {}", static_cast<int>(split));
}

}  // namespace orrery
