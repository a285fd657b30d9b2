// Runs a template's tree. Internal to src/serve/chat.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "serve/chat/jinja_ast.h"

namespace orrery::jinja {

class Interpreter {
 public:
  Interpreter(const TemplateLimits& limits, Dict variables);
  Text run(const Body& body);

  /// Counts work and refuses beyond the limit; every loop of a filter calls it too.
  void spend(int64_t steps = 1);
  void spend_bytes(size_t bytes) { spend(static_cast<int64_t>(bytes / 64)); }
  [[noreturn]] void fail(const std::string& what) const;
  const TemplateLimits& limits() const { return limits_; }

  Value attribute(const Value& value, const std::string& name);
  Value filter(const std::string& name, const Value& value, const Arguments& arguments);
  bool test(const std::string& name, const Value& value, const Arguments& arguments);
  /// The items that a loop over `value` sees.
  List items(const Value& value);

 private:
  enum class Flow { kNext, kBreak, kContinue };
  using Scope = std::map<std::string, Value, std::less<>>;
  Flow run_body(const Body& body, Text* out);
  Flow run_node(const Node& node, Text* out);
  Flow run_for(const Node& node, Text* out);
  void write(const Text& text, Text* out);
  void assign(const std::vector<std::string>& targets, const Value& value);
  Value lookup(const std::string& name) const;
  Value evaluate(const Expr& expr);
  Value evaluate_kind(const Expr& expr);
  Value binary(const Expr& expr);
  Value item(const Value& value, const Value& key);
  Value slice(const Expr& expr);
  Value call(const Expr& expr);
  Arguments arguments_of(const Call& call);
  Value make_macro(const Node& node);

  const TemplateLimits& limits_;
  std::vector<Scope> scopes_;
  int64_t steps_ = 0;
  int depth_ = 0;
  int line_ = 0;
};

/// Builtin functions by name: namespace, range, dict, raise_exception, strftime_now.
const Function* builtin(const std::string& name);
/// A method of a string, list or mapping; undefined when there is none.
Value method(Interpreter& interpreter, const Value& self, const std::string& name);
bool contains(const Value& container, const Value& item);
/// -1, 0, 1; fails for values that have no order.
int compare(Interpreter& interpreter, const Value& a, const Value& b);

}  // namespace orrery::jinja
