// JSON's numbers as expressions: any of at most 16 digits, and those between the bounds of a schema, digit by digit. Internal to
// src/serve/grammar.
#pragma once

#include <string>

#include "serve/grammar/expression.h"
#include "serve/grammar/schema_document.h"

namespace orrery::grammar {

int any_number(Source& source);
/// A number within minimum, maximum and their exclusive forms. Errors: kInvalidArgument when none lies between them, kUnsupported for
/// bounds that its digits cannot keep.
int bounded_number(Source& source, const Json& node, bool integer, const std::string& where);

}  // namespace orrery::grammar
