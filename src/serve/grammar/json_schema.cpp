// JSON Schema to expressions. Every text that the result matches is valid under the schema; not every valid text is matched: properties
// come in the schema's order, nothing beyond the named properties unless additionalProperties says so, white space is at most a blank or
// a line break with an indentation, numbers have at most 16 digits. A keyword that cannot be kept is an error at its JSON pointer.
#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "base/error.h"
#include "serve/grammar/expression.h"
#include "tokenizer/utf8.h"

namespace orrery::grammar {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kDepthMax = 96;
constexpr int64_t kIntegerMax = 999'999'999'999'999;  // 15 digits: exact in a double
constexpr uint32_t kCountMax = 100'000;

// What says nothing about the values.
const std::set<std::string> kAnnotations = {"title", "description", "default", "examples", "example", "$schema", "$id", "id", "$comment", "$defs", "definitions",
                                            "deprecated", "readOnly", "writeOnly", "$anchor", "contentMediaType", "contentEncoding", "strict"};
const std::set<std::string> kObjectKeywords = {"properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties", "maxProperties"};
const std::set<std::string> kArrayKeywords = {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"};
const std::set<std::string> kStringKeywords = {"minLength", "maxLength", "pattern", "format"};
const std::set<std::string> kNumberKeywords = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"};

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

class Converter {
 public:
  Converter(Source& source, const Json& root) : source_(source), root_(root) {}

  int schema(const Json& node, const std::string& where, int depth) {
    if (depth > kDepthMax) fail(where, fmt::format("schemas nested deeper than {}", kDepthMax));
    if (node.is_boolean()) {
      if (node.get<bool>()) return any();
      malformed(where, "the schema false allows no value");
    }
    if (!node.is_object()) malformed(where, "wanted a schema (an object or a boolean)");
    if (node.contains("$ref")) return reference(node, where, depth);
    if (node.contains("allOf")) return schema(merged_all_of(node, where, depth), where, depth + 1);
    for (const char* keyword : {"anyOf", "oneOf"})
      if (node.contains(keyword)) return alternatives(node, keyword, where, depth);
    if (node.contains("const") || node.contains("enum")) return literals(node, where);
    std::vector<std::string> types = types_of(node, where);
    check_keywords(node, where);
    std::vector<int> ways;
    for (const std::string& type : types) ways.push_back(typed(node, type, where, depth));
    return source_.choice(std::move(ways));
  }

  int any() {
    if (any_rule_ < 0) {
      any_rule_ = source_.add_rule("value");
      source_.define(any_rule_, source_.choice({object_of_any(), array_of(any(), 0, kUnbounded), string_between(0, kUnbounded), number(), source_.bytes("true"),
                                                source_.bytes("false"), source_.bytes("null")}));
    }
    return source_.rule(any_rule_);
  }

  int object_of_any() { return map_of(string_between(0, kUnbounded), any(), 0, kUnbounded); }

 private:
  [[noreturn]] static void fail(const std::string& where, const std::string& what) { throw Error(ErrorCode::kUnsupported, "json_schema: {} at {}", what, where.empty() ? "the root" : where); }
  [[noreturn]] static void malformed(const std::string& where, const std::string& what) { throw Error(ErrorCode::kInvalidArgument, "json_schema: {} at {}", what, where.empty() ? "the root" : where); }

  static std::string pointer(const std::string& where, const std::string& key) {
    std::string escaped;
    for (const char c : key) escaped += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
    return where + "/" + escaped;
  }

  // --- references, combinations

  const Json& resolve(const Json& node, const std::string& where) const {
    const Json* at = &node;
    for (int hops = 0; at->is_object() && at->contains("$ref"); ++hops) {
      if (hops > 64) fail(where, "$ref leads through more than 64 other $refs");
      at = &target((*at)["$ref"], where);
    }
    return *at;
  }

  const Json& target(const Json& reference, const std::string& where) const {
    if (!reference.is_string()) malformed(pointer(where, "$ref"), "$ref is no string");
    const auto& text = reference.get_ref<const std::string&>();
    if (text != "#" && !text.starts_with("#/")) fail(pointer(where, "$ref"), fmt::format("$ref '{}' (only references into this schema, #/..., are followed)", text));
    try {
      return root_.at(nlohmann::json_pointer<std::string>(text.substr(1)));
    } catch (const nlohmann::json::exception&) {
      malformed(pointer(where, "$ref"), fmt::format("$ref '{}' leads nowhere", text));
    }
  }

  int reference(const Json& node, const std::string& where, int depth) {
    for (const auto& [key, value] : node.items())
      if (key != "$ref" && !kAnnotations.contains(key)) return schema(merge(without(node, "$ref"), resolve(node, where), where), where, depth + 1);
    const Json& to = target(node["$ref"], where);
    const auto text = node["$ref"].get<std::string>();
    const auto [at, added] = reference_rules_.try_emplace(text, -1);
    if (added) {
      at->second = source_.add_rule(text);
      const int rule = at->second;
      source_.define(rule, schema(to, text.substr(1), depth + 1));
      return source_.rule(rule);
    }
    return source_.rule(at->second);
  }

  static Json without(const Json& node, const std::string& key) {
    Json copy = node;
    copy.erase(key);
    return copy;
  }

  Json merged_all_of(const Json& node, const std::string& where, int depth) const {
    if (depth > kDepthMax) fail(where, fmt::format("schemas nested deeper than {}", kDepthMax));
    const Json& list = node["allOf"];
    if (!list.is_array() || list.empty()) malformed(pointer(where, "allOf"), "wanted a non-empty array");
    Json result = without(node, "allOf");
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string place = pointer(where, fmt::format("allOf/{}", i));
      const Json& part = resolve(list[i], place);
      if (!part.is_object()) fail(place, "allOf of something that is no object");
      result = merge(result, part.contains("allOf") ? merged_all_of(part, place, depth + 1) : part, place);
    }
    return result;
  }

  // Both schemas at once, where that is one schema of the kind that is supported.
  Json merge(const Json& a, const Json& b, const std::string& where) const {
    if (!a.is_object() || !b.is_object()) fail(where, "a combination with a boolean schema");
    const auto names = [](const Json& node) {
      std::set<std::string> result;
      if (node.contains("properties") && node["properties"].is_object())
        for (const auto& [key, value] : node["properties"].items()) result.insert(key);
      return result;
    };
    const bool closes = (a.contains("additionalProperties") && a["additionalProperties"] != Json(true)) || (b.contains("additionalProperties") && b["additionalProperties"] != Json(true));
    if (closes && (names(a) != names(b) || a.contains("patternProperties") || b.contains("patternProperties")))
      fail(where, "additionalProperties beside properties of another part of the combination");
    Json result = a;
    for (const auto& [key, value] : b.items()) {
      if (kAnnotations.contains(key)) continue;
      if (!result.contains(key)) {
        result[key] = value;
        continue;
      }
      Json& mine = result[key];
      if (mine == value) continue;
      if (key == "type") {
        const auto listed = [](const Json& type) { return type.is_array() ? type : Json::array({type}); };
        Json both = Json::array();
        for (const Json& type : listed(mine)) {
          for (const Json& other : listed(value)) {
            if (type == other)
              both.push_back(type);
            else if ((type == "integer" && other == "number") || (type == "number" && other == "integer"))
              both.push_back("integer");
          }
        }
        if (both.empty()) malformed(where, "the types of the combined schemas exclude each other");
        mine = both;
      } else if (key == "required" && mine.is_array() && value.is_array()) {
        for (const Json& name : value)
          if (std::find(mine.begin(), mine.end(), name) == mine.end()) mine.push_back(name);
      } else if (key == "properties" && mine.is_object() && value.is_object()) {
        for (const auto& [name, schema] : value.items()) mine[name] = mine.contains(name) ? Json{{"allOf", Json::array({mine[name], schema})}} : schema;
      } else if ((key == "minimum" || key == "minLength" || key == "minItems" || key == "minProperties" || key == "exclusiveMinimum") && mine.is_number() && value.is_number()) {
        mine = mine < value ? value : mine;
      } else if ((key == "maximum" || key == "maxLength" || key == "maxItems" || key == "maxProperties" || key == "exclusiveMaximum") && mine.is_number() && value.is_number()) {
        mine = mine < value ? mine : value;
      } else {
        fail(where, fmt::format("'{}' in two parts of a combination", key));
      }
    }
    return result;
  }

  int alternatives(const Json& node, const std::string& keyword, const std::string& where, int depth) {
    const std::string place = pointer(where, keyword);
    const Json& list = node[keyword];
    if (!list.is_array() || list.empty()) malformed(place, "wanted a non-empty array");
    Json base = without(node, keyword);
    bool has_base = false;
    for (const auto& [key, value] : base.items()) has_base = has_base || !kAnnotations.contains(key);
    std::vector<int> ways;
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string branch = pointer(place, std::to_string(i));
      if (keyword == "oneOf")
        for (size_t j = 0; j < i; ++j)
          if (!disjoint(list[i], list[j], branch, 0)) fail(branch, fmt::format("a oneOf whose alternatives {} and {} cannot be told apart by type, const or a required const property; write anyOf", j, i));
      ways.push_back(schema(has_base ? merge(base, resolve(list[i], branch), branch) : list[i], branch, depth + 1));
    }
    return source_.choice(std::move(ways));
  }

