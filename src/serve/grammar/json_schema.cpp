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
#include "serve/grammar/json_numbers.h"
#include "serve/grammar/json_strings.h"
#include "serve/grammar/schema_document.h"

namespace orrery::grammar {
namespace {

const std::set<std::string> kObjectKeywords = {"properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties", "maxProperties"};
const std::set<std::string> kArrayKeywords = {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"};
const std::set<std::string> kStringKeywords = {"minLength", "maxLength", "pattern", "format"};
const std::set<std::string> kNumberKeywords = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"};

class Converter {
 public:
  Converter(Source& source, const Json& root) : source_(source), document_(root), strings_(source) {}

  int schema(const Json& node, const std::string& where, int depth) {
    if (depth > kSchemaDepthMax) fail(where, fmt::format("schemas nested deeper than {}", kSchemaDepthMax));
    if (node.is_boolean()) {
      if (node.get<bool>()) return any();
      malformed(where, "the schema false allows no value");
    }
    if (!node.is_object()) malformed(where, "wanted a schema (an object or a boolean)");
    if (node.contains("$ref")) return reference(node, where, depth);
    if (node.contains("allOf")) return schema(document_.merged_all_of(node, where, depth), where, depth + 1);
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
      source_.define(any_rule_, source_.choice({object_of_any(), array_of(any(), 0, kUnbounded), strings_.between(0, kUnbounded), any_number(source_), source_.bytes("true"),
                                                source_.bytes("false"), source_.bytes("null")}));
    }
    return source_.rule(any_rule_);
  }

  int object_of_any() { return map_of(strings_.between(0, kUnbounded), any(), 0, kUnbounded); }

 private:
  // --- references, combinations

  int reference(const Json& node, const std::string& where, int depth) {
    for (const auto& [key, value] : node.items())
      if (key != "$ref" && !is_annotation(key)) return schema(document_.merge(without(node, "$ref"), document_.resolve(node, where), where), where, depth + 1);
    const Json& to = document_.target(node["$ref"], where);
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

  int alternatives(const Json& node, const std::string& keyword, const std::string& where, int depth) {
    const std::string place = pointer(where, keyword);
    const Json& list = node[keyword];
    if (!list.is_array() || list.empty()) malformed(place, "wanted a non-empty array");
    Json base = without(node, keyword);
    bool has_base = false;
    for (const auto& [key, value] : base.items()) has_base = has_base || !is_annotation(key);
    std::vector<int> ways;
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string branch = pointer(place, std::to_string(i));
      if (keyword == "oneOf")
        for (size_t j = 0; j < i; ++j)
          if (!document_.disjoint(list[i], list[j], branch, 0)) fail(branch, fmt::format("a oneOf whose alternatives {} and {} cannot be told apart by type, const or a required const property; write anyOf", j, i));
      ways.push_back(schema(has_base ? document_.merge(base, document_.resolve(list[i], branch), branch) : list[i], branch, depth + 1));
    }
    return source_.choice(std::move(ways));
  }

  // --- values written out

  int literals(const Json& node, const std::string& where) {
    const std::string keyword = node.contains("const") ? "const" : "enum";
    for (const auto& [key, value] : node.items())
      if (key != keyword && key != "type" && !is_annotation(key)) fail(pointer(where, key), fmt::format("'{}' beside {}", key, keyword));
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
    if (depth > kSchemaDepthMax) fail(where, "a constant nested too deep");
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
      if (key == "type" || is_annotation(key) || key.starts_with("x-")) continue;
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
    if (type == "string") return strings_.of_schema(node, where);
    if (type == "integer" || type == "number") return bounded_number(source_, node, type == "integer", where);
    if (type == "boolean") return source_.choice({source_.bytes("true"), source_.bytes("false")});
    if (type == "null") return source_.bytes("null");
    return any();
  }

  int space() {
    // One blank, or a line break with up to 20 of indentation: a model cannot go on with white space for ever.
    if (space_ < 0) space_ = source_.choice({source_.repeat(source_.bytes(" "), 0, 1), source_.sequence({source_.bytes("\n"), source_.repeat(source_.set({{'\t', '\t'}, {' ', ' '}}), 0, 20)})});
    return space_;
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
    auto [min, max] = count_range(node, "minItems", "maxItems", where);
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

  int object(const Json& node, const std::string& where, int depth) {
    const auto [min, max] = count_range(node, "minProperties", "maxProperties", where);
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
      return closed ? map_of(-1, -1, 0, 0) : map_of(strings_.between(0, kUnbounded), open ? additional() : any(), min, max);
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
    const int more = open ? source_.repeat(source_.sequence({comma, as_rule(entry(strings_.key_except(names), additional()), "additional")}), 0, max == kUnbounded ? kUnbounded : max - num_fields)
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
    if (num_required == 0 && open) ways.push_back(source_.sequence({as_rule(entry(strings_.key_except(names), additional()), "additional"), more, space()}));
    return source_.sequence({source_.bytes("{"), space(), source_.choice(std::move(ways)), source_.bytes("}")});
  }

  Source& source_;
  SchemaDocument document_;
  JsonStrings strings_;
  std::map<std::string, int> reference_rules_;
  int any_rule_ = -1, space_ = -1;
};

}  // namespace

std::string json_quoted(std::string_view text) { return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace); }

int parse_schema(Source& source, std::string_view schema_text) {
  // Depth is checked while parsing: what comes after works by recursion.
  bool too_deep = false;
  const Json root = Json::parse(
      schema_text,
      [&](int depth, Json::parse_event_t, Json&) {
        too_deep = too_deep || depth > 2 * kSchemaDepthMax;
        return !too_deep;
      },
      false);
  if (too_deep) throw Error(ErrorCode::kUnsupported, "json_schema: nested deeper than {}", 2 * kSchemaDepthMax);
  if (root.is_discarded()) throw Error(ErrorCode::kInvalidArgument, "json_schema: not JSON");
  Converter converter(source, root);
  return converter.schema(root, "", 0);
}

int any_object(Source& source) {
  static const Json kNothing = Json::object();
  return Converter(source, kNothing).object_of_any();
}

}  // namespace orrery::grammar
