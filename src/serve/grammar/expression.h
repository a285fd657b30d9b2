// What the front ends (regex, GBNF, JSON schema) produce: rules over expressions of code points. Internal to src/serve/grammar.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "serve/grammar/grammar.h"

namespace orrery::grammar {

/// Sorted, disjoint, not adjacent ranges of code points, surrogates left out.
using CodeSet = std::vector<std::pair<uint32_t, uint32_t>>;
CodeSet normalized(CodeSet set);
CodeSet complement(const CodeSet& set);
CodeSet intersection(const CodeSet& a, const CodeSet& b);
CodeSet join(const CodeSet& a, const CodeSet& b);

constexpr uint32_t kUnbounded = ~0u;

struct Expression {
  enum class Kind { kBytes, kSet, kSequence, kChoice, kRepeat, kRule } kind = Kind::kSequence;
  std::string bytes;          // kBytes
  CodeSet set;                // kSet; empty: nothing matches
  std::vector<int> children;  // kSequence (none: the empty text), kChoice (none: nothing), kRepeat (one)
  uint32_t min = 0, max = 0;  // kRepeat; max may be kUnbounded
  int rule = -1;              // kRule
};

/// Expressions and rules by index; rule 0 is the root.
class Source {
 public:
  explicit Source(const GrammarLimits& limits) : limits_(limits) { rules_.push_back({"root", -1}); }
  int bytes(std::string text);
  int set(CodeSet set);
  int sequence(std::vector<int> children);
  int choice(std::vector<int> children);
  int repeat(int child, uint32_t min, uint32_t max);
  int optional(int child) { return repeat(child, 0, 1); }
  int rule(int index);
  /// A new rule without a body yet.
  int add_rule(std::string name);
  void define(int rule, int expression) { rules_[static_cast<size_t>(rule)].expression = expression; }

  struct Rule {
    std::string name;
    int expression;
  };
  const std::vector<Rule>& rules() const { return rules_; }
  const Expression& at(int index) const { return expressions_[static_cast<size_t>(index)]; }
  const GrammarLimits& limits() const { return limits_; }

 private:
  int add(Expression expression);
  GrammarLimits limits_;
  std::vector<Expression> expressions_;
  std::vector<Rule> rules_;
};

/// A regex over code points as an expression. `search`: JSON Schema's meaning, a match anywhere unless anchored; else the whole text.
/// `encode` maps each set of code points to an expression (JSON strings escape some). Errors: kInvalidArgument, kUnsupported with offset.
using EncodeSet = int (*)(Source& source, const CodeSet& set);
int parse_regex(Source& source, std::string_view pattern, bool search, EncodeSet encode);
int plain_set(Source& source, const CodeSet& set);

/// Defines the rules of a GBNF text. Errors: kInvalidArgument with line.
void parse_gbnf(Source& source, std::string_view text);

/// The expression of a schema's values. Errors: kInvalidArgument, kUnsupported with JSON pointer.
int parse_schema(Source& source, std::string_view schema_text);
int any_object(Source& source);
/// The string as JSON writes it, quotes and all.
std::string json_quoted(std::string_view text);

}  // namespace orrery::grammar