  std::optional<std::vector<Json>> listed_values(const Json& node) const {
    if (node.contains("const")) return std::vector<Json>{node["const"]};
    if (node.contains("enum") && node["enum"].is_array()) return std::vector<Json>(node["enum"].begin(), node["enum"].end());
    return std::nullopt;
  }

  // Whether no value can be valid under both; false where that does not show.
  bool disjoint(const Json& first, const Json& second, const std::string& where, int depth) const {
    const Json &a = resolve(first, where), &b = resolve(second, where);
    if (depth > 8 || !a.is_object() || !b.is_object()) return false;
    const auto values_a = listed_values(a), values_b = listed_values(b);
    if (values_a && values_b) return std::none_of(values_a->begin(), values_a->end(), [&](const Json& value) { return std::find(values_b->begin(), values_b->end(), value) != values_b->end(); });
    const auto types = [](const Json& node, const std::optional<std::vector<Json>>& values) {
      std::set<std::string> result;
      if (node.contains("type"))
        for (const Json& type : node["type"].is_array() ? node["type"] : Json::array({node["type"]})) result.insert(type == "integer" ? "number" : type.is_string() ? type.get<std::string>() : "?");
      else if (values)
        for (const Json& value : *values) result.insert(type_name(value));
      return result;
    };
    const auto types_a = types(a, values_a), types_b = types(b, values_b);
    if (!types_a.empty() && !types_b.empty() && std::none_of(types_a.begin(), types_a.end(), [&](const auto& type) { return types_b.contains(type); })) return true;
    if (types_a != std::set<std::string>{"object"} || types_b != types_a) return false;
    const auto requires_name = [](const Json& node, const std::string& name) {
      return node.contains("required") && node["required"].is_array() && std::find(node["required"].begin(), node["required"].end(), Json(name)) != node["required"].end();
    };
    if (!a.contains("properties") || !b.contains("properties") || !a["properties"].is_object() || !b["properties"].is_object()) return false;
    for (const auto& [name, schema] : a["properties"].items())
      if (requires_name(a, name) && requires_name(b, name) && b["properties"].contains(name) && disjoint(schema, b["properties"][name], where, depth + 1)) return true;
    return false;
  }

