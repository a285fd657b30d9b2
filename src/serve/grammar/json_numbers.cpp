#include "serve/grammar/json_numbers.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"

namespace orrery::grammar {
namespace {

constexpr int64_t kIntegerMax = 999'999'999'999'999;  // 15 digits: exact in a double

// A decimal bound: digits before and after the point, and its sign.
struct Decimal {
  bool negative = false;
  int64_t integer = 0;
  std::string fraction;  // no trailing zeros
  bool is_zero() const { return integer == 0 && fraction.empty(); }
  double value() const {
    const double magnitude = std::stod(fmt::format("{}.{}0", integer, fraction));
    return negative ? -magnitude : magnitude;
  }
};

struct Bound {
  Decimal value;
  bool exclusive = false;
};

Decimal decimal(const Json& value, const std::string& where) {
  if (!value.is_number()) malformed(where, "a bound that is no number");
  std::string text = value.dump();
  Decimal result;
  if (text.starts_with('-')) {
    result.negative = true;
    text.erase(0, 1);
  }
  if (text.find_first_of("eEn") != std::string::npos) {
    // Far beyond the digits that are written, or closer to zero than they: kept as the largest, refused as the smallest.
    if (std::abs(value.get<double>()) < 1) fail(where, fmt::format("the bound {} (use at least 0.0001 in size)", value.dump()));
    result.integer = kIntegerMax + 1;
    return result;
  }
  const size_t point = text.find('.');
  result.integer = point > 15 && text.size() > 15 && (point == std::string::npos ? text.size() : point) > 15 ? kIntegerMax + 1 : std::stoll(text.substr(0, point));
  if (point != std::string::npos) result.fraction = text.substr(point + 1);
  while (result.fraction.ends_with('0')) result.fraction.pop_back();
  if (result.is_zero()) result.negative = false;
  return result;
}

class Numbers {
 public:
  explicit Numbers(Source& source) : source_(source) {}

  int any() {
    const int exponent = source_.optional(source_.sequence({source_.set({{'E', 'E'}, {'e', 'e'}}), source_.optional(source_.set({{'+', '+'}, {'-', '-'}})), digits(1, 2)}));
    return source_.sequence({source_.optional(source_.bytes("-")), whole(), fraction(), exponent});
  }

  int bounded(const Json& node, bool integer, const std::string& where) {
    std::optional<Bound> low, high;
    const auto take = [&](const char* key, bool exclusive, bool is_low) {
      if (!node.contains(key)) return;
      if (node[key].is_boolean()) fail(pointer(where, key), fmt::format("{} as a boolean (draft 4); give the number", key));
      const Bound bound{decimal(node[key], pointer(where, key)), exclusive};
      std::optional<Bound>& mine = is_low ? low : high;
      const double old = mine ? mine->value.value() : 0, now = bound.value.value();
      if (!mine || (is_low ? now > old || (now == old && exclusive) : now < old || (now == old && exclusive))) mine = bound;
    };
    take("minimum", false, true);
    take("exclusiveMinimum", true, true);
    take("maximum", false, false);
    take("exclusiveMaximum", true, false);
    if (!low && !high) return integer ? source_.sequence({source_.optional(source_.bytes("-")), whole()}) : any();
    // The written digits reach no further.
    const auto clamp = [&](std::optional<Bound>& bound, bool is_low) {
      if (!bound) bound = Bound{{is_low, kIntegerMax, ""}, false};
      if (bound->value.integer <= kIntegerMax) return;
      if (bound->value.negative != is_low) fail(where, "a bound of more than 15 digits that excludes every shorter number");
      bound = Bound{{is_low, kIntegerMax, ""}, false};
    };
    clamp(low, true);
    clamp(high, false);
    std::vector<int> ways;
    if (integer) {
      // The whole numbers from `first` to `last`.
      const auto edge = [](const Bound& bound, bool is_low) {
        int64_t value = bound.value.negative ? -bound.value.integer : bound.value.integer;
        if (!bound.value.fraction.empty()) return value + (is_low ? (bound.value.negative ? 0 : 1) : (bound.value.negative ? -1 : 0));
        return value + (bound.exclusive ? (is_low ? 1 : -1) : 0);
      };
      const int64_t first = std::max(edge(*low, true), -kIntegerMax), last = std::min(edge(*high, false), kIntegerMax);
      if (first > last) malformed(where, "no integer lies between the bounds");
      if (first < 0) ways.push_back(source_.sequence({source_.bytes("-"), whole_between(std::max<int64_t>(1, -last), -first)}));
      if (last >= 0) ways.push_back(whole_between(std::max<int64_t>(0, first), last));
    } else {
      if (low->value.value() > high->value.value() || (low->value.value() == high->value.value() && (low->exclusive || high->exclusive))) malformed(where, "no number lies between the bounds");
      const Bound above_zero{{}, true}, from_zero{};
      if (low->value.negative) {
        const Bound smallest = high->value.negative ? Bound{{false, high->value.integer, high->value.fraction}, high->exclusive} : above_zero;
        decimals_between(smallest, {{false, low->value.integer, low->value.fraction}, low->exclusive}, "-", &ways);
      }
      if (!high->value.negative && !(high->value.is_zero() && high->exclusive)) decimals_between(low->value.negative ? from_zero : *low, *high, "", &ways);
    }
    return source_.choice(std::move(ways));
  }

