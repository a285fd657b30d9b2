// Regular expressions (the common part of ECMAScript's and Python's) over code points. Where the two differ, what is written is what both
// accept: \w and \d are ASCII, and \W, \D and their like leave out everything that either calls a word character or digit. Look-around,
// back-references and word boundaries are refused.
#include <algorithm>
#include <optional>

#include "base/error.h"
#include "serve/grammar/expression.h"
#include "tokenizer/utf8.h"

namespace orrery::grammar {
namespace {

constexpr int kDepthMax = 200;
constexpr uint32_t kRepeatMax = 100'000;

// A class by its narrow and its wide reading; a complement of the wide one is narrow.
struct Class {
  CodeSet narrow, wide;
  Class negated() const { return {complement(wide), complement(narrow)}; }
};

const CodeSet kDigits = {{'0', '9'}};
const CodeSet kNonAscii = {{0x80, 0xD7FF}, {0xE000, 0x10FFFF}};
const CodeSet kWordCharacters = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const CodeSet kSpaces = {{'\t', '\r'}, {' ', ' '}};

std::optional<Class> named_class(char letter) {
  switch (letter) {
    case 'd': return Class{kDigits, join(kDigits, kNonAscii)};
    case 'D': return named_class('d')->negated();
    case 'w': return Class{kWordCharacters, join(kWordCharacters, kNonAscii)};
    case 'W': return named_class('w')->negated();
    case 's': return Class{kSpaces, join(join(kSpaces, {{0x1C, 0x1F}}), kNonAscii)};
    case 'S': return named_class('s')->negated();
    default: return std::nullopt;
  }
}

class Parser {
 public:
  Parser(Source& source, std::string_view text, bool search, EncodeSet encode) : source_(source), text_(text), search_(search), encode_(encode) {}

  int parse() {
    if (valid_utf8_prefix(text_) != text_.size()) fail("is not UTF-8");
    const int body = alternatives(0);
    if (at_ < text_.size()) fail("has a ) without its (");
    return body;
  }

 private:
  [[noreturn]] void fail(const std::string& what, ErrorCode code = ErrorCode::kInvalidArgument) const {
    throw Error(code, "regex: {} (at offset {} of {:.80})", what, at_, text_);
  }
  bool end() const { return at_ >= text_.size(); }
  bool next_is(char c) const { return !end() && text_[at_] == c; }
  bool take(char c) {
    if (!next_is(c)) return false;
    ++at_;
    return true;
  }
  uint32_t code_point() {
    const DecodedChar c = decode_utf8(text_.data() + at_, text_.data() + text_.size());
    at_ += c.length;
    return c.code_point;
  }

  // At depth 0 each alternative has its own anchors. In a search an alternative without them goes on with anything on that side.
  int alternatives(int depth) {
    if (depth > kDepthMax) fail(fmt::format("groups nested deeper than {}", kDepthMax), ErrorCode::kUnsupported);
    std::vector<int> result;
    do {
      result.push_back(sequence(depth));
    } while (take('|'));
    return source_.choice(std::move(result));
  }

  int sequence(int depth) {
    std::vector<int> parts;
    bool anchored_begin = false, anchored_end = false;
    while (!end() && !next_is('|') && !next_is(')')) {
      if (next_is('^')) {
        if (depth > 0 || !parts.empty()) fail("^ is supported at the beginning of the pattern or of one of its alternatives only", ErrorCode::kUnsupported);
        ++at_;
        anchored_begin = true;
        continue;
      }
      if (next_is('$')) {
        ++at_;
        if (depth > 0 || !(end() || next_is('|'))) fail("$ is supported at the end of the pattern or of one of its alternatives only", ErrorCode::kUnsupported);
        anchored_end = true;
        continue;
      }
      parts.push_back(quantified(depth));
    }
    if (depth == 0 && search_) {
      const auto anything = [&] { return source_.repeat(encode_(source_, complement({})), 0, kUnbounded); };
      if (!anchored_begin) parts.insert(parts.begin(), anything());
      if (!anchored_end) parts.push_back(anything());
    }
    return source_.sequence(std::move(parts));
  }

  int quantified(int depth) {
    const int child = atom(depth);
    uint32_t min = 1, max = 1;
    if (take('*')) {
      min = 0, max = kUnbounded;
    } else if (take('+')) {
      max = kUnbounded;
    } else if (take('?')) {
      min = 0;
    } else if (next_is('{') && at_ + 1 < text_.size() && text_[at_ + 1] >= '0' && text_[at_ + 1] <= '9') {
      ++at_;
      min = max = number();
      if (take(',')) max = next_is('}') ? kUnbounded : number();
      if (!take('}')) fail("has a { without its }");
      if (min > max) fail("has a repeat {m,n} with m > n");
    } else {
      return child;
    }
    take('?');  // lazy: the same texts
    if (next_is('*') || next_is('+') || next_is('?')) fail("has a quantifier after a quantifier");
    return source_.repeat(child, min, max);
  }

