// UTF-8 decoding and the character classes that pre-tokenizers ask for. An invalid byte is one character without class.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace orrery {

inline constexpr uint32_t kInvalidCodePoint = 0x110000;

struct DecodedChar {
  uint32_t code_point;  // kInvalidCodePoint: not UTF-8
  uint32_t length;      // in bytes, 1 where invalid
};

/// Strict: no overlong forms, no surrogates, nothing above U+10FFFF. `p < end`.
DecodedChar decode_utf8(const char* p, const char* end);
void append_utf8(std::string* text, uint32_t code_point);
/// Offset of the first invalid byte, text.size() when all is valid.
size_t valid_utf8_prefix(std::string_view text);
bool is_ascii(std::string_view text);

/// Bits of character_class().
enum CharClass : uint8_t {
  kLetter = 1,         // L*
  kNumber = 2,         // N*
  kSpace = 4,          // White_Space
  kUpperSide = 8,      // Lu Lt Lm Lo M*: o200k's first half
  kLowerSide = 16,     // Ll Lm Lo M*: its second half
  kNewline = 32,       // \r \n
  kWord = 64,          // \w: alphabetic, marks, decimal digits, connectors
  kPunctuation = 128,  // P*, and ASCII symbols
};

/// kInvalidCodePoint + 1 entries.
const uint8_t* character_classes();

}  // namespace orrery
