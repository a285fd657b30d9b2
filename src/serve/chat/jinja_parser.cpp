// Template text to syntax tree: Jinja's lexical rules under trim_blocks and lstrip_blocks, its operators and their binding.
#include <algorithm>
#include <set>

#include "base/error.h"
#include "serve/chat/jinja_ast.h"
#include "tokenizer/utf8.h"

namespace orrery::jinja {
namespace {

constexpr int kDepthMax = 150;

struct Token {
  enum class Kind { kText, kBegin, kName, kNumber, kString, kOperator, kEndOutput, kEndStatement, kBeginOutput, kEof } kind;
  std::string text;
  int line;
};

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

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Body run() {
    Body body = block({});
    if (!at(Token::Kind::kEof)) fail("unexpected end of a block");
    return body;
  }

 private:
  [[noreturn]] void fail(const std::string& what, ErrorCode code = ErrorCode::kInvalidArgument) const { throw Error(code, "chat template: line {}: {}", peek().line, what); }
  const Token& peek(size_t ahead = 0) const { return tokens_[std::min(next_ + ahead, tokens_.size() - 1)]; }
  bool at(Token::Kind kind) const { return peek().kind == kind; }
  bool is_operator(std::string_view text, size_t ahead = 0) const { return peek(ahead).kind == Token::Kind::kOperator && peek(ahead).text == text; }
  bool is_name(std::string_view text, size_t ahead = 0) const { return peek(ahead).kind == Token::Kind::kName && peek(ahead).text == text; }
  bool take_operator(std::string_view text) { return is_operator(text) && ++next_; }
  bool take_name(std::string_view text) { return is_name(text) && ++next_; }
  void expect(std::string_view text) {
    if (!take_operator(text)) fail(fmt::format("wanted '{}', found '{}'", text, peek().text));
  }
  std::string name() {
    if (!at(Token::Kind::kName)) fail(fmt::format("wanted a name, found '{}'", peek().text));
    return tokens_[next_++].text;
  }
  void end_statement() {
    if (!at(Token::Kind::kEndStatement)) fail(fmt::format("unexpected '{}'", peek().text));
    ++next_;
  }
  std::unique_ptr<Node> node(Node::Kind kind) const {
    auto result = std::make_unique<Node>();
    result->kind = kind;
    result->line = peek().line;
    return result;
  }
  ExprPtr expr(Expr::Kind kind) const {
    auto result = std::make_unique<Expr>();
    result->kind = kind;
    result->line = peek().line;
    return result;
  }
  struct Depth {
    explicit Depth(Parser& p) : parser(p) {
      if (++parser.depth_ > kDepthMax) parser.fail(fmt::format("nested deeper than {}", kDepthMax), ErrorCode::kUnsupported);
    }
    ~Depth() { --parser.depth_; }
    Parser& parser;
  };

  // Statements up to one of `ends`, which stays unread behind its {%.
  Body block(const std::set<std::string>& ends) {
    const Depth depth(*this);
    Body body;
    while (!at(Token::Kind::kEof)) {
      if (at(Token::Kind::kText)) {
        body.push_back(node(Node::Kind::kText));
        body.back()->text = tokens_[next_++].text;
      } else if (at(Token::Kind::kBeginOutput)) {
        ++next_;
        body.push_back(node(Node::Kind::kOutput));
        body.back()->expression = tuple();
        if (!at(Token::Kind::kEndOutput)) fail(fmt::format("unexpected '{}'", peek().text));
        ++next_;
      } else {
        if (peek(1).kind == Token::Kind::kName && ends.contains(peek(1).text)) return body;
        ++next_;
        body.push_back(statement());
      }
    }
    if (!ends.empty()) fail(fmt::format("a block without its {}", *ends.rbegin()));
    return body;
  }

  void end_block(std::string_view end) {
    ++next_;
    if (!take_name(end)) fail(fmt::format("wanted {}", end));
    end_statement();
  }

