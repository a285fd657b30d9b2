#include "serve/chat/jinja_interpreter.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace orrery::jinja {

using Kind = Value::Kind;

namespace {
constexpr int kEvaluateDepthMax = 400;

Value undefined(std::string name) {
  Value value;
  value.name = std::move(name);
  return value;
}
}  // namespace

Interpreter::Interpreter(const TemplateLimits& limits, Dict variables) : limits_(limits) {
  Scope global;
  for (auto& [name, value] : variables) global[name] = std::move(value);
  scopes_.push_back(std::move(global));
  scopes_.emplace_back();
}

Text Interpreter::run(const Body& body) {
  Text out;
  if (run_body(body, &out) != Flow::kNext) fail("break or continue outside of a loop");
  return out;
}

void Interpreter::fail(const std::string& what) const { throw Error(ErrorCode::kInvalidArgument, "chat template: line {}: {}", line_, what); }

void Interpreter::spend(int64_t steps) {
  steps_ += steps;
  if (steps_ > limits_.steps_max) fail(fmt::format("more than {} steps; the template or the conversation is too large", limits_.steps_max));
}

void Interpreter::write(const Text& text, Text* out) {
  spend_bytes(text.size());
  if (out->size() + text.size() > limits_.output_bytes_max) fail(fmt::format("more than {} bytes of output", limits_.output_bytes_max));
  out->append(text);
}

