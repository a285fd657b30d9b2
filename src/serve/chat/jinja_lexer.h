// Template text to tokens, under trim_blocks and lstrip_blocks. Internal to src/serve/chat.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace orrery::jinja {

struct Token {
  enum class Kind { kText, kBegin, kName, kNumber, kString, kOperator, kEndOutput, kEndStatement, kBeginOutput, kEof } kind;
  std::string text;
  int line;
};

/// Ends with kEof. Errors: kInvalidArgument with the line.
std::vector<Token> tokenize(std::string_view source);

}  // namespace orrery::jinja