  std::unique_ptr<Node> statement() {
    const std::string word = name();
    if (word == "if") return if_statement();
    if (word == "for") return for_statement();
    if (word == "set") return set_statement();
    if (word == "macro") return macro_statement();
    if (word == "break" || word == "continue") {
      auto result = node(word == "break" ? Node::Kind::kBreak : Node::Kind::kContinue);
      end_statement();
      return result;
    }
    if (word == "generation") {
      auto result = node(Node::Kind::kBlock);
      end_statement();
      result->body = block({"endgeneration"});
      end_block("endgeneration");
      return result;
    }
    fail(fmt::format("the statement '{}' is not supported", word), ErrorCode::kUnsupported);
  }

  std::unique_ptr<Node> if_statement() {
    auto result = node(Node::Kind::kIf);
    ExprPtr condition = expression();
    end_statement();
    while (true) {
      Body body = block({"elif", "else", "endif"});
      result->branches.emplace_back(std::move(condition), std::move(body));
      ++next_;
      if (take_name("endif")) break;
      if (take_name("elif")) {
        condition = expression();
      } else {
        ++next_;
        condition = nullptr;
      }
      end_statement();
    }
    end_statement();
    return result;
  }

  std::unique_ptr<Node> for_statement() {
    auto result = node(Node::Kind::kFor);
    do {
      result->targets.push_back(name());
    } while (take_operator(","));
    if (!take_name("in")) fail("wanted 'in'");
    result->expression = or_expression();
    if (take_name("if")) result->condition = expression();
    if (is_name("recursive")) fail("recursive loops are not supported", ErrorCode::kUnsupported);
    end_statement();
    result->body = block({"else", "endfor"});
    ++next_;
    if (take_name("else")) {
      end_statement();
      result->otherwise = block({"endfor"});
      ++next_;
    }
    if (!take_name("endfor")) fail("wanted endfor");
    end_statement();
    return result;
  }

  std::unique_ptr<Node> set_statement() {
    auto result = node(Node::Kind::kSet);
    do {
      result->targets.push_back(name());
    } while (take_operator(","));
    if (take_operator(".")) result->attribute = name();
    if (take_operator("=")) {
      result->expression = tuple();
      end_statement();
      return result;
    }
    result->kind = Node::Kind::kSetBlock;
    if (!at(Token::Kind::kEndStatement)) fail("a set block with filters is not supported", ErrorCode::kUnsupported);
    end_statement();
    result->body = block({"endset"});
    end_block("endset");
    return result;
  }

  std::unique_ptr<Node> macro_statement() {
    auto result = node(Node::Kind::kMacro);
    result->text = name();
    expect("(");
    while (!take_operator(")")) {
      result->targets.push_back(name());
      result->defaults.push_back(take_operator("=") ? expression() : nullptr);
      if (!is_operator(")")) expect(",");
    }
    end_statement();
    result->body = block({"endmacro"});
    ++next_;
    ++next_;
    if (at(Token::Kind::kName)) ++next_;
    end_statement();
    return result;
  }

  // a, b, c without brackets is a list.
  ExprPtr tuple() {
    ExprPtr first = expression();
    if (!is_operator(",")) return first;
    ExprPtr list = expr(Expr::Kind::kList);
    list->children.push_back(std::move(first));
    while (take_operator(",")) {
      if (at(Token::Kind::kEndStatement) || at(Token::Kind::kEndOutput)) break;
      list->children.push_back(expression());
    }
    return list;
  }

  ExprPtr expression() {
    const Depth depth(*this);
    ExprPtr value = or_expression();
    while (take_name("if")) {
      ExprPtr ternary = expr(Expr::Kind::kTernary);
      ExprPtr condition = or_expression();
      ExprPtr otherwise = take_name("else") ? expression() : nullptr;
      ternary->children.push_back(std::move(condition));
      ternary->children.push_back(std::move(value));
      ternary->children.push_back(std::move(otherwise));
      value = std::move(ternary);
    }
    return value;
  }

