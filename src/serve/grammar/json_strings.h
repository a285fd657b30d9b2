// JSON's strings as expressions: of some length, of a pattern or format, and keys that are none of some names. Internal to
// src/serve/grammar.
#pragma once

#include <set>
#include <string>

#include "serve/grammar/expression.h"
#include "serve/grammar/schema_document.h"

namespace orrery::grammar {

/// Code points inside a JSON string: what JSON must escape is written escaped. An EncodeSet.
int json_set(Source& source, const CodeSet& set);

class JsonStrings {
 public:
  explicit JsonStrings(Source& source) : source_(source) {}

  /// Of min to max characters, each plain or escaped.
  int between(uint32_t min, uint32_t max);
  /// As a schema's minLength, maxLength, pattern or format say. Errors: kInvalidArgument, kUnsupported.
  int of_schema(const Json& node, const std::string& where);
  /// None of `names`, written without escapes, so that no spelling of a name slips through.
  int key_except(const std::set<std::string>& names);

 private:
  int character();

  Source& source_;
  int character_rule_ = -1, character_inline_ = -1;
};

}  // namespace orrery::grammar
