// A JSON schema as a document: where its $refs lead, what two of its schemas are together, whether they can be told apart, and the
// errors that name a place in it. Knows nothing of expressions. Internal to src/serve/grammar.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace orrery::grammar {

using Json = nlohmann::ordered_json;

constexpr int kSchemaDepthMax = 96;

/// Errors at the JSON pointer `where`: kUnsupported, kInvalidArgument.
[[noreturn]] void fail(const std::string& where, const std::string& what);
[[noreturn]] void malformed(const std::string& where, const std::string& what);
/// `where` and `key` below it, escaped.
std::string pointer(const std::string& where, const std::string& key);

/// Keywords that say nothing about the values.
bool is_annotation(const std::string& keyword);
/// The value's type as JSON Schema names it; whole numbers are "number" too.
std::string type_name(const Json& value);
/// What const or enum lists, if one is there.
std::optional<std::vector<Json>> listed_values(const Json& node);
Json without(const Json& node, const std::string& key);
/// Two keywords of counts, the second at least the first; kUnbounded where there is no maximum.
std::pair<uint32_t, uint32_t> count_range(const Json& node, const char* min_key, const char* max_key, const std::string& where);

class SchemaDocument {
 public:
  explicit SchemaDocument(const Json& root) : root_(root) {}

  /// `node`, or where its $refs lead in the end.
  const Json& resolve(const Json& node, const std::string& where) const;
  /// Where one $ref leads.
  const Json& target(const Json& reference, const std::string& where) const;
  /// Both schemas at once, where that is one schema of the kind that is supported.
  Json merge(const Json& a, const Json& b, const std::string& where) const;
  /// A schema with allOf as one without.
  Json merged_all_of(const Json& node, const std::string& where, int depth) const;
  /// Whether no value can be valid under both; false where that does not show.
  bool disjoint(const Json& first, const Json& second, const std::string& where, int depth) const;

 private:
  const Json& root_;
};

}  // namespace orrery::grammar
