#include "tokenizer/spec.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tokenizer/flat_map.h"
#include "tokenizer/json_util.h"
#include "tokenizer/splitter.h"
#include "tokenizer/tokenizer_impl.h"
#include "tokenizer/utf8.h"

namespace orrery {
namespace {

using nlohmann::json;

bool is_printable_byte(int byte) { return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174; }

// Printable bytes stand for themselves (Latin-1), the others for U+0100 and up, in order.
const std::array<uint32_t, 256>& printable_alphabet() {
  static const std::array<uint32_t, 256> alphabet = [] {
    std::array<uint32_t, 256> code_points{};
    uint32_t next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      code_points[static_cast<size_t>(byte)] = is_printable_byte(byte) ? static_cast<uint32_t>(byte) : next++;
    }
    return code_points;
  }();
  return alphabet;
}

}  // namespace

std::string bytes_to_printable(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const char c : bytes) append_utf8(&text, printable_alphabet()[static_cast<uint8_t>(c)]);
  return text;
}

std::optional<std::string> printable_to_bytes(std::string_view text) {
  static const std::array<int16_t, 512> inverse = [] {
    std::array<int16_t, 512> bytes;
    bytes.fill(-1);
    for (size_t byte = 0; byte < 256; ++byte) bytes[printable_alphabet()[byte]] = static_cast<int16_t>(byte);
    return bytes;
  }();
  std::string bytes;
  for (const char *p = text.data(), *end = p + text.size(); p < end;) {
    const DecodedChar c = decode_utf8(p, end);
    if (c.code_point >= inverse.size() || inverse[c.code_point] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(inverse[c.code_point]));
    p += c.length;
  }
  return bytes;
}

int byte_token_value(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
  const int high = digit(token[3]), low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::vector<Merge> merges_from_ranks(const std::vector<std::string>& tokens, const std::vector<int64_t>& rank_of) {
  // A hostile token of a megabyte has a megabyte of prefixes to hash.
  constexpr size_t kTokenBytesMax = 1024;
  StringIndex index;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].empty() && rank_of[id] >= 0) index.insert(tokens, static_cast<int32_t>(id));
  }
  std::vector<Merge> merges;
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string_view token = tokens[id];
    if (rank_of[id] < 0 || token.size() < 2) continue;
    if (token.size() > kTokenBytesMax) {
      throw Error(ErrorCode::kUnsupported, "tokenizer: token {} has {} bytes; at most {} are supported", id, token.size(),
                  kTokenBytesMax);
    }
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const int32_t left = index.find(tokens, token.substr(0, cut));
      if (left < 0) continue;
      const int32_t right = index.find(tokens, token.substr(cut));
      if (right >= 0) merges.push_back({left, right, static_cast<uint32_t>(rank_of[id]), static_cast<int32_t>(id)});
    }
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    return a.rank != b.rank ? a.rank < b.rank : a.left != b.left ? a.left < b.left : a.right < b.right;
  });
  return merges;
}