  ExprPtr joined(Expr::Kind kind, ExprPtr left, ExprPtr right, std::string op = {}) {
    ExprPtr result = expr(kind);
    result->name = std::move(op);
    result->children.push_back(std::move(left));
    result->children.push_back(std::move(right));
    // A long chain is a deep tree: bounded like any nesting.
    if (++chain_ > 5000) fail("too many operators", ErrorCode::kUnsupported);
    return result;
  }

  ExprPtr or_expression() {
    ExprPtr left = and_expression();
    while (take_name("or")) left = joined(Expr::Kind::kOr, std::move(left), and_expression());
    return left;
  }
  ExprPtr and_expression() {
    ExprPtr left = not_expression();
    while (take_name("and")) left = joined(Expr::Kind::kAnd, std::move(left), not_expression());
    return left;
  }
  ExprPtr not_expression() {
    if (!take_name("not")) return comparison();
    const Depth depth(*this);
    ExprPtr result = expr(Expr::Kind::kNot);
    result->children.push_back(not_expression());
    return result;
  }
  ExprPtr comparison() {
    ExprPtr left = sum();
    while (true) {
      bool found = false;
      for (const char* op : {"==", "!=", "<=", ">=", "<", ">"}) {
        if (!take_operator(op)) continue;
        left = joined(Expr::Kind::kBinary, std::move(left), sum(), op);
        found = true;
        break;
      }
      if (found) continue;
      if (take_name("in")) {
        left = joined(Expr::Kind::kBinary, std::move(left), sum(), "in");
      } else if (is_name("not") && is_name("in", 1)) {
        next_ += 2;
        left = joined(Expr::Kind::kBinary, std::move(left), sum(), "not in");
      } else {
        return left;
      }
    }
  }
  ExprPtr sum() {
    ExprPtr left = concatenation();
    while (is_operator("+") || is_operator("-")) {
      std::string op = tokens_[next_++].text;
      left = joined(Expr::Kind::kBinary, std::move(left), concatenation(), std::move(op));
    }
    return left;
  }
  ExprPtr concatenation() {
    ExprPtr left = product();
    while (take_operator("~")) left = joined(Expr::Kind::kBinary, std::move(left), product(), "~");
    return left;
  }
  ExprPtr product() {
    ExprPtr left = unary();
    while (is_operator("*") || is_operator("/") || is_operator("//") || is_operator("%")) {
      std::string op = tokens_[next_++].text;
      left = joined(Expr::Kind::kBinary, std::move(left), unary(), std::move(op));
    }
    return left;
  }
  ExprPtr unary(bool with_filters = true) {
    const Depth depth(*this);
    if (is_operator("-") || is_operator("+")) {
      ExprPtr result = expr(Expr::Kind::kUnary);
      result->name = tokens_[next_++].text;
      result->children.push_back(unary(false));  // a filter takes the negated value
      return with_filters ? filters(std::move(result)) : std::move(result);
    }
    ExprPtr value = postfix(primary());
    return with_filters ? filters(std::move(value)) : std::move(value);
  }

  ExprPtr primary() {
    const Token token = peek();
    if (take_operator("(")) {
      if (take_operator(")")) return expr(Expr::Kind::kList);
      ExprPtr value = expression();
      if (is_operator(",")) {
        ExprPtr list = expr(Expr::Kind::kList);
        list->children.push_back(std::move(value));
        while (take_operator(",") && !is_operator(")")) list->children.push_back(expression());
        value = std::move(list);
      }
      expect(")");
      return value;
    }
    if (take_operator("[")) {
      ExprPtr list = expr(Expr::Kind::kList);
      while (!take_operator("]")) {
        list->children.push_back(expression());
        if (!is_operator("]")) expect(",");
      }
      return list;
    }
    if (take_operator("{")) {
      ExprPtr dict = expr(Expr::Kind::kDict);
      while (!take_operator("}")) {
        dict->keys.push_back(expression());
        expect(":");
        dict->children.push_back(expression());
        if (!is_operator("}")) expect(",");
      }
      return dict;
    }
    ExprPtr literal = expr(Expr::Kind::kLiteral);
    if (token.kind == Token::Kind::kString) {
      std::string text;
      while (at(Token::Kind::kString)) text += tokens_[next_++].text;  // neighbours join
      literal->literal = Value::of(std::move(text));
      return literal;
    }
    if (token.kind == Token::Kind::kNumber) {
      ++next_;
      std::string digits = token.text;
      std::erase(digits, '_');
      if (digits.size() > 18) fail("a number of more than 18 digits");
      literal->literal = digits.find('.') == std::string::npos ? Value::of(static_cast<int64_t>(std::stoll(digits))) : Value::of(std::stod(digits));
      return literal;
    }
    if (token.kind != Token::Kind::kName) fail(fmt::format("unexpected '{}'", token.text));
    ++next_;
    if (token.text == "true" || token.text == "True" || token.text == "false" || token.text == "False") {
      literal->literal = Value::of(token.text[0] == 't' || token.text[0] == 'T');
      return literal;
    }
    if (token.text == "none" || token.text == "None") {
      literal->literal = Value::none();
      return literal;
    }
    literal->kind = Expr::Kind::kName;
    literal->name = token.text;
    return literal;
  }