  // --- values written out

  static std::string type_name(const Json& value) {
    return value.is_object() ? "object" : value.is_array() ? "array" : value.is_string() ? "string" : value.is_boolean() ? "boolean" : value.is_null() ? "null" : "number";
  }

  int literals(const Json& node, const std::string& where) {
    const std::string keyword = node.contains("const") ? "const" : "enum";
    for (const auto& [key, value] : node.items())
      if (key != keyword && key != "type" && !kAnnotations.contains(key)) fail(pointer(where, key), fmt::format("'{}' beside {}", key, keyword));
    if (keyword == "enum" && (!node["enum"].is_array() || node["enum"].empty())) malformed(pointer(where, "enum"), "wanted a non-empty array");
    std::vector<int> ways;
    const std::vector<Json> values = *listed_values(node);
    for (const Json& value : values) {
      if (node.contains("type")) {
        const auto types = types_of(node, where);
        const std::string type = type_name(value);
        const bool whole = value.is_number_integer();
        if (std::none_of(types.begin(), types.end(), [&](const std::string& t) { return t == type || (t == "integer" && whole); })) continue;
      }
      ways.push_back(literal(value, 0, where));
    }
    if (ways.empty()) malformed(where, fmt::format("no value of {} has the type", keyword));
    return source_.choice(std::move(ways));
  }