 private:
  int digits(uint32_t min, uint32_t max) { return source_.repeat(source_.set({{'0', '9'}}), min, max); }
  int digit(char low, char high) { return source_.set({{static_cast<uint32_t>(low), static_cast<uint32_t>(high)}}); }
  int whole() { return source_.choice({source_.bytes("0"), source_.sequence({digit('1', '9'), digits(0, 14)})}); }
  int fraction() { return source_.optional(source_.sequence({source_.bytes("."), digits(1, 16)})); }

  // Whole numbers from low to high, 0 <= low <= high, by number of digits.
  int whole_between(int64_t low, int64_t high) {
    std::vector<int> ways;
    for (int64_t first = low; first <= high;) {
      const std::string text = std::to_string(first);
      const int64_t longest = std::stoll(std::string(text.size(), '9'));
      const int64_t last = std::min(high, longest);
      ways.push_back(same_length(text, std::to_string(last)));
      first = last + 1;
    }
    return source_.choice(std::move(ways));
  }

  int same_length(const std::string& low, const std::string& high) {
    const auto rest = static_cast<uint32_t>(low.size() - 1);
    if (rest == 0) return digit(low[0], high[0]);
    if (low[0] == high[0]) return source_.sequence({source_.bytes(low.substr(0, 1)), same_length(low.substr(1), high.substr(1))});
    std::vector<int> ways = {source_.sequence({source_.bytes(low.substr(0, 1)), same_length(low.substr(1), std::string(rest, '9'))}),
                             source_.sequence({source_.bytes(high.substr(0, 1)), same_length(std::string(rest, '0'), high.substr(1))})};
    if (high[0] - low[0] > 1) ways.push_back(source_.sequence({digit(static_cast<char>(low[0] + 1), static_cast<char>(high[0] - 1)), digits(rest, rest)}));
    return source_.choice(std::move(ways));
  }

  // Decimals from low to high, both at least 0.
  void decimals_between(const Bound& low, const Bound& high, const std::string& sign, std::vector<int>* ways) {
    const auto add = [&](int whole_part, int fraction_part) {
      if (fraction_part >= 0) ways->push_back(source_.sequence({source_.bytes(sign), whole_part, fraction_part}));
    };
    const int64_t first = low.value.integer, last = high.value.integer;
    if (first == last) return add(source_.bytes(std::to_string(first)), fraction_between(low.value.fraction, low.exclusive, &high.value.fraction, high.exclusive, true));
    add(source_.bytes(std::to_string(first)), fraction_between(low.value.fraction, low.exclusive, nullptr, false, true));
    add(source_.bytes(std::to_string(last)), fraction_between("", false, &high.value.fraction, high.exclusive, true));
    if (last - first > 1) add(whole_between(first + 1, last - 1), fraction());
  }

  // The digits after what was written so far, with the point before them when `start`: at least `low` (above it when low_open), at most
  // *high (below it when high_open; null: no bound). -1: there are none. Digits end where `low` has none left, so what follows is bounded.
  int fraction_between(const std::string& low, bool low_open, const std::string* high, bool high_open, bool start) {
    constexpr uint32_t kMore = 8;  // digits behind the bound's own
    std::vector<int> ways;
    const auto with_point = [&](int tail) { return start ? source_.sequence({source_.bytes("."), tail}) : tail; };
    const bool low_done = low.empty();
    // Ending here writes zeros from here on.
    const bool zero_above_low = low_done && !low_open;
    const bool zero_below_high = high == nullptr || !high->empty() || !high_open;
    if (zero_above_low && zero_below_high) ways.push_back(source_.bytes(""));
    if (high == nullptr && low_done && !low_open) {
      ways.push_back(with_point(digits(1, kMore)));
      return source_.choice(std::move(ways));
    }
    if (high == nullptr && low_done) {  // above zero: some digit is not 0
      ways.push_back(with_point(source_.sequence({source_.repeat(source_.bytes("0"), 0, kMore), digit('1', '9'), digits(0, kMore)})));
      return source_.choice(std::move(ways));
    }
    if (high != nullptr && high->empty()) {
      // Nothing but zeros may follow, and they are the same value as ending here.
      return ways.empty() ? -1 : source_.choice(std::move(ways));
    }
    const char low_digit = low_done ? '0' : low[0], high_digit = high == nullptr ? '9' : (*high)[0];
    const std::string low_rest = low_done ? "" : low.substr(1), high_rest = high == nullptr ? "" : high->substr(1);
    const auto add = [&](char c, int tail) {
      if (tail >= 0) ways.push_back(with_point(source_.sequence({source_.bytes(std::string(1, c)), tail})));
    };
    if (high != nullptr && low_digit == high_digit) {
      add(low_digit, fraction_between(low_rest, low_open, &high_rest, high_open, false));
    } else {
      add(low_digit, fraction_between(low_rest, low_open, nullptr, false, false));
      const char last_free = high == nullptr ? '9' : static_cast<char>(high_digit - 1);
      if (last_free > low_digit) ways.push_back(with_point(source_.sequence({digit(static_cast<char>(low_digit + 1), last_free), digits(0, kMore)})));
      if (high != nullptr) add(high_digit, fraction_between("", false, &high_rest, high_open, false));
    }
    return ways.empty() ? -1 : source_.choice(std::move(ways));
  }

  Source& source_;
};

}  // namespace

int any_number(Source& source) { return Numbers(source).any(); }
int bounded_number(Source& source, const Json& node, bool integer, const std::string& where) { return Numbers(source).bounded(node, integer, where); }

}  // namespace orrery::grammar