std::string pre_tokenizer_of_pattern(std::string_view name) {
  const auto byte_level = [](bool use_regex) {
    return json{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
  };
  if (name == "gpt2") return byte_level(true).dump();
  if (name == "digits+gpt2") {
    json steps = json::array();
    steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
    steps.push_back(byte_level(true));
    return json{{"type", "Sequence"}, {"pretokenizers", steps}}.dump();
  }
  const auto split = split_by_name(name);
  return split ? pre_tokenizer_of_regex(split_pattern(*split)) : std::string();
}

std::string pre_tokenizer_of_regex(std::string_view pattern) {
  const json split{
      {"type", "Split"}, {"pattern", {{"Regex", std::string(pattern)}}}, {"behavior", "Isolated"}, {"invert", false}};
  const json byte_level{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  json steps = json::array();
  steps.push_back(split);
  steps.push_back(byte_level);
  return json{{"type", "Sequence"}, {"pretokenizers", steps}}.dump();
}

void require_utf8_tokens(const std::vector<std::string>& tokens, std::string_view where) {
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (const size_t valid = valid_utf8_prefix(tokens[id]); valid != tokens[id].size()) {
      throw Error(ErrorCode::kCorruptData, "{}: token {} is not UTF-8 at its byte {}", where, id, valid);
    }
  }
}

std::string bos_eos_post_processor(const TokenizerSpec& spec, int32_t bos_id, int32_t eos_id) {
  if (bos_id < 0 && eos_id < 0) return "null";
  json single = json::array(), pair = json::array(), special = json::object();
  const auto put = [&](int32_t id, int type_id, json* list) {
    if (id < 0) return;
    if (static_cast<size_t>(id) >= spec.tokens.size()) {
      throw Error(ErrorCode::kCorruptData, "tokenizer: BOS or EOS id {} of {} tokens", id, spec.tokens.size());
    }
    const std::string& name = spec.tokens[static_cast<size_t>(id)];
    list->push_back({{"SpecialToken", {{"id", name}, {"type_id", type_id}}}});
    special[name] = {{"id", name}, {"ids", {id}}, {"tokens", {name}}};
  };
  put(bos_id, 0, &single);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  put(eos_id, 0, &single);
  pair = single;
  put(bos_id, 1, &pair);
  pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
  put(eos_id, 1, &pair);
  return json{{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}}.dump();
}

namespace {

int32_t json_id(const json& node, const char* where) {
  if (!node.is_number_integer() || node.get<int64_t>() < 0 || node.get<int64_t>() > INT32_MAX) {
    throw Error(ErrorCode::kCorruptData, "tokenizer.json: {}: a token id is {}", where, node.dump());
  }
  return node.get<int32_t>();
}

void parse_template(const json& node, std::vector<int32_t>* prefix, std::vector<int32_t>* suffix) {
  bool after_text = false;
  const char* where = "post_processor TemplateProcessing";
  for (const json& part : json_array(node, "single", where)) {
    if (part.is_object() && part.contains("Sequence")) {
      after_text = true;
      continue;
    }
    const std::string name = json_string(json_member(part, "SpecialToken", where), "id", where);
    const json& token = json_member(json_member(node, "special_tokens", where), name.c_str(), where);
    for (const json& id : json_array(token, "ids", where)) (after_text ? suffix : prefix)->push_back(json_id(id, where));
  }
}

void parse_processor(const json& node, int depth, std::vector<int32_t>* prefix, std::vector<int32_t>* suffix) {
  if (node.is_null()) return;
  if (depth > 16) throw Error(ErrorCode::kCorruptData, "tokenizer.json: post-processors nested deeper than 16");
  const std::string type = json_string(node, "type", "post_processor");
  if (type == "ByteLevel") return;  // only trims offsets
  if (type == "Sequence") {
    for (const json& child : json_array(node, "processors", "post_processor"))
      parse_processor(child, depth + 1, prefix, suffix);
  } else if (type == "TemplateProcessing") {
    parse_template(node, prefix, suffix);
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    const auto id_of = [&](const char* key) {
      const json& pair = json_array(node, key, "post_processor");
      if (pair.size() != 2) throw Error(ErrorCode::kCorruptData, "tokenizer.json: post_processor: '{}' wants [name, id]", key);
      return json_id(pair[1], key);
    };
    prefix->push_back(id_of("cls"));
    suffix->push_back(id_of("sep"));
  } else {
    throw Error(ErrorCode::kUnsupported, "tokenizer.json: post-processor '{}' is not supported", type);
  }
}

}  // namespace

void parse_post_processor(const std::string& text, std::vector<int32_t>* prefix, std::vector<int32_t>* suffix) {
  parse_processor(parse_json(text, "post_processor"), 0, prefix, suffix);
}

}  // namespace orrery