  int literal(const Json& value, int depth, const std::string& where) {
    if (depth > kDepthMax) fail(where, "a constant nested too deep");
    if (value.is_object() || value.is_array()) {
      const bool object = value.is_object();
      std::vector<int> parts = {source_.bytes(object ? "{" : "[")};
      bool first = true;
      for (const auto& [key, member] : value.items()) {
        if (!first) parts.push_back(source_.bytes(","));
        parts.push_back(space());
        if (object) parts.insert(parts.end(), {source_.bytes(json_quoted(key) + ":"), space()});
        parts.push_back(literal(member, depth + 1, where));
        first = false;
      }
      parts.push_back(space());
      parts.push_back(source_.bytes(object ? "}" : "]"));
      return source_.sequence(std::move(parts));
    }
    return source_.bytes(value.dump());
  }

  // --- types

  std::vector<std::string> types_of(const Json& node, const std::string& where) const {
    static const std::set<std::string> kTypes = {"object", "array", "string", "number", "integer", "boolean", "null"};
    std::vector<std::string> types;
    if (!node.contains("type")) {
      // Keywords of a type say nothing about the others; writing that type only is one of the ways to be valid.
      for (const auto& [type, keywords] : {std::pair{"object", &kObjectKeywords}, {"array", &kArrayKeywords}, {"string", &kStringKeywords}, {"number", &kNumberKeywords}})
        for (const auto& [key, value] : node.items())
          if (keywords->contains(key) && types.empty()) types.push_back(type);
      if (types.empty()) types = {"any"};
      return types;
    }
    const Json& type = node["type"];
    for (const Json& entry : type.is_array() ? type : Json::array({type})) {
      if (!entry.is_string() || !kTypes.contains(entry.get<std::string>())) malformed(pointer(where, "type"), fmt::format("unknown type {:.60}", entry.dump()));
      types.push_back(entry.get<std::string>());
    }
    if (types.empty()) malformed(pointer(where, "type"), "wanted a type");
    return types;
  }

  void check_keywords(const Json& node, const std::string& where) const {
    for (const auto& [key, value] : node.items()) {
      if (key == "type" || kAnnotations.contains(key) || key.starts_with("x-")) continue;
      if (key == "nullable" && value == Json(false)) continue;
      const bool known = kObjectKeywords.contains(key) || kArrayKeywords.contains(key) || kStringKeywords.contains(key) || kNumberKeywords.contains(key);
      if (!known) fail(pointer(where, key), fmt::format("the keyword '{}' is not supported", key));
      if (key == "uniqueItems" && value == Json(false)) continue;
      if (key == "uniqueItems" || key == "multipleOf") fail(pointer(where, key), fmt::format("the keyword '{}' is not supported", key));
    }
  }

  int typed(const Json& node, const std::string& type, const std::string& where, int depth) {
    if (type == "object") return object(node, where, depth);
    if (type == "array") return array(node, where, depth);
    if (type == "string") return string(node, where);
    if (type == "integer" || type == "number") return numeric(node, type == "integer", where);
    if (type == "boolean") return source_.choice({source_.bytes("true"), source_.bytes("false")});
    if (type == "null") return source_.bytes("null");
    return any();
  }

  std::optional<uint32_t> count(const Json& node, const char* key, const std::string& where) const {
    if (!node.contains(key)) return std::nullopt;
    const Json& value = node[key];
    const bool whole = value.is_number_unsigned() || (value.is_number_float() && value.get<double>() >= 0 && value.get<double>() == static_cast<double>(static_cast<int64_t>(value.get<double>())));
    if (!whole) malformed(pointer(where, key), fmt::format("{} is no count", key));
    const double number = value.get<double>();
    if (number > kCountMax) {
      if (std::string_view(key).starts_with("max")) return kCountMax;  // a lower maximum is a valid one
      fail(pointer(where, key), fmt::format("{} above {}", key, kCountMax));
    }
    return static_cast<uint32_t>(number);
  }

  std::pair<uint32_t, uint32_t> range(const Json& node, const char* min_key, const char* max_key, const std::string& where) const {
    const uint32_t min = count(node, min_key, where).value_or(0), max = count(node, max_key, where).value_or(kUnbounded);
    if (min > max) malformed(where, fmt::format("{} {} is above {} {}", min_key, min, max_key, max));
    return {min, max};
  }

