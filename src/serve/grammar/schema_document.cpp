#include "serve/grammar/schema_document.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "serve/grammar/expression.h"

namespace orrery::grammar {
namespace {

constexpr uint32_t kCountMax = 100'000;

const std::set<std::string> kAnnotations = {"title", "description", "default", "examples", "example", "$schema", "$id", "id", "$comment", "$defs", "definitions",
                                            "deprecated", "readOnly", "writeOnly", "$anchor", "contentMediaType", "contentEncoding", "strict"};

std::optional<uint32_t> count(const Json& node, const char* key, const std::string& where) {
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

}  // namespace

void fail(const std::string& where, const std::string& what) { throw Error(ErrorCode::kUnsupported, "json_schema: {} at {}", what, where.empty() ? "the root" : where); }
void malformed(const std::string& where, const std::string& what) { throw Error(ErrorCode::kInvalidArgument, "json_schema: {} at {}", what, where.empty() ? "the root" : where); }

std::string pointer(const std::string& where, const std::string& key) {
  std::string escaped;
  for (const char c : key) escaped += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
  return where + "/" + escaped;
}

bool is_annotation(const std::string& keyword) { return kAnnotations.contains(keyword); }

std::string type_name(const Json& value) {
  return value.is_object() ? "object" : value.is_array() ? "array" : value.is_string() ? "string" : value.is_boolean() ? "boolean" : value.is_null() ? "null" : "number";
}

std::optional<std::vector<Json>> listed_values(const Json& node) {
  if (node.contains("const")) return std::vector<Json>{node["const"]};
  if (node.contains("enum") && node["enum"].is_array()) return std::vector<Json>(node["enum"].begin(), node["enum"].end());
  return std::nullopt;
}

Json without(const Json& node, const std::string& key) {
  Json copy = node;
  copy.erase(key);
  return copy;
}

std::pair<uint32_t, uint32_t> count_range(const Json& node, const char* min_key, const char* max_key, const std::string& where) {
  const uint32_t min = count(node, min_key, where).value_or(0), max = count(node, max_key, where).value_or(kUnbounded);
  if (min > max) malformed(where, fmt::format("{} {} is above {} {}", min_key, min, max_key, max));
  return {min, max};
}

const Json& SchemaDocument::resolve(const Json& node, const std::string& where) const {
  const Json* at = &node;
  for (int hops = 0; at->is_object() && at->contains("$ref"); ++hops) {
    if (hops > 64) fail(where, "$ref leads through more than 64 other $refs");
    at = &target((*at)["$ref"], where);
  }
  return *at;
}

const Json& SchemaDocument::target(const Json& reference, const std::string& where) const {
  if (!reference.is_string()) malformed(pointer(where, "$ref"), "$ref is no string");
  const auto& text = reference.get_ref<const std::string&>();
  if (text != "#" && !text.starts_with("#/")) fail(pointer(where, "$ref"), fmt::format("$ref '{}' (only references into this schema, #/..., are followed)", text));
  try {
    return root_.at(nlohmann::json_pointer<std::string>(text.substr(1)));
  } catch (const nlohmann::json::exception&) {
    malformed(pointer(where, "$ref"), fmt::format("$ref '{}' leads nowhere", text));
  }
}

Json SchemaDocument::merged_all_of(const Json& node, const std::string& where, int depth) const {
  if (depth > kSchemaDepthMax) fail(where, fmt::format("schemas nested deeper than {}", kSchemaDepthMax));
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

Json SchemaDocument::merge(const Json& a, const Json& b, const std::string& where) const {
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
    if (is_annotation(key)) continue;
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

bool SchemaDocument::disjoint(const Json& first, const Json& second, const std::string& where, int depth) const {
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

}  // namespace orrery::grammar
