#include "serve/chat/jinja_lexer.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace orrery::jinja {
namespace {

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {
    if (source_.ends_with('\n')) source_.remove_suffix(1);  // keep_trailing_newline is off
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) text_then_tag();
    put(Token::Kind::kEof, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw Error(ErrorCode::kInvalidArgument, "chat template: line {}: {}", line_, what); }
  void put(Token::Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  bool starts(std::string_view what) const { return source_.substr(at_).starts_with(what); }
  void advance(size_t count) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_), source_.begin() + static_cast<ptrdiff_t>(at_ + count), '\n'));
    at_ += count;
  }

  void text_then_tag() {
    size_t tag = at_;
    while (tag < source_.size() && !(source_[tag] == '{' && tag + 1 < source_.size() && (source_[tag + 1] == '{' || source_[tag + 1] == '%' || source_[tag + 1] == '#'))) ++tag;
    std::string text(source_.substr(at_, tag - at_));
    if (strip_next_) text.erase(0, text.find_first_not_of(" \t\r\n\f\v") == std::string::npos ? text.size() : text.find_first_not_of(" \t\r\n\f\v"));
    const bool at_end = tag >= source_.size();
    const char sign = at_end || tag + 2 >= source_.size() ? '\0' : source_[tag + 2];
    if (!at_end && sign == '-') {
      const size_t last = text.find_last_not_of(" \t\r\n\f\v");
      text.erase(last == std::string::npos ? 0 : last + 1);
    } else if (!at_end && source_[tag + 1] != '{' && sign != '+') {
      // lstrip_blocks: blanks between the start of the line and the tag.
      const size_t last = text.find_last_not_of(" \t");
      const bool from_line_start = last == std::string::npos ? (tag - text.size() == 0 || source_[tag - text.size() - 1] == '\n') : text[last] == '\n';
      if (from_line_start) text.erase(last == std::string::npos ? 0 : last + 1);
    }
    strip_next_ = false;
    if (!text.empty()) put(Token::Kind::kText, text);
    advance(tag - at_);
    if (at_end) return;
    const char kind = source_[at_ + 1];
    advance(2);
    if (kind == '#') return comment();
    if (starts("-") || starts("+")) advance(1);
    if (kind == '%' && raw_block()) return;
    put(kind == '{' ? Token::Kind::kBeginOutput : Token::Kind::kBegin, "");
    expression(kind == '{' ? "}}" : "%}", kind == '{' ? Token::Kind::kEndOutput : Token::Kind::kEndStatement);
  }

  void after_tag(bool strip, bool trims, bool keeps) {
    strip_next_ = strip;
    if (!strip && trims && !keeps && starts("\n")) advance(1);
  }

  void comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string_view::npos) fail("a comment without its #}");
    const bool strip = end > at_ && source_[end - 1] == '-', keeps = end > at_ && source_[end - 1] == '+';
    advance(end + 2 - at_);
    after_tag(strip, true, keeps);
  }

  bool raw_block() {
    size_t at = at_;
    const auto blanks = [&] {
      while (at < source_.size() && std::string_view(" \t\n").find(source_[at]) != std::string_view::npos) ++at;
    };
    blanks();
    if (!source_.substr(at).starts_with("raw")) return false;
    at += 3;
    blanks();
    if (at < source_.size() && source_[at] == '-') ++at;
    if (!source_.substr(at).starts_with("%}")) return false;
    throw Error(ErrorCode::kUnsupported, "chat template: line {}: raw blocks are not supported", line_);
  }

  void expression(std::string_view end, Token::Kind end_kind) {
    int depth = 0;
    while (true) {
      while (at_ < source_.size() && std::string_view(" \t\r\n").find(source_[at_]) != std::string_view::npos) advance(1);
      if (at_ >= source_.size()) fail(fmt::format("a tag without its {}", end));
      if (depth == 0) {
        const bool strip = starts("-") && source_.substr(at_ + 1).starts_with(end), keeps = starts("+") && source_.substr(at_ + 1).starts_with(end);
        if (strip || keeps || starts(end)) {
          put(end_kind, "");
          advance(end.size() + (strip || keeps ? 1 : 0));
          return after_tag(strip, end == "%}", keeps);
        }
      }
      const char c = source_[at_];
      const auto is_word = [](char w) { return (w >= 'a' && w <= 'z') || (w >= 'A' && w <= 'Z') || (w >= '0' && w <= '9') || w == '_'; };
      if (c == '"' || c == '\'') {
        string(c);
      } else if (c >= '0' && c <= '9') {
        size_t stop = at_;
        while (stop < source_.size() && ((source_[stop] >= '0' && source_[stop] <= '9') || source_[stop] == '_')) ++stop;
        if (stop + 1 < source_.size() && source_[stop] == '.' && source_[stop + 1] >= '0' && source_[stop + 1] <= '9') {
          ++stop;
          while (stop < source_.size() && source_[stop] >= '0' && source_[stop] <= '9') ++stop;
        }
        put(Token::Kind::kNumber, std::string(source_.substr(at_, stop - at_)));
        advance(stop - at_);
      } else if (is_word(c)) {
        size_t stop = at_;
        while (stop < source_.size() && is_word(source_[stop])) ++stop;
        put(Token::Kind::kName, std::string(source_.substr(at_, stop - at_)));
        advance(stop - at_);
      } else {
        static constexpr std::string_view kOperators[] = {"==", "!=", "<=", ">=", "//", "**", "+", "-", "*", "/", "%", "~", "<", ">", "=", "(", ")", "[", "]", "{", "}", ",", ".", ":", "|", ";"};
        const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators), [&](std::string_view op) { return starts(op); });
        if (found == std::end(kOperators)) fail(fmt::format("unexpected '{}'", c));
        if (*found == "(" || *found == "[" || *found == "{") ++depth;
        if (*found == ")" || *found == "]" || *found == "}") --depth;
        put(Token::Kind::kOperator, std::string(*found));
        advance(found->size());
      }
    }
  }

  void string(char quote) {
    std::string text;
    size_t at = at_ + 1;
    for (;; ++at) {
      if (at >= source_.size()) fail("a string without its end");
      if (source_[at] == quote) break;
      if (source_[at] != '\\' || at + 1 >= source_.size()) {
        text += source_[at];
        continue;
      }
      const char c = source_[++at];
      switch (c) {
        case 'n': text += '\n'; break;
        case 't': text += '\t'; break;
        case 'r': text += '\r'; break;
        case 'x':
        case 'u': {
          const size_t digits = c == 'x' ? 2 : 4;
          const std::string hex(source_.substr(at + 1, digits));
          if (hex.size() != digits || hex.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) fail("an unfinished \\x or \\u");
          append_utf8(&text, static_cast<uint32_t>(std::stoul(hex, nullptr, 16)));
          at += digits;
          break;
        }
        case '\\': case '\'': case '"': text += c; break;
        default: text += '\\', text += c;
      }
    }
    put(Token::Kind::kString, std::move(text));
    advance(at + 1 - at_);
  }

  std::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool strip_next_ = false;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace orrery::jinja