  uint32_t number() {
    uint64_t value = 0;
    if (end() || text_[at_] < '0' || text_[at_] > '9') fail("has a repeat without a number");
    while (!end() && text_[at_] >= '0' && text_[at_] <= '9') value = std::min<uint64_t>(value * 10 + static_cast<uint64_t>(text_[at_++] - '0'), 1u << 30);
    if (value > kRepeatMax) fail(fmt::format("repeats more often than {}", kRepeatMax), ErrorCode::kUnsupported);
    return static_cast<uint32_t>(value);
  }

  int atom(int depth) {
    if (take('(')) {
      if (take('?')) {
        if (take('P')) {
        }
        if (take(':')) {
        } else if (next_is('<') && at_ + 1 < text_.size() && text_[at_ + 1] != '=' && text_[at_ + 1] != '!') {
          while (!end() && !next_is('>')) ++at_;
          take('>');
        } else {
          fail("look-around and inline flags are not supported", ErrorCode::kUnsupported);
        }
      }
      const int body = alternatives(depth + 1);
      if (!take(')')) fail("has a ( without its )");
      return body;
    }
    if (take('[')) return encode_(source_, bracket());
    if (take('.')) return encode_(source_, complement({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}));
    if (next_is('*') || next_is('+') || next_is('?')) fail("has a quantifier with nothing before it");
    if (take('\\')) return encode_(source_, escape(false).narrow);
    const uint32_t c = code_point();
    return encode_(source_, {{c, c}});
  }

  Class escape(bool in_bracket) {
    if (end()) fail("ends with a \\");
    const auto single = [](uint32_t c) { return Class{{{c, c}}, {{c, c}}}; };
    const char c = text_[at_];
    if (const auto named = named_class(c)) {
      ++at_;
      return *named;
    }
    ++at_;
    switch (c) {
      case 'n': return single('\n');
      case 't': return single('\t');
      case 'r': return single('\r');
      case 'f': return single('\f');
      case 'v': return single('\v');
      case '0': return single(0);
      case 'x': return single(hex(2));
      case 'u': {
        const uint32_t high = hex(4);
        if (high < 0xD800 || high > 0xDFFF) return single(high);
        if (high > 0xDBFF || !text_.substr(at_).starts_with("\\u")) fail("has half a surrogate pair");
        at_ += 2;
        const uint32_t low = hex(4);
        if (low < 0xDC00 || low > 0xDFFF) fail("has half a surrogate pair");
        return single(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00));
      }
      case 'b':
        if (in_bracket) return single('\b');
        [[fallthrough]];
      default: break;
    }
    --at_;
    const auto byte = static_cast<unsigned char>(c);
    if ((byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || (byte >= '1' && byte <= '9'))
      fail(fmt::format("\\{} is not supported", c), ErrorCode::kUnsupported);
    const uint32_t literal = code_point();
    return single(literal);
  }

  uint32_t hex(int digits) {
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i, ++at_) {
      if (end()) fail("has an unfinished \\x or \\u");
      const char c = text_[at_];
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit < 0) fail("has an unfinished \\x or \\u");
      value = value * 16 + static_cast<uint32_t>(digit);
    }
    return value;
  }

  CodeSet bracket() {
    const bool negate = take('^');
    CodeSet narrow, wide;
    for (bool first = true;; first = false) {
      if (end()) fail("has a [ without its ]");
      if (next_is(']') && !first) break;
      if (next_is(']') && first) {
        // Python takes it as itself, ECMAScript as the end: say so rather than choose.
        fail("[] is read differently by different engines; write \\] for the bracket", ErrorCode::kUnsupported);
      }
      Class low = bracket_item();
      const bool is_range = next_is('-') && at_ + 1 < text_.size() && text_[at_ + 1] != ']';
      if (is_range) {
        ++at_;
        const Class high = bracket_item();
        const auto one = [](const CodeSet& set) { return set.size() == 1 && set[0].first == set[0].second; };
        if (!one(low.wide) || !one(high.wide) || low.wide[0].first > high.wide[0].first) fail("has a range that does not run upwards between two characters");
        low.narrow = low.wide = {{low.wide[0].first, high.wide[0].first}};
      }
      narrow.insert(narrow.end(), low.narrow.begin(), low.narrow.end());
      wide.insert(wide.end(), low.wide.begin(), low.wide.end());
    }
    take(']');
    return negate ? complement(normalized(std::move(wide))) : normalized(std::move(narrow));
  }

  Class bracket_item() {
    if (take('\\')) return escape(true);
    if (next_is('[') && at_ + 1 < text_.size() && text_[at_ + 1] == ':') fail("POSIX classes like [:alpha:] are not supported", ErrorCode::kUnsupported);
    const uint32_t c = code_point();
    return {{{c, c}}, {{c, c}}};
  }

  Source& source_;
  std::string_view text_;
  bool search_;
  EncodeSet encode_;
  size_t at_ = 0;
};

}  // namespace

int parse_regex(Source& source, std::string_view pattern, bool search, EncodeSet encode) { return Parser(source, pattern, search, encode).parse(); }

}  // namespace orrery::grammar
