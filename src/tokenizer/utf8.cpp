#include "tokenizer/utf8.h"

#include <utf8proc.h>

#include <array>
#include <memory>

namespace orrery {

DecodedChar decode_utf8(const char* p, const char* end) {
  const auto byte = [&](int i) { return static_cast<uint8_t>(p[i]); };
  const auto follows = [&](int i) { return p + i < end && (byte(i) & 0xC0) == 0x80; };
  const uint32_t first = byte(0);
  if (first < 0x80) return {first, 1};
  if (first >= 0xC2 && first < 0xE0 && follows(1)) return {(first & 0x1F) << 6 | (byte(1) & 0x3Fu), 2};
  if (first >= 0xE0 && first < 0xF0 && follows(1) && follows(2)) {
    const uint32_t c = (first & 0x0F) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu);
    if (c >= 0x800 && (c < 0xD800 || c > 0xDFFF)) return {c, 3};
  }
  if (first >= 0xF0 && first < 0xF5 && follows(1) && follows(2) && follows(3)) {
    const uint32_t c = (first & 0x07) << 18 | (byte(1) & 0x3Fu) << 12 | (byte(2) & 0x3Fu) << 6 | (byte(3) & 0x3Fu);
    if (c >= 0x10000 && c <= 0x10FFFF) return {c, 4};
  }
  return {kInvalidCodePoint, 1};
}

void append_utf8(std::string* text, uint32_t c) {
  const auto put = [&](uint32_t byte) { text->push_back(static_cast<char>(byte)); };
  if (c < 0x80) return put(c);
  if (c < 0x800) return put(0xC0 | c >> 6), put(0x80 | (c & 0x3F));
  if (c < 0x10000) return put(0xE0 | c >> 12), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
  put(0xF0 | c >> 18), put(0x80 | (c >> 12 & 0x3F)), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
}

size_t valid_utf8_prefix(std::string_view text) {
  const char* p = text.data();
  const char* end = p + text.size();
  while (p < end) {
    const DecodedChar c = decode_utf8(p, end);
    if (c.code_point == kInvalidCodePoint) break;
    p += c.length;
  }
  return static_cast<size_t>(p - text.data());
}

bool is_ascii(std::string_view text) {
  uint8_t any = 0;
  for (const char c : text) any |= static_cast<uint8_t>(c);
  return any < 0x80;
}

namespace {

// Unicode's White_Space, which the packages' regex engines mean by \s.
bool is_white_space(uint32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

uint8_t classify(uint32_t c) {
  uint8_t bits = 0;
  if (is_white_space(c)) bits |= kSpace;
  if (c == '\r' || c == '\n') bits |= kNewline;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LT:
      return bits | kLetter | kUpperSide | kWord;
    case UTF8PROC_CATEGORY_LL:
      return bits | kLetter | kLowerSide | kWord;
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return bits | kLetter | kUpperSide | kLowerSide | kWord;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
      return bits | kUpperSide | kLowerSide | kWord;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
      return bits | kNumber | kWord;
    case UTF8PROC_CATEGORY_NO:
      return bits | kNumber;
    case UTF8PROC_CATEGORY_PC:
      return bits | kPunctuation | kWord;
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
      return bits | kPunctuation;
    default:
      break;
  }
  if (c > 32 && c < 127) bits |= kPunctuation;
  if ((c >= 0x24B6 && c <= 0x24E9) || c == 0x200C || c == 0x200D) bits |= kWord;
  return bits;
}

}  // namespace

const uint8_t* character_classes() {
  static const std::unique_ptr<uint8_t[]> table = [] {
    auto classes = std::make_unique<uint8_t[]>(kInvalidCodePoint + 1);
    for (uint32_t c = 0; c < kInvalidCodePoint; ++c) classes[c] = classify(c);
    classes[kInvalidCodePoint] = 0;
    return classes;
  }();
  return table.get();
}

}  // namespace orrery
