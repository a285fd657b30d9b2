// The syntax tree of a template. Internal to src/serve/chat.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "serve/chat/jinja_value.h"

namespace orrery::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Call {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
};

struct Expr {
  enum class Kind { kLiteral, kName, kList, kDict, kUnary, kBinary, kAnd, kOr, kNot, kTernary, kAttribute, kItem, kSlice, kCall, kFilter, kTest } kind;
  int line = 0;
  Value literal;
  std::string name;                // name, attribute, operator, filter or test
  std::vector<ExprPtr> children;   // null where a slice has no bound, or a ternary no else
  std::vector<ExprPtr> keys;       // of a dict
  Call call;                       // of a call, filter or test
  bool negated = false;            // "is not"
};

struct Node;
using Body = std::vector<std::unique_ptr<Node>>;

struct Node {
  enum class Kind { kText, kOutput, kIf, kFor, kSet, kSetBlock, kMacro, kBreak, kContinue, kBlock } kind;
  int line = 0;
  std::string text;                       // kText; the macro's name
  ExprPtr expression, condition;          // output, iterable, value; the loop's filter
  std::vector<std::pair<ExprPtr, Body>> branches;  // kIf; a null condition is else
  std::vector<std::string> targets;       // kFor, kSet; the macro's parameters
  std::string attribute;                  // set ns.attribute
  std::vector<ExprPtr> defaults;          // per parameter, null: none
  Body body, otherwise;
};

/// Errors: kUnsupported, kInvalidArgument with the line.
Body parse_template(std::string_view source);

}  // namespace orrery::jinja