Interpreter::Flow Interpreter::run_body(const Body& body, Text* out) {
  for (const auto& node : body) {
    const Flow flow = run_node(*node, out);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::run_node(const Node& node, Text* out) {
  spend();
  line_ = node.line;
  switch (node.kind) {
    case Node::Kind::kText: write(Text(node.text), out); return Flow::kNext;
    case Node::Kind::kOutput: write(to_text(evaluate(*node.expression)), out); return Flow::kNext;
    case Node::Kind::kIf:
      for (const auto& [condition, body] : node.branches)
        if (condition == nullptr || evaluate(*condition).truth()) return run_body(body, out);
      return Flow::kNext;
    case Node::Kind::kFor: return run_for(node, out);
    case Node::Kind::kSet: {
      Value value = evaluate(*node.expression);
      if (node.attribute.empty()) {
        assign(node.targets, value);
        return Flow::kNext;
      }
      const Value target = lookup(node.targets.back());
      if (!target.is_namespace) fail(fmt::format("'{}' is no namespace, so its attributes cannot be set", node.targets.back()));
      // A namespace inside itself would never be freed and never end.
      if (value.is(Kind::kDict) && value.is_namespace) fail("a namespace as an attribute of a namespace is not supported");
      for (auto& [key, old] : *target.dict) {
        if (key != node.attribute) continue;
        old = std::move(value);
        return Flow::kNext;
      }
      target.dict->emplace_back(node.attribute, std::move(value));
      return Flow::kNext;
    }
    case Node::Kind::kSetBlock: {
      Text text;
      scopes_.emplace_back();
      const Flow flow = run_body(node.body, &text);
      scopes_.pop_back();
      assign(node.targets, Value::of(std::move(text)));
      return flow;
    }
    case Node::Kind::kMacro: scopes_.back()[node.text] = make_macro(node); return Flow::kNext;
    case Node::Kind::kBreak: return Flow::kBreak;
    case Node::Kind::kContinue: return Flow::kContinue;
    case Node::Kind::kBlock: return run_body(node.body, out);
  }
  return Flow::kNext;
}

void Interpreter::assign(const std::vector<std::string>& targets, const Value& value) {
  if (targets.size() == 1) {
    scopes_.back()[targets[0]] = value;
    return;
  }
  const List values = items(value);
  if (values.size() != targets.size()) fail(fmt::format("{} values for {} names", values.size(), targets.size()));
  for (size_t i = 0; i < targets.size(); ++i) scopes_.back()[targets[i]] = values[i];
}

Interpreter::Flow Interpreter::run_for(const Node& node, Text* out) {
  const Value iterable = evaluate(*node.expression);
  List values = items(iterable);
  const auto in_scope = [&](auto&& body) {
    scopes_.emplace_back();
    body();
    scopes_.pop_back();
  };
  if (node.condition) {
    List kept;
    for (const Value& value : values) {
      spend();
      in_scope([&] {
        assign(node.targets, value);
        if (evaluate(*node.condition).truth()) kept.push_back(value);
      });
    }
    values = std::move(kept);
  }
  if (values.empty()) return run_body(node.otherwise, out);
  if (++depth_ > limits_.depth_max) fail(fmt::format("loops and macros nested deeper than {}", limits_.depth_max));
  Flow flow = Flow::kNext;
  const auto count = static_cast<int64_t>(values.size());
  for (int64_t i = 0; i < count && flow != Flow::kBreak; ++i) {
    spend();
    in_scope([&] {
      const auto at = [&](int64_t index) { return index >= 0 && index < count ? values[static_cast<size_t>(index)] : undefined("loop.previtem or loop.nextitem"); };
      assign(node.targets, values[static_cast<size_t>(i)]);
      scopes_.back()["loop"] = Value::of(Dict{{"index", Value::of(i + 1)}, {"index0", Value::of(i)}, {"first", Value::of(i == 0)}, {"last", Value::of(i + 1 == count)},
                                              {"length", Value::of(count)}, {"revindex", Value::of(count - i)}, {"revindex0", Value::of(count - i - 1)},
                                              {"previtem", at(i - 1)}, {"nextitem", at(i + 1)}, {"depth", Value::of(int64_t{1})},
                                              {"cycle", Value::of(Function([i](Interpreter& interpreter, const Arguments& arguments) {
                                                 if (arguments.positional.empty()) interpreter.fail("loop.cycle of nothing");
                                                 return arguments.positional[static_cast<size_t>(i) % arguments.positional.size()];
                                               }))}});
      flow = run_body(node.body, out);
    });
  }
  --depth_;
  return Flow::kNext;
}

Value Interpreter::lookup(const std::string& name) const {
  for (size_t i = scopes_.size(); i-- > 0;)
    if (const auto at = scopes_[i].find(name); at != scopes_[i].end()) return at->second;
  if (const Function* function = builtin(name)) return Value::of(Function(*function));
  return undefined(name);
}

Value Interpreter::evaluate(const Expr& expr) {
  spend();
  if (++depth_ > kEvaluateDepthMax) fail(fmt::format("an expression nested deeper than {}", kEvaluateDepthMax));
  Value value = evaluate_kind(expr);
  --depth_;
  return value;
}

Value Interpreter::evaluate_kind(const Expr& expr) {
  switch (expr.kind) {
    case Expr::Kind::kLiteral: return expr.literal;
    case Expr::Kind::kName: return lookup(expr.name);
    case Expr::Kind::kList: {
      List list;
      for (const ExprPtr& child : expr.children) list.push_back(evaluate(*child));
      return Value::of(std::move(list));
    }
    case Expr::Kind::kDict: {
      Dict dict;
      for (size_t i = 0; i < expr.keys.size(); ++i) dict.emplace_back(to_text(evaluate(*expr.keys[i])).bytes(), evaluate(*expr.children[i]));
      return Value::of(std::move(dict));
    }
    case Expr::Kind::kUnary: {
      const Value value = evaluate(*expr.children[0]);
      if (!value.is_number()) fail(fmt::format("{} of {}", expr.name, kind_name(value)));
      if (expr.name == "+") return value;
      return value.is(Kind::kFloat) ? Value::of(-value.real) : Value::of(-static_cast<int64_t>(value.number()));
    }
    case Expr::Kind::kBinary: return binary(expr);
    case Expr::Kind::kAnd: {
      Value left = evaluate(*expr.children[0]);
      return left.truth() ? evaluate(*expr.children[1]) : left;
    }
    case Expr::Kind::kOr: {
      Value left = evaluate(*expr.children[0]);
      return left.truth() ? left : evaluate(*expr.children[1]);
    }
    case Expr::Kind::kNot: return Value::of(!evaluate(*expr.children[0]).truth());
    case Expr::Kind::kTernary:
      if (evaluate(*expr.children[0]).truth()) return evaluate(*expr.children[1]);
      return expr.children[2] ? evaluate(*expr.children[2]) : undefined("an if without else");
    case Expr::Kind::kAttribute: return attribute(evaluate(*expr.children[0]), expr.name);
    case Expr::Kind::kItem: {
      const Value value = evaluate(*expr.children[0]);
      return item(value, evaluate(*expr.children[1]));
    }
    case Expr::Kind::kSlice: return slice(expr);
    case Expr::Kind::kCall: return call(expr);
    case Expr::Kind::kFilter: {
      const Value value = evaluate(*expr.children[0]);
      return filter(expr.name, value, arguments_of(expr.call));
    }
    case Expr::Kind::kTest: {
      const Value value = evaluate(*expr.children[0]);
      return Value::of(test(expr.name, value, arguments_of(expr.call)) != expr.negated);
    }
  }
  return {};
}

Arguments Interpreter::arguments_of(const Call& call) {
  Arguments arguments;
  for (const ExprPtr& argument : call.positional) arguments.positional.push_back(evaluate(*argument));
  for (const auto& [name, argument] : call.named) arguments.named.emplace_back(name, evaluate(*argument));
  return arguments;
}

Value Interpreter::binary(const Expr& expr) {
  const std::string& op = expr.name;
  const Value a = evaluate(*expr.children[0]), b = evaluate(*expr.children[1]);
  if (op == "==") return Value::of(equal(a, b));
  if (op == "!=") return Value::of(!equal(a, b));
  if (op == "in" || op == "not in") {
    if (!b.is(Kind::kString) && !b.is(Kind::kList) && !b.is(Kind::kDict)) fail(fmt::format("'in' of {} {}", kind_name(b), b.name));
    if (b.is(Kind::kString) && !a.is(Kind::kString)) fail(fmt::format("{} in a string", kind_name(a)));
    return Value::of(contains(b, a) == (op == "in"));
  }
  if (op == "~") {
    Text text = to_text(a);
    write(to_text(b), &text);
    return Value::of(std::move(text));
  }
  if (op == "<" || op == ">" || op == "<=" || op == ">=") {
    const int order = compare(*this, a, b);
    return Value::of(op == "<" ? order < 0 : op == ">" ? order > 0 : op == "<=" ? order <= 0 : order >= 0);
  }
  if (op == "+" && a.is(Kind::kString) && b.is(Kind::kString)) {
    Text text = *a.text;
    write(*b.text, &text);
    return Value::of(std::move(text));
  }
  if (op == "+" && a.is(Kind::kList) && b.is(Kind::kList)) {
    List list = *a.list;
    spend(static_cast<int64_t>(list.size() + b.list->size()));
    list.insert(list.end(), b.list->begin(), b.list->end());
    return Value::of(std::move(list));
  }
  if (op == "*" && a.is(Kind::kString) && b.is(Kind::kInt)) {
    Text text;
    for (int64_t i = 0; i < b.integer; ++i) {
      spend();
      write(*a.text, &text);
    }
    return Value::of(std::move(text));
  }
  if (!a.is_number() || !b.is_number()) {
    const auto describe = [](const Value& value) { return value.is(Kind::kUndefined) ? fmt::format("'{}', which is undefined", value.name) : std::string(kind_name(value)); };
    fail(fmt::format("{} of {} and {}", op, describe(a), describe(b)));
  }
  const bool whole = !a.is(Kind::kFloat) && !b.is(Kind::kFloat);
  const double x = a.number(), y = b.number();
  if ((op == "/" || op == "//" || op == "%") && y == 0) fail("division by zero");
  if (whole && op != "/") {
    const auto m = static_cast<int64_t>(x), n = static_cast<int64_t>(y);
    int64_t result = 0;
    bool overflow = false;
    if (op == "+") overflow = __builtin_add_overflow(m, n, &result);
    if (op == "-") overflow = __builtin_sub_overflow(m, n, &result);
    if (op == "*") overflow = __builtin_mul_overflow(m, n, &result);
    if (op == "//" || op == "%") {
      if (n == -1) return Value::of(op == "%" ? int64_t{0} : -std::max(m, -std::numeric_limits<int64_t>::max()));
      const int64_t quotient = m / n - ((m % n != 0 && (m % n < 0) != (n < 0)) ? 1 : 0);
      result = op == "//" ? quotient : m - quotient * n;
    }
    if (overflow) fail("an integer beyond 64 bits");
    return Value::of(result);
  }
  if (op == "+") return Value::of(x + y);
  if (op == "-") return Value::of(x - y);
  if (op == "*") return Value::of(x * y);
  if (op == "/") return Value::of(x / y);
  if (op == "//") return Value::of(std::floor(x / y));
  return Value::of(x - std::floor(x / y) * y);
}

Value Interpreter::attribute(const Value& value, const std::string& name) {
  if (value.is(Kind::kUndefined)) fail(fmt::format("'{}' is undefined, so it has no '{}'", value.name, name));
  if (value.is(Kind::kDict)) {
    // A mapping's method comes before its key of that name, as in Jinja.
    if (!value.is_namespace)
      if (Value found = method(*this, value, name); !found.is(Kind::kUndefined)) return found;
    if (const Value* found = find(*value.dict, name)) return *found;
    return undefined(name);
  }
  Value found = method(*this, value, name);
  if (found.is(Kind::kUndefined)) found.name = name;
  return found;
}

Value Interpreter::item(const Value& value, const Value& key) {
  if (value.is(Kind::kUndefined)) fail(fmt::format("'{}' is undefined, so it has no items", value.name));
  if (value.is(Kind::kDict)) {
    if (key.is(Kind::kString)) {
      if (const Value* found = find(*value.dict, key.bytes())) return *found;
      return attribute(value, key.bytes());
    }
    return undefined("an item");
  }
  if (key.is(Kind::kString)) return attribute(value, key.bytes());
  if (!key.is(Kind::kInt) || (!value.is(Kind::kList) && !value.is(Kind::kString))) return undefined("an item");
  if (value.is(Kind::kString)) {
    spend_bytes(value.text->size());
    const auto offsets = character_offsets(value.bytes());
    const auto count = static_cast<int64_t>(offsets.size()) - 1;
    const int64_t index = key.integer < 0 ? key.integer + count : key.integer;
    if (index < 0 || index >= count) return undefined("a character");
    return Value::of(value.text->slice(offsets[static_cast<size_t>(index)], offsets[static_cast<size_t>(index) + 1]));
  }
  const auto count = static_cast<int64_t>(value.list->size());
  const int64_t index = key.integer < 0 ? key.integer + count : key.integer;
  return index < 0 || index >= count ? undefined("an item") : (*value.list)[static_cast<size_t>(index)];
}

Value Interpreter::slice(const Expr& expr) {
  const Value value = evaluate(*expr.children[0]);
  if (value.is(Kind::kUndefined)) fail(fmt::format("'{}' is undefined, so it has no items", value.name));
  if (!value.is(Kind::kList) && !value.is(Kind::kString)) fail(fmt::format("a slice of {}", kind_name(value)));
  const auto bound = [&](size_t index) -> std::pair<bool, int64_t> {
    if (index >= expr.children.size() || expr.children[index] == nullptr) return {false, 0};
    const Value v = evaluate(*expr.children[index]);
    if (v.is(Kind::kNone)) return {false, 0};
    if (!v.is(Kind::kInt)) fail(fmt::format("a slice bound that is {}", kind_name(v)));
    return {true, v.integer};
  };
  const auto [has_begin, begin_value] = bound(1);
  const auto [has_end, end_value] = bound(2);
  const auto [has_step, step_value] = bound(3);
  const int64_t step = has_step ? std::clamp<int64_t>(step_value, -1'000'000'000, 1'000'000'000) : 1;
  if (step == 0) fail("a slice with step 0");
  std::vector<size_t> offsets;
  if (value.is(Kind::kString)) offsets = character_offsets(value.bytes());
  const int64_t count = value.is(Kind::kString) ? static_cast<int64_t>(offsets.size()) - 1 : static_cast<int64_t>(value.list->size());
  spend(count / 16);
  const int64_t lowest = step > 0 ? 0 : -1, highest = step > 0 ? count : count - 1;
  const auto place = [&](bool has, int64_t v, int64_t otherwise) { return has ? std::clamp(v < 0 ? std::max(v, -count - 1) + count : v, lowest, highest) : otherwise; };
  const int64_t begin = place(has_begin, begin_value, step > 0 ? lowest : highest), end = place(has_end, end_value, step > 0 ? highest : lowest);
  List list;
  Text text;
  if (value.is(Kind::kString) && step == 1) return Value::of(begin < end ? value.text->slice(offsets[static_cast<size_t>(begin)], offsets[static_cast<size_t>(end)]) : Text());
  for (int64_t i = begin; step > 0 ? i < end : i > end; i += step) {
    if (value.is(Kind::kList))
      list.push_back((*value.list)[static_cast<size_t>(i)]);
    else
      text.append(value.text->slice(offsets[static_cast<size_t>(i)], offsets[static_cast<size_t>(i) + 1]));
  }
  return value.is(Kind::kList) ? Value::of(std::move(list)) : Value::of(std::move(text));
}

Value Interpreter::call(const Expr& expr) {
  const Value callee = evaluate(*expr.children[0]);
  if (!callee.is(Kind::kFunction)) {
    const Expr& target = *expr.children[0];
    fail(fmt::format("'{}' is no function ({})", target.name, callee.is(Kind::kUndefined) ? "it is undefined or not supported" : std::string(kind_name(callee))));
  }
  const Arguments arguments = arguments_of(expr.call);
  const int line = line_;
  Value result = (*callee.function)(*this, arguments);
  line_ = line;
  return result;
}

Value Interpreter::make_macro(const Node& node) {
  return Value::of(Function([&node](Interpreter& interpreter, const Arguments& arguments) {
    Interpreter& self = interpreter;
    if (++self.depth_ > self.limits_.depth_max) self.fail(fmt::format("loops and macros nested deeper than {}", self.limits_.depth_max));
    Scope scope;
    if (arguments.positional.size() > node.targets.size()) self.fail(fmt::format("macro '{}' takes {} arguments, got {}", node.text, node.targets.size(), arguments.positional.size()));
    for (const auto& [name, value] : arguments.named)
      if (std::find(node.targets.begin(), node.targets.end(), name) == node.targets.end()) self.fail(fmt::format("macro '{}' has no parameter '{}'", node.text, name));
    // A macro sees the template's variables, not those of where it is called.
    std::vector<Scope> callers(std::make_move_iterator(self.scopes_.begin() + 2), std::make_move_iterator(self.scopes_.end()));
    self.scopes_.resize(2);
    self.scopes_.push_back(std::move(scope));
    for (size_t i = 0; i < node.targets.size(); ++i) {
      Value value;
      if (const Value* given = arguments.find(i, node.targets[i]))
        value = *given;
      else if (node.defaults[i])
        value = self.evaluate(*node.defaults[i]);
      else
        value = undefined(node.targets[i]);
      self.scopes_.back()[node.targets[i]] = std::move(value);
    }
    Text out;
    self.run_body(node.body, &out);
    self.scopes_.resize(2);
    self.scopes_.insert(self.scopes_.end(), std::make_move_iterator(callers.begin()), std::make_move_iterator(callers.end()));
    --self.depth_;
    return Value::of(std::move(out));
  }));
}

List Interpreter::items(const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined: return {};
    case Kind::kList: spend(static_cast<int64_t>(value.list->size()) / 8); return *value.list;
    case Kind::kDict: {
      List keys;
      for (const auto& [key, item] : *value.dict) keys.push_back(Value::of(key));
      return keys;
    }
    case Kind::kString: {
      List characters;
      const auto offsets = character_offsets(value.bytes());
      spend(static_cast<int64_t>(offsets.size()));
      for (size_t i = 0; i + 1 < offsets.size(); ++i) characters.push_back(Value::of(value.text->slice(offsets[i], offsets[i + 1])));
      return characters;
    }
    default: fail(fmt::format("{} cannot be looped over", kind_name(value)));
  }
}

}  // namespace orrery::jinja
