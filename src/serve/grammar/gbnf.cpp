// GBNF, the grammars of llama.cpp: rules `name ::= alternatives` over "literals", [classes], `.`, (groups), names, and * + ? {m,n}.
#include <map>

#include "base/error.h"
#include "serve/grammar/expression.h"
#include "tokenizer/utf8.h"

namespace orrery::grammar {
namespace {

constexpr int kDepthMax = 200;

class Parser {
 public:
  Parser(Source& source, std::string_view text) : source_(source), text_(text) { rules_["root"] = 0; }

  void parse() {
    if (valid_utf8_prefix(text_) != text_.size()) throw Error(ErrorCode::kInvalidArgument, "GBNF: not UTF-8");
    skip(true);
    while (!end()) {
      const std::string name = word();
      const int rule = rule_index(name);
      if (source_.rules()[static_cast<size_t>(rule)].expression >= 0) fail(fmt::format("the rule '{}' is defined twice", name));
      skip(false);
      if (!text_.substr(at_).starts_with("::=")) fail("wanted ::=");
      at_ += 3;
      skip(true);
      source_.define(rule, alternatives(0));
      if (!end() && text_[at_] != '\n' && text_[at_] != '\r') fail("wanted the end of the line");
      skip(true);
    }
    if (source_.rules()[0].expression < 0) throw Error(ErrorCode::kInvalidArgument, "GBNF: there is no rule 'root'");
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    size_t line = 1;
    for (size_t i = 0; i < at_ && i < text_.size(); ++i) line += text_[i] == '\n';
    throw Error(ErrorCode::kInvalidArgument, "GBNF: line {}: {}", line, what);
  }
  bool end() const { return at_ >= text_.size(); }
  bool take(char c) {
    if (end() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  static bool is_word(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_'; }

  void skip(bool newlines) {
    while (!end()) {
      const char c = text_[at_];
      if (c == '#') {
        while (!end() && text_[at_] != '\n') ++at_;
      } else if (c == ' ' || c == '\t' || (newlines && (c == '\n' || c == '\r'))) {
        ++at_;
      } else {
        return;
      }
    }
  }

  std::string word() {
    const size_t begin = at_;
    while (!end() && is_word(text_[at_])) ++at_;
    if (at_ == begin) fail("wanted a name");
    return std::string(text_.substr(begin, at_ - begin));
  }

  int rule_index(const std::string& name) {
    const auto at = rules_.find(name);
    if (at != rules_.end()) return at->second;
    return rules_[name] = source_.add_rule(name);
  }

  int alternatives(int depth) {
    if (depth > kDepthMax) fail(fmt::format("groups nested deeper than {}", kDepthMax));
    std::vector<int> result;
    while (true) {
      result.push_back(sequence(depth));
      if (!take('|')) break;
      skip(true);
    }
    return source_.choice(std::move(result));
  }

  int sequence(int depth) {
    std::vector<int> parts;
    while (!end()) {
      const char c = text_[at_];
      int part = -1;
      if (c == '"') {
        part = source_.bytes(literal());
      } else if (c == '[') {
        part = source_.set(bracket());
      } else if (c == '.') {
        ++at_;
        part = source_.set(complement({}));
      } else if (c == '(') {
        ++at_;
        skip(true);
        part = alternatives(depth + 1);
        skip(true);
        if (!take(')')) fail("has a ( without its )");
      } else if (is_word(c)) {
        part = source_.rule(rule_index(word()));
      } else {
        break;
      }
      parts.push_back(quantified(part));
      skip(depth > 0);
    }
    return source_.sequence(std::move(parts));
  }

  int quantified(int part) {
    if (take('*')) return source_.repeat(part, 0, kUnbounded);
    if (take('+')) return source_.repeat(part, 1, kUnbounded);
    if (take('?')) return source_.repeat(part, 0, 1);
    if (!take('{')) return part;
    skip(false);
    const uint32_t min = number();
    uint32_t max = min;
    skip(false);
    if (take(',')) {
      skip(false);
      max = !end() && text_[at_] == '}' ? kUnbounded : number();
      skip(false);
    }
    if (!take('}')) fail("has a { without its }");
    if (min > max) fail("has a repeat {m,n} with m > n");
    return source_.repeat(part, min, max);
  }

  uint32_t number() {
    uint32_t value = 0;
    if (end() || text_[at_] < '0' || text_[at_] > '9') fail("wanted a number");
    while (!end() && text_[at_] >= '0' && text_[at_] <= '9') {
      value = value * 10 + static_cast<uint32_t>(text_[at_++] - '0');
      if (value > 100'000) fail("repeats more often than 100000");
    }
    return value;
  }

  uint32_t character() {
    if (end()) fail("ends inside a literal or class");
    if (!take('\\')) {
      const DecodedChar c = decode_utf8(text_.data() + at_, text_.data() + text_.size());
      at_ += c.length;
      return c.code_point;
    }
    if (end()) fail("ends with a \\");
    const char c = text_[at_++];
    switch (c) {
      case 'n': return '\n';
      case 't': return '\t';
      case 'r': return '\r';
      case 'x': return hex(2);
      case 'u': return hex(4);
      case 'U': return hex(8);
      case '\\': case '"': case '[': case ']': case '-': case '^': case '/': return static_cast<unsigned char>(c);
      default: fail(fmt::format("unknown escape \\{}", c));
    }
  }

  uint32_t hex(int digits) {
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i, ++at_) {
      const char c = end() ? '\0' : text_[at_];
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit < 0) fail("unfinished hexadecimal escape");
      value = value * 16 + static_cast<uint32_t>(digit);
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) fail("an escape that is no character");
    return value;
  }

  std::string literal() {
    ++at_;
    std::string text;
    while (!end() && text_[at_] != '"') append_utf8(&text, character());
    if (!take('"')) fail("has a \" without its end");
    return text;
  }

  CodeSet bracket() {
    ++at_;
    const bool negate = take('^');
    CodeSet set;
    while (!end() && text_[at_] != ']') {
      const uint32_t low = character();
      uint32_t high = low;
      if (at_ + 1 < text_.size() && text_[at_] == '-' && text_[at_ + 1] != ']') {
        ++at_;
        high = character();
        if (high < low) fail("has a range that does not run upwards");
      }
      set.push_back({low, high});
    }
    if (!take(']')) fail("has a [ without its ]");
    set = normalized(std::move(set));
    return negate ? complement(set) : set;
  }

  Source& source_;
  std::string_view text_;
  size_t at_ = 0;
  std::map<std::string, int> rules_;
};

}  // namespace

void parse_gbnf(Source& source, std::string_view text) { Parser(source, text).parse(); }

}  // namespace orrery::grammar
