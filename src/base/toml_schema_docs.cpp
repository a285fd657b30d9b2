// What people and editors read about a table of keys: one-line types, Markdown, JSON Schema.
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/toml_schema.h"

namespace orrery {
namespace {

std::string kind_text(const KeyInfo& key) {
  switch (key.kind) {
    case KeyKind::kBool:
      return "true or false";
    case KeyKind::kInteger:
      return key.options.unit.empty() ? "integer" : fmt::format("integer, {}", key.options.unit);
    case KeyKind::kNumber:
      return key.options.unit.empty() ? "number" : fmt::format("number, {}", key.options.unit);
    case KeyKind::kString:
      return "string";
    case KeyKind::kChoice:
      return fmt::format("one of {}", fmt::join(key.choices, ", "));
    case KeyKind::kStringList:
      return "list of strings";
    case KeyKind::kPathList:
      return "list of strings or {path, weight}";
    case KeyKind::kByteBudget:
      return "bytes or \"N%\"";
  }
  return {};
}

/// Bounds this far out only keep arithmetic from overflowing; nobody needs to read them.
constexpr double kNoBound = 1e15;

std::string range_text(const KeyOptions& options) {
  const bool low = std::isfinite(options.min), high = options.max < kNoBound;
  if (low && high) return fmt::format("{} to {}", options.min, options.max);
  if (low) return fmt::format("at least {}", options.min);
  return high ? fmt::format("at most {}", options.max) : "";
}

std::string default_text(const KeyInfo& key) {
  if (!key.options.default_text.empty()) return std::string(key.options.default_text);
  return key.default_toml;
}

nlohmann::ordered_json type_schema(const KeyInfo& key) {
  using Json = nlohmann::ordered_json;
  Json number = {{"type", key.kind == KeyKind::kInteger ? "integer" : "number"}};
  if (std::isfinite(key.options.min)) number["minimum"] = key.options.min;
  if (key.options.max < kNoBound) number["maximum"] = key.options.max;
  const Json text = {{"type", "string"}};
  const Json weighted = {{"type", "object"},
                         {"properties", {{"path", text}, {"weight", {{"type", "number"}, {"exclusiveMinimum", 0}}}}},
                         {"required", {"path"}},
                         {"additionalProperties", false}};
  const auto any_of = [](std::initializer_list<Json> list) { return Json{{"anyOf", Json(list)}}; };
  switch (key.kind) {
    case KeyKind::kBool:
      return {{"type", "boolean"}};
    case KeyKind::kInteger:
    case KeyKind::kNumber:
      return any_of({number, text});
    case KeyKind::kString:
      return text;
    case KeyKind::kChoice:
      return {{"enum", key.choices}};
    case KeyKind::kStringList:
      return any_of({text, Json{{"type", "array"}, {"items", text}}});
    case KeyKind::kPathList:
      return any_of({text, weighted, Json{{"type", "array"}, {"items", any_of({text, weighted})}}});
    case KeyKind::kByteBudget:
      return any_of({Json{{"type", "integer"}}, text});
  }
  return {};
}

/// A pipe would end the table cell.
std::string cell(std::string text) {
  for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2) text.replace(at, 1, "\\|");
  return text;
}

}  // namespace

std::string KeyInfo::type_text() const {
  std::string text = kind_text(*this);
  if (!options.auto_word.empty()) text += fmt::format(" or \"{}\"", options.auto_word);
  if (const std::string range = range_text(options); !range.empty()) text += ", " + range;
  if (const std::string value = default_text(*this); !value.empty())
    text += (value.starts_with("required") ? ", " : ", default ") + value;
  return text;
}

std::string SchemaTable::markdown() const {
  std::string result;
  for (const std::string& section : sections()) {
    const std::string title = find_repeated(section) ? fmt::format("[{0}], or several [[{0}]]", section) : fmt::format("[{}]", section);
    result += fmt::format("\n## {}\n\n| Key | Type | Default | Meaning |\n|---|---|---|---|\n", title);
    for (const KeyInfo& key : keys_) {
      if (key.section != section) continue;
      std::string type = kind_text(key);
      if (!key.options.auto_word.empty()) type += fmt::format(" or \"{}\"", key.options.auto_word);
      if (const std::string range = range_text(key.options); !range.empty()) type += ", " + range;
      std::string help(key.options.help);
      if (!key.options.requires_feature.empty())
        help += fmt::format(". Only the default is accepted: needs {}", key.options.requires_feature);
      const std::string value =
          key.options.default_text.empty() && !key.default_toml.empty() ? "`" + key.default_toml + "`" : default_text(key);
      result += fmt::format("| `{}` | {} | {} | {} |\n", key.name, cell(type), cell(value), cell(help));
    }
  }
  return result;
}

std::string SchemaTable::json_schema(std::string_view title) const {
  nlohmann::ordered_json root = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                                 {"title", title},
                                 {"type", "object"},
                                 {"properties", nlohmann::ordered_json::object()},
                                 {"additionalProperties", false}};
  for (const std::string& section : sections()) {
    nlohmann::ordered_json properties = nlohmann::ordered_json::object();
    for (const KeyInfo& key : keys_) {
      if (key.section != section) continue;
      nlohmann::ordered_json schema = type_schema(key);
      schema["description"] = fmt::format("{} ({})", key.options.help, key.type_text());
      properties[key.name] = std::move(schema);
    }
    nlohmann::ordered_json schema = {{"type", "object"}, {"properties", std::move(properties)}, {"additionalProperties", false}};
    if (find_repeated(section)) schema = {{"anyOf", {schema, {{"type", "array"}, {"items", schema}}}}};
    root["properties"][section] = std::move(schema);
  }
  return root.dump(2) + "\n";
}

}  // namespace orrery