  Call arguments() {
    Call call;
    while (!take_operator(")")) {
      if (at(Token::Kind::kName) && is_operator("=", 1)) {
        std::string key = name();
        ++next_;
        call.named.emplace_back(std::move(key), expression());
      } else {
        call.positional.push_back(expression());
      }
      if (!is_operator(")")) expect(",");
    }
    return call;
  }

  ExprPtr postfix(ExprPtr value) {
    while (true) {
      if (++chain_ > 5000) fail("too many operators", ErrorCode::kUnsupported);
      if (take_operator(".")) {
        ExprPtr attribute = expr(Expr::Kind::kAttribute);
        attribute->name = at(Token::Kind::kNumber) ? tokens_[next_++].text : name();
        attribute->children.push_back(std::move(value));
        value = std::move(attribute);
      } else if (take_operator("[")) {
        ExprPtr item = expr(Expr::Kind::kItem);
        item->children.push_back(std::move(value));
        const auto bound = [&]() -> ExprPtr { return is_operator(":") || is_operator("]") ? nullptr : expression(); };
        item->children.push_back(bound());
        if (is_operator(":")) {
          item->kind = Expr::Kind::kSlice;
          while (item->children.size() < 4 && take_operator(":")) item->children.push_back(bound());
        } else if (item->children.back() == nullptr) {
          fail("empty []");
        }
        expect("]");
        value = std::move(item);
      } else if (take_operator("(")) {
        ExprPtr call = expr(Expr::Kind::kCall);
        call->children.push_back(std::move(value));
        call->call = arguments();
        value = std::move(call);
      } else {
        return value;
      }
    }
  }

  ExprPtr filters(ExprPtr value) {
    while (true) {
      if (take_operator("|")) {
        ExprPtr filter = expr(Expr::Kind::kFilter);
        filter->name = name();
        filter->children.push_back(std::move(value));
        if (take_operator("(")) filter->call = arguments();
        value = postfix(std::move(filter));
      } else if (take_name("is")) {
        ExprPtr test = expr(Expr::Kind::kTest);
        test->negated = take_name("not");
        test->name = name();
        test->children.push_back(std::move(value));
        if (take_operator("(")) {
          test->call = arguments();
        } else if (at(Token::Kind::kString) || at(Token::Kind::kNumber) || is_operator("[") || (at(Token::Kind::kName) && !is_name("and") && !is_name("or") && !is_name("else") && !is_name("if") && !is_name("is") && !is_name("not") && !is_name("in"))) {
          test->call.positional.push_back(postfix(primary()));
        }
        value = std::move(test);
      } else {
        return value;
      }
    }
  }

  std::vector<Token> tokens_;
  size_t next_ = 0;
  int depth_ = 0;
  int chain_ = 0;
};

}  // namespace

Body parse_template(std::string_view source) {
  if (source.size() > (size_t{1} << 20)) throw Error(ErrorCode::kUnsupported, "a chat template of {} bytes; at most 1 MiB is taken", source.size());
  return Parser(Lexer(source).run()).run();
}

}  // namespace orrery::jinja
