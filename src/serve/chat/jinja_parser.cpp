// Tokens to syntax tree: Jinja's statements, its operators and their binding.
#include <algorithm>
#include <set>

#include "base/error.h"
#include "serve/chat/jinja_ast.h"
#include "serve/chat/jinja_lexer.h"

namespace orrery::jinja {
namespace {

constexpr int kDepthMax = 150;

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
  return Parser(tokenize(source)).run();
}

}  // namespace orrery::jinja
