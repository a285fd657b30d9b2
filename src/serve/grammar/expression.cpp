#include "serve/grammar/expression.h"

#include <algorithm>

#include "base/error.h"

namespace orrery::grammar {

CodeSet normalized(CodeSet set) {
  std::sort(set.begin(), set.end());
  CodeSet result;
  const auto put = [&](uint32_t low, uint32_t high) {
    if (low > high) return;
    if (!result.empty() && low <= result.back().second + 1)
      result.back().second = std::max(result.back().second, high);
    else
      result.push_back({low, high});
  };
  CodeSet valid;
  for (auto [low, high] : set) {
    high = std::min<uint32_t>(high, 0x10FFFF);
    if (low <= 0xD7FF) valid.push_back({low, std::min<uint32_t>(high, 0xD7FF)});
    if (high >= 0xE000) valid.push_back({std::max<uint32_t>(low, 0xE000), high});
  }
  std::sort(valid.begin(), valid.end());
  for (const auto& [low, high] : valid) put(low, high);
  return result;
}

CodeSet complement(const CodeSet& set) {
  CodeSet result;
  uint32_t next = 0;
  for (const auto& [low, high] : set) {
    if (low > next) result.push_back({next, low - 1});
    next = high + 1;
  }
  if (next <= 0x10FFFF) result.push_back({next, 0x10FFFF});
  return normalized(std::move(result));
}

CodeSet intersection(const CodeSet& a, const CodeSet& b) {
  CodeSet result;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    const uint32_t low = std::max(a[i].first, b[j].first), high = std::min(a[i].second, b[j].second);
    if (low <= high) result.push_back({low, high});
    if (a[i].second < b[j].second)
      ++i;
    else
      ++j;
  }
  return result;
}

CodeSet join(const CodeSet& a, const CodeSet& b) {
  CodeSet both = a;
  both.insert(both.end(), b.begin(), b.end());
  return normalized(std::move(both));
}

int Source::add(Expression expression) {
  if (expressions_.size() >= limits_.states_max)
    throw Error(ErrorCode::kUnsupported, "the grammar has more than {} parts; make it smaller", limits_.states_max);
  expressions_.push_back(std::move(expression));
  return static_cast<int>(expressions_.size()) - 1;
}

int Source::bytes(std::string text) {
  Expression e;
  e.kind = Expression::Kind::kBytes;
  e.bytes = std::move(text);
  return add(std::move(e));
}

int Source::set(CodeSet set) {
  Expression e;
  e.kind = Expression::Kind::kSet;
  e.set = std::move(set);
  return add(std::move(e));
}

int Source::sequence(std::vector<int> children) {
  if (children.size() == 1) return children[0];
  Expression e;
  e.kind = Expression::Kind::kSequence;
  e.children = std::move(children);
  return add(std::move(e));
}

int Source::choice(std::vector<int> children) {
  if (children.size() == 1) return children[0];
  Expression e;
  e.kind = Expression::Kind::kChoice;
  e.children = std::move(children);
  return add(std::move(e));
}

int Source::repeat(int child, uint32_t min, uint32_t max) {
  ORRERY_CHECK(min <= max, "{} {}", min, max);
  if (min == 1 && max == 1) return child;
  Expression e;
  e.kind = Expression::Kind::kRepeat;
  e.children = {child};
  e.min = min;
  e.max = max;
  return add(std::move(e));
}

int Source::rule(int index) {
  Expression e;
  e.kind = Expression::Kind::kRule;
  e.rule = index;
  return add(std::move(e));
}

int Source::add_rule(std::string name) {
  if (rules_.size() >= limits_.states_max) throw Error(ErrorCode::kUnsupported, "the grammar has more than {} rules; make it smaller", limits_.states_max);
  rules_.push_back({std::move(name), -1});
  return static_cast<int>(rules_.size()) - 1;
}

int plain_set(Source& source, const CodeSet& set) { return source.set(set); }

}  // namespace orrery::grammar