  int space() {
    // One blank, or a line break with up to 20 of indentation: a model cannot go on with white space for ever.
    if (space_ < 0) space_ = source_.choice({source_.repeat(source_.bytes(" "), 0, 1), source_.sequence({source_.bytes("\n"), source_.repeat(source_.set({{'\t', '\t'}, {' ', ' '}}), 0, 20)})});
    return space_;
  }

  // --- strings

  int character() {
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

  int string_between(uint32_t min, uint32_t max) {
    const int plain = character();
    const bool unbounded = min == 0 && max == kUnbounded;
    return source_.sequence({source_.bytes("\""), source_.repeat(unbounded ? plain : source_.rule(character_rule_), min, max), source_.bytes("\"")});
  }

  int string(const Json& node, const std::string& where) {
    const auto [min, max] = range(node, "minLength", "maxLength", where);
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
    return string_between(min, max);
  }

  // --- numbers

  int digits(uint32_t min, uint32_t max) { return source_.repeat(source_.set({{'0', '9'}}), min, max); }
  int digit(char low, char high) { return source_.set({{static_cast<uint32_t>(low), static_cast<uint32_t>(high)}}); }
  int whole() { return source_.choice({source_.bytes("0"), source_.sequence({digit('1', '9'), digits(0, 14)})}); }
  int fraction() { return source_.optional(source_.sequence({source_.bytes("."), digits(1, 16)})); }

  int number() {
    const int exponent = source_.optional(source_.sequence({source_.set({{'E', 'E'}, {'e', 'e'}}), source_.optional(source_.set({{'+', '+'}, {'-', '-'}})), digits(1, 2)}));
    return source_.sequence({source_.optional(source_.bytes("-")), whole(), fraction(), exponent});
  }

  Decimal decimal(const Json& value, const std::string& where) const {
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

  int numeric(const Json& node, bool integer, const std::string& where) {
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
    if (!low && !high) return integer ? source_.sequence({source_.optional(source_.bytes("-")), whole()}) : number();
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

  // --- arrays and objects

  int array_of(int item, uint32_t min, uint32_t max) {
    if (max == 0) return source_.sequence({source_.bytes("["), space(), source_.bytes("]")});
    const int more = source_.repeat(source_.sequence({source_.bytes(","), space(), item}), min > 0 ? min - 1 : 0, max == kUnbounded ? kUnbounded : max - 1);
    int items = source_.sequence({item, more, space()});
    if (min == 0) items = source_.optional(items);
    return source_.sequence({source_.bytes("["), space(), items, source_.bytes("]")});
  }

  // A rule of its own, so that repeats copy a call.
  int as_rule(int expression, const std::string& name) {
    if (source_.at(expression).kind == Expression::Kind::kRule) return expression;
    const int rule = source_.add_rule(name);
    source_.define(rule, expression);
    return source_.rule(rule);
  }

  int array(const Json& node, const std::string& where, int depth) {
    auto [min, max] = range(node, "minItems", "maxItems", where);
    const bool tuple_in_items = node.contains("items") && node["items"].is_array();
    const char* prefix_key = tuple_in_items ? "items" : "prefixItems";
    const char* rest_key = tuple_in_items ? "additionalItems" : "items";
    if (!node.contains(prefix_key)) {
      if (!node.contains("items")) return array_of(any(), min, max);
      if (node["items"] == Json(false)) {
        if (min > 0) malformed(where, "minItems beside items false");
        return array_of(any(), 0, 0);
      }
      return array_of(as_rule(schema(node["items"], pointer(where, "items"), depth + 1), pointer(where, "items")), min, max);
    }
    const Json& prefix = node[prefix_key];
    if (!prefix.is_array()) malformed(pointer(where, prefix_key), "wanted an array");
    const auto fixed = static_cast<uint32_t>(prefix.size());
    if (max != kUnbounded && max < fixed) fail(pointer(where, "maxItems"), "maxItems below the number of prefixItems");
    std::vector<int> parts = {source_.bytes("["), space()};
    for (uint32_t i = 0; i < fixed; ++i) {
      if (i > 0) parts.insert(parts.end(), {source_.bytes(","), space()});
      parts.push_back(schema(prefix[i], pointer(where, fmt::format("{}/{}", prefix_key, i)), depth + 1));
    }
    const uint32_t min_rest = min > fixed ? min - fixed : 0;
    const bool has_rest = node.contains(rest_key) && node[rest_key] != Json(false);
    if (min_rest > 0 && node.contains(rest_key) && !has_rest) malformed(where, "minItems above what prefixItems and items allow");
    if (has_rest || min_rest > 0) {
      const int item = has_rest ? as_rule(schema(node[rest_key], pointer(where, rest_key), depth + 1), pointer(where, rest_key)) : any();
      if (fixed == 0) return array_of(item, min, max);
      parts.push_back(source_.repeat(source_.sequence({source_.bytes(","), space(), item}), min_rest, max == kUnbounded ? kUnbounded : max - fixed));
    }
    parts.insert(parts.end(), {space(), source_.bytes("]")});
    return source_.sequence(std::move(parts));
  }

  int entry(int key, int value) { return source_.sequence({key, source_.bytes(":"), space(), value}); }

  int map_of(int key, int value, uint32_t min, uint32_t max) {
    if (max == 0) return source_.sequence({source_.bytes("{"), space(), source_.bytes("}")});
    const int one = as_rule(entry(key, value), "entry");
    int entries = source_.sequence({one, source_.repeat(source_.sequence({source_.bytes(","), space(), one}), 0, max == kUnbounded ? kUnbounded : max - 1), space()});
    if (min == 0) entries = source_.optional(entries);
    return source_.sequence({source_.bytes("{"), space(), entries, source_.bytes("}")});
  }

  // A key that is none of `names`, written without escapes, so that no spelling of a name slips through.
  int key_except(const std::set<std::string>& names) {
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

  int object(const Json& node, const std::string& where, int depth) {
    const auto [min, max] = range(node, "minProperties", "maxProperties", where);
    const Json none = Json::object();
    const Json& properties = node.contains("properties") ? node["properties"] : none;
    if (!properties.is_object()) malformed(pointer(where, "properties"), "wanted an object");
    std::set<std::string> required;
    std::vector<std::string> required_order;
    if (node.contains("required")) {
      if (!node["required"].is_array()) malformed(pointer(where, "required"), "wanted an array of names");
      for (const Json& name : node["required"]) {
        if (!name.is_string()) malformed(pointer(where, "required"), "wanted an array of names");
        if (required.insert(name.get<std::string>()).second) required_order.push_back(name.get<std::string>());
      }
    }
    const bool closed = node.contains("additionalProperties") && node["additionalProperties"] == Json(false);
    const bool open = node.contains("additionalProperties") && !closed;
    const auto additional = [&] { return as_rule(schema(node["additionalProperties"], pointer(where, "additionalProperties"), depth + 1), pointer(where, "additionalProperties")); };

    if (node.contains("patternProperties") || node.contains("propertyNames")) {
      const char* key = node.contains("patternProperties") ? "patternProperties" : "propertyNames";
      if (!properties.empty() || !required.empty() || (node.contains("patternProperties") && node.contains("propertyNames")))
        fail(pointer(where, key), fmt::format("'{}' beside properties, required or the other of patternProperties and propertyNames", key));
      if (min > 1) fail(pointer(where, "minProperties"), "minProperties above 1 for free names (they might repeat)");
      if (key == std::string("propertyNames")) {
        Json names = node[key];
        if (names.is_object() && !names.contains("type") && !names.contains("enum") && !names.contains("const") && !names.contains("$ref")) names["type"] = "string";
        if (closed) malformed(where, "additionalProperties false beside propertyNames");
        return map_of(schema(names, pointer(where, key), depth + 1), open ? additional() : any(), min, max);
      }
      const Json& patterns = node[key];
      if (!patterns.is_object() || patterns.size() != 1) fail(pointer(where, key), "patternProperties with more or less than one pattern");
      const auto& pattern = patterns.begin().key();
      const std::string place = pointer(pointer(where, key), pattern);
      int name = -1;
      try {
        name = source_.sequence({source_.bytes("\""), parse_regex(source_, pattern, true, json_set), source_.bytes("\"")});
      } catch (const Error& error) {
        throw Error(error.code(), "json_schema: {} at {}", error.what(), place);
      }
      return map_of(name, as_rule(schema(patterns.begin().value(), place, depth + 1), place), min, max);
    }
    if (properties.empty() && required.empty()) {
      if (min > 1) fail(pointer(where, "minProperties"), "minProperties above 1 for free names (they might repeat)");
      if (closed && min > 0) malformed(where, "minProperties beside additionalProperties false and no properties");
      return closed ? map_of(-1, -1, 0, 0) : map_of(string_between(0, kUnbounded), open ? additional() : any(), min, max);
    }

    struct Field {
      int entry;
      bool required;
    };
    std::vector<Field> fields;
    std::set<std::string> names;
    for (const auto& [name, value] : properties.items()) {
      names.insert(name);
      const std::string place = pointer(pointer(where, "properties"), name);
      if (value == Json(false) && !required.contains(name)) continue;
      fields.push_back({entry(source_.bytes(json_quoted(name)), schema(value, place, depth + 1)), required.contains(name)});
    }
    for (const std::string& name : required_order) {
      if (names.contains(name)) continue;
      if (closed) malformed(pointer(where, "required"), fmt::format("'{}' is required, and neither in properties nor allowed by additionalProperties", name));
      names.insert(name);
      fields.push_back({entry(source_.bytes(json_quoted(name)), open ? additional() : any()), true});
    }
    const auto num_required = static_cast<uint32_t>(std::count_if(fields.begin(), fields.end(), [](const Field& field) { return field.required; }));
    if (min > std::max(1u, num_required)) fail(pointer(where, "minProperties"), "minProperties above the number of required properties");
    const auto num_fields = static_cast<uint32_t>(fields.size());
    if (max != kUnbounded && max < num_fields) fail(pointer(where, "maxProperties"), "maxProperties below the number of properties");

    const int comma = source_.sequence({source_.bytes(","), space()});
    // What may follow once something stands in the object, from each field on.
    const int more = open ? source_.repeat(source_.sequence({comma, as_rule(entry(key_except(names), additional()), "additional")}), 0, max == kUnbounded ? kUnbounded : max - num_fields)
                          : source_.sequence({});
    std::vector<int> after(num_fields + 1);
    after[num_fields] = source_.sequence({more, space()});
    bool shared = false;  // whether an earlier field is optional: then several ways lead into a tail, and it is a rule
    for (size_t i = num_fields; i-- > 0;) {
      const int next = source_.sequence({comma, fields[i].entry});
      after[i] = source_.sequence({fields[i].required ? next : source_.optional(next), after[i + 1]});
      shared = std::any_of(fields.begin(), fields.begin() + static_cast<ptrdiff_t>(i), [](const Field& field) { return !field.required; });
      if (shared) after[i] = as_rule(after[i], where + "/after");
    }
    std::vector<int> ways;
    for (size_t i = 0; i < num_fields; ++i) {
      ways.push_back(source_.sequence({fields[i].entry, after[i + 1]}));
      if (fields[i].required) break;
    }
    if (num_required == 0 && min == 0) ways.push_back(source_.sequence({}));
    if (num_required == 0 && open) ways.push_back(source_.sequence({as_rule(entry(key_except(names), additional()), "additional"), more, space()}));
    return source_.sequence({source_.bytes("{"), space(), source_.choice(std::move(ways)), source_.bytes("}")});
  }

  Source& source_;
  const Json& root_;
  std::map<std::string, int> reference_rules_;
  int any_rule_ = -1, character_rule_ = -1, character_inline_ = -1, space_ = -1;
};

}  // namespace

std::string json_quoted(std::string_view text) { return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace); }

int parse_schema(Source& source, std::string_view schema_text) {
  // Depth is checked while parsing: what comes after works by recursion.
  bool too_deep = false;
  const Json root = Json::parse(
      schema_text,
      [&](int depth, Json::parse_event_t, Json&) {
        too_deep = too_deep || depth > 2 * kDepthMax;
        return !too_deep;
      },
      false);
  if (too_deep) throw Error(ErrorCode::kUnsupported, "json_schema: nested deeper than {}", 2 * kDepthMax);
  if (root.is_discarded()) throw Error(ErrorCode::kInvalidArgument, "json_schema: not JSON");
  Converter converter(source, root);
  return converter.schema(root, "", 0);
}

int any_object(Source& source) {
  static const Json kNothing = Json::object();
  return Converter(source, kNothing).object_of_any();
}

}  // namespace orrery::grammar
