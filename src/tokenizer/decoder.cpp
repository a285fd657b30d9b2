#include "tokenizer/decoder.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tokenizer/json_util.h"

namespace orrery {
namespace {

using nlohmann::json;

void replace_all(std::string* text, const std::string& from, const std::string& to) {
  if (from.empty()) return;
  for (size_t at = text->find(from); at != std::string::npos; at = text->find(from, at + to.size()))
    text->replace(at, from.size(), to);
}

void strip_each(const std::string& content, int start, int stop, DecoderTable* table) {
  for (std::string& text : table->bytes) {
    for (int i = 0; i < start && text.starts_with(content); ++i) text.erase(0, content.size());
    for (int i = 0; i < stop && text.ends_with(content); ++i) text.resize(text.size() - content.size());
  }
}

// Replacements that each double the text would otherwise fill any memory.
void check_growth(const DecoderTable& table) {
  size_t total = 0;
  for (const std::string& text : table.bytes) total += text.size();
  if (total > (size_t{1} << 28)) {
    throw Error(ErrorCode::kUnsupported, "tokenizer.json: decoded tokens have {} bytes together; at most 2^28 are supported",
                total);
  }
}

int small_count(const json& node, const char* key) {
  const json& member = json_member(node, key, "decoder Strip");
  if (!member.is_number_unsigned() || member.get<uint64_t>() > 1000) {
    throw Error(ErrorCode::kCorruptData, "tokenizer.json: decoder Strip: '{}' is not a small count", key);
  }
  return member.get<int>();
}

void apply_strip(const json& node, bool fused, DecoderTable* table) {
  const std::string content = json_string(node, "content", "decoder Strip");
  if (content.empty()) return;
  const int start = small_count(node, "start"), stop = small_count(node, "stop");
  if (!fused) return strip_each(content, start, stop, table);
  if (!table->strip_text.empty() && table->strip_text != content) {
    throw Error(ErrorCode::kUnsupported, "tokenizer.json: two decoders Strip with different text are not supported");
  }
  table->strip_text = content;
  table->strip_left += start;
  table->strip_right += stop;
}

void apply(const json& node, int depth, bool* fused, DecoderTable* table) {
  if (node.is_null()) return;
  if (depth > 16) throw Error(ErrorCode::kCorruptData, "tokenizer.json: decoders nested deeper than 16");
  const std::string type = json_string(node, "type", "decoder");
  if (type == "Sequence") {
    for (const json& child : json_array(node, "decoders", "decoder")) apply(child, depth + 1, fused, table);
  } else if (type == "ByteLevel") {
    for (std::string& text : table->bytes) {
      if (auto bytes = printable_to_bytes(text)) text = std::move(*bytes);
    }
  } else if (type == "ByteFallback") {
    for (std::string& text : table->bytes) {
      if (const int byte = byte_token_value(text); byte >= 0) text.assign(1, static_cast<char>(byte));
    }
  } else if (type == "Fuse") {
    *fused = true;
  } else if (type == "Strip") {
    apply_strip(node, *fused, table);
  } else if (type == "Replace") {
    const auto [pattern, is_regex] = json_pattern(node, "decoder Replace");
    if (is_regex) throw Error(ErrorCode::kUnsupported, "tokenizer.json: decoder Replace with a regex is not supported");
    const std::string content = json_short_string(node, "content", "decoder Replace");
    for (std::string& text : table->bytes) replace_all(&text, pattern, content);
    check_growth(*table);
  } else if (type == "Metaspace") {
    const std::string replacement =
        node.contains("replacement") ? json_short_string(node, "replacement", "Metaspace") : "\xE2\x96\x81";
    for (std::string& text : table->bytes) replace_all(&text, replacement, " ");
    const bool prefixed = node.contains("prepend_scheme") ? json_string(node, "prepend_scheme", "Metaspace") != "never"
                                                          : json_bool(node, "add_prefix_space", true);
    if (prefixed) table->strip_text = " ", table->strip_left = 1;
  } else {
    throw Error(ErrorCode::kUnsupported, "tokenizer.json: decoder '{}' is not supported", type);
  }
}

}  // namespace

DecoderTable make_decoder(const TokenizerSpec& spec, bool byte_level) {
  DecoderTable table;
  table.bytes = spec.tokens;
  for (const AddedToken& token : spec.added) table.bytes[static_cast<size_t>(token.id)] = token.content;
  const json node = parse_json(spec.decoder, "decoder");
  bool fused = false;
  if (node.is_null() && byte_level) {
    apply(json{{"type", "ByteLevel"}}, 0, &fused, &table);
  } else {
    apply(node, 0, &fused, &table);
  }
  return table;
}

}  // namespace orrery
