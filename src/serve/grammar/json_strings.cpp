#include "serve/grammar/json_strings.h"

#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace orrery::grammar {
namespace {

const std::map<std::string, std::string> kFormats = {
    {"date", R"(^[1-9]\d{3}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))$)"},
    {"time", R"(^([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$)"},
    {"date-time",
     R"(^[1-9]\d{3}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$)"},
    {"uuid", R"(^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$)"},
    {"ipv4", R"(^((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)$)"},
    {"ipv6", R"(^([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}$)"},
    {"email", R"(^[A-Za-z0-9_+-]{1,30}(\.[A-Za-z0-9_+-]{1,30}){0,3}@[A-Za-z0-9]{1,30}(-[A-Za-z0-9]{1,30}){0,2}(\.[A-Za-z]{2,20}){1,3}$)"},
    {"hostname", R"(^[A-Za-z0-9]{1,30}(-[A-Za-z0-9]{1,30}){0,1}(\.[A-Za-z0-9]{1,30}){0,4}$)"},
    {"uri", R"(^[a-z][a-z0-9+-]{1,15}://[A-Za-z0-9.-]{1,100}(:\d{1,4})?(/[A-Za-z0-9_.~%+-]{0,100}){0,16}$)"},
    {"duration", R"(^P(\d{1,4}D|\d{1,4}W|T\d{1,4}[HMS])$)"},
};

}  // namespace

int json_set(Source& source, const CodeSet& set) {
  static const CodeSet kPlain = complement({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}});
  std::vector<int> ways;
  if (CodeSet plain = intersection(set, kPlain); !plain.empty()) ways.push_back(source.set(std::move(plain)));
  for (const auto& [low, high] : intersection(set, {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}})) {
    for (uint32_t c = low; c <= high; ++c) {
      const std::string quoted = json_quoted(std::string(1, static_cast<char>(c)));
      ways.push_back(source.bytes(quoted.substr(1, quoted.size() - 2)));
    }
  }
  return source.choice(std::move(ways));
}

int JsonStrings::character() {
  if (character_rule_ < 0) {
    const CodeSet hex = {{'0', '9'}, {'A', 'F'}, {'a', 'f'}}, d = {{'D', 'D'}, {'d', 'd'}};
    const auto h = [&] { return source_.set(hex); };
    const int plain = source_.set(complement({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}}));
    const int simple = source_.sequence({source_.bytes("\\"), source_.set({{'"', '"'}, {'/', '/'}, {'\\', '\\'}, {'b', 'b'}, {'f', 'f'}, {'n', 'n'}, {'r', 'r'}, {'t', 't'}})});
    const int bmp = source_.sequence({source_.bytes("\\u"), source_.set({{'0', '9'}, {'A', 'C'}, {'E', 'F'}, {'a', 'c'}, {'e', 'f'}}), h(), h(), h()});
    const int low_d = source_.sequence({source_.bytes("\\u"), source_.set(d), source_.set({{'0', '7'}}), h(), h()});
    const int pair = source_.sequence({source_.bytes("\\u"), source_.set(d), source_.set({{'8', '9'}, {'A', 'B'}, {'a', 'b'}}), h(), h(), source_.bytes("\\u"), source_.set(d),
                                       source_.set({{'C', 'F'}, {'c', 'f'}}), h(), h()});
    character_rule_ = source_.add_rule("character");
    source_.define(character_rule_, source_.choice({plain, simple, bmp, low_d, pair}));
    character_inline_ = source_.choice({plain, simple, bmp, low_d, pair});
  }
  return character_inline_;
}

int JsonStrings::between(uint32_t min, uint32_t max) {
  const int plain = character();
  const bool unbounded = min == 0 && max == kUnbounded;
  return source_.sequence({source_.bytes("\""), source_.repeat(unbounded ? plain : source_.rule(character_rule_), min, max), source_.bytes("\"")});
}

int JsonStrings::of_schema(const Json& node, const std::string& where) {
  const auto [min, max] = count_range(node, "minLength", "maxLength", where);
  const bool bounded = min > 0 || max != kUnbounded;
  if (node.contains("pattern") && node.contains("format")) fail(pointer(where, "format"), "'format' beside 'pattern'");
  for (const char* key : {"pattern", "format"}) {
    if (!node.contains(key)) continue;
    if (!node[key].is_string()) malformed(pointer(where, key), fmt::format("{} is no string", key));
    if (bounded) fail(pointer(where, key), fmt::format("'{}' beside minLength or maxLength (put the length into the pattern)", key));
    std::string pattern = node[key].get<std::string>();
    if (std::string_view(key) == "format") {
      const auto format = kFormats.find(pattern);
      if (format == kFormats.end()) fail(pointer(where, key), fmt::format("the format '{:.40}' is not supported", pattern));
      pattern = format->second;
    }
    try {
      return source_.sequence({source_.bytes("\""), parse_regex(source_, pattern, true, json_set), source_.bytes("\"")});
    } catch (const Error& error) {
      throw Error(error.code(), "json_schema: {} at {}", error.what(), pointer(where, key));
    }
  }
  return between(min, max);
}

int JsonStrings::key_except(const std::set<std::string>& names) {
  const CodeSet plain = complement({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}});
  std::vector<std::vector<uint32_t>> keys;
  for (const std::string& name : names) {
    std::vector<uint32_t> key;
    for (size_t i = 0; i < name.size();) {
      const DecodedChar c = decode_utf8(name.data() + i, name.data() + name.size());
      key.push_back(c.code_point);
      i += c.length;
    }
    keys.push_back(std::move(key));
  }
  const auto node = [&](auto&& self, const std::vector<const std::vector<uint32_t>*>& here, size_t depth) -> int {
    std::map<uint32_t, std::vector<const std::vector<uint32_t>*>> next;
    bool ends = false;
    for (const auto* key : here) {
      if (key->size() == depth)
        ends = true;
      else
        next[(*key)[depth]].push_back(key);
    }
    CodeSet taken;
    std::vector<int> ways;
    for (const auto& [c, below] : next) {
      taken.push_back({c, c});
      if (const CodeSet one = intersection({{c, c}}, plain); !one.empty() && depth < 200) ways.push_back(source_.sequence({source_.set(one), self(self, below, depth + 1)}));
    }
    ways.push_back(source_.sequence({source_.set(intersection(complement(normalized(taken)), plain)), source_.repeat(source_.set(plain), 0, kUnbounded)}));
    if (!ends) ways.push_back(source_.bytes(""));
    return source_.choice(std::move(ways));
  };
  std::vector<const std::vector<uint32_t>*> all;
  for (const auto& key : keys) all.push_back(&key);
  return source_.sequence({source_.bytes("\""), node(node, all, 0), source_.bytes("\"")});
}

}  // namespace orrery::grammar
