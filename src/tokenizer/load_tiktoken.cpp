// Rank tables: tiktoken's lines of "base64 rank" and mistral-common's tekken.json. A token may be merged from any two tokens
// that make it, lowest rank first.
#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tokenizer/json_util.h"
#include "tokenizer/spec.h"
#include "tokenizer/splitter.h"

namespace orrery {
namespace {

using nlohmann::json;

constexpr char kByteLevelDecoder[] = R"({"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true})";

// Rank tables merge what they find: `bytes` by id, the rank being the id. Fills names and merges.
void fill_from_ranks(const std::vector<std::string>& bytes, int32_t first_id, TokenizerSpec* spec) {
  std::vector<int64_t> ranks(bytes.size(), -1);
  std::vector<bool> seen(256, false);
  for (size_t id = static_cast<size_t>(first_id); id < bytes.size(); ++id) {
    if (bytes[id].empty()) continue;
    ranks[id] = static_cast<int64_t>(id) - first_id;
    if (bytes[id].size() == 1) seen[static_cast<uint8_t>(bytes[id][0])] = true;
    spec->tokens[id] = bytes_to_printable(bytes[id]);
  }
  const auto missing = std::find(seen.begin(), seen.end(), false);
  if (missing != seen.end()) {
    throw Error(ErrorCode::kCorruptData, "token ranks: byte 0x{:02x} has no token; a rank table holds all 256 bytes",
                missing - seen.begin());
  }
  spec->merges = merges_from_ranks(bytes, ranks);
  spec->ignore_merges = true;
  spec->decoder = kByteLevelDecoder;
}

void add_special(const std::string& content, int32_t id, TokenizerSpec* spec) {
  AddedToken token;
  token.id = id;
  token.content = content;
  token.special = true;
  if (static_cast<size_t>(id) >= spec->tokens.size()) spec->tokens.resize(static_cast<size_t>(id) + 1);
  spec->tokens[static_cast<size_t>(id)] = content;
  spec->added.push_back(std::move(token));
}

// One line's bytes and rank.
std::pair<std::string, uint32_t> parse_line(std::string_view line, size_t line_number, size_t rank_limit) {
  const size_t space = line.find(' ');
  uint32_t rank = 0;
  const char* end = line.data() + line.size();
  if (space != std::string_view::npos && space > 0) {
    const auto result = std::from_chars(line.data() + space + 1, end, rank);
    if (result.ec == std::errc() && result.ptr == end && rank < rank_limit) {
      std::string bytes = base64_decode(line.substr(0, space));
      if (!bytes.empty()) return {std::move(bytes), rank};
    }
  }
  throw Error(ErrorCode::kCorruptData, "token ranks: line {} is '{}'; wanted a token in base64, a space and a rank below {}",
              line_number, line.substr(0, 60), rank_limit);
}

}  // namespace

Tokenizer load_tiktoken(std::string_view data, std::string_view pattern_name, const std::vector<SpecialToken>& special_tokens) {
  TokenizerSpec spec;
  spec.pre_tokenizer = pre_tokenizer_of_pattern(pattern_name);
  if (spec.pre_tokenizer.empty()) {
    throw Error(ErrorCode::kInvalidArgument,
                "token ranks: pattern '{}' is unknown; use gpt2, cl100k, o200k, llama3, qwen2 or tekken", pattern_name);
  }
  const size_t num_lines = static_cast<size_t>(std::count(data.begin(), data.end(), '\n')) + 1;
  const size_t rank_limit = 4 * num_lines + 65536;
  std::vector<std::string> bytes;
  size_t line_number = 0;
  while (!data.empty()) {
    const size_t newline = std::min(data.find('\n'), data.size());
    std::string_view line = data.substr(0, newline);
    data.remove_prefix(std::min(newline + 1, data.size()));
    ++line_number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    auto [token, rank] = parse_line(line, line_number, rank_limit);
    if (rank >= bytes.size()) bytes.resize(rank + 1);
    if (!bytes[rank].empty())
      throw Error(ErrorCode::kCorruptData, "token ranks: line {}: rank {} stands twice", line_number, rank);
    bytes[rank] = std::move(token);
  }
  if (bytes.empty()) throw Error(ErrorCode::kCorruptData, "token ranks: the file is empty");
  spec.tokens.resize(bytes.size());
  fill_from_ranks(bytes, 0, &spec);
  for (const SpecialToken& token : special_tokens) {
    const bool taken = token.id >= 0 && static_cast<size_t>(token.id) < spec.tokens.size() &&
                       !spec.tokens[static_cast<size_t>(token.id)].empty();
    if (token.id < 0 || static_cast<size_t>(token.id) >= rank_limit || taken) {
      throw Error(ErrorCode::kInvalidArgument, "token ranks: special token '{}' cannot have id {}", token.content, token.id);
    }
    add_special(token.content, token.id, &spec);
    if (token.content == "<|endoftext|>" || token.content == "</s>") spec.eos_id = token.id;
  }
  return Tokenizer(std::move(spec));
}

Tokenizer load_tekken(std::string_view text) {
  const json root = parse_json(text, "tekken.json");
  const json& config = json_member(root, "config", "tekken.json");
  const auto count = [&](const char* key, uint64_t max) {
    const json& node = json_member(config, key, "tekken.json config");
    if (!node.is_number_unsigned() || node.get<uint64_t>() > max) {
      throw Error(ErrorCode::kCorruptData, "tekken.json: {} is {}; wanted at most {}", key, node.dump(), max);
    }
    return node.get<size_t>();
  };
  const json& vocab = json_array(root, "vocab", "tekken.json");
  const size_t num_special = count("default_num_special_tokens", 1 << 20);
  const size_t vocab_size = count("default_vocab_size", num_special + vocab.size());
  if (vocab_size <= num_special)
    throw Error(ErrorCode::kCorruptData, "tekken.json: {} tokens, {} of them special", vocab_size, num_special);
  TokenizerSpec spec;
  spec.pre_tokenizer = pre_tokenizer_of_regex(json_string(config, "pattern", "tekken.json config"));
  spec.tokens.resize(vocab_size);
  std::vector<std::string> bytes(vocab_size);
  for (size_t rank = 0; rank + num_special < vocab_size; ++rank) {
    const json& node = json_member(vocab[rank], "rank", "tekken.json vocab");
    if (!node.is_number_unsigned() || node.get<uint64_t>() != rank) {
      throw Error(ErrorCode::kCorruptData, "tekken.json: vocab entry {} has rank {}", rank, node.dump());
    }
    bytes[rank + num_special] = base64_decode(json_string(vocab[rank], "token_bytes", "tekken.json vocab"));
  }
  fill_from_ranks(bytes, static_cast<int32_t>(num_special), &spec);
  std::vector<std::string> names = {"<unk>",
                                    "<s>",
                                    "</s>",
                                    "[INST]",
                                    "[/INST]",
                                    "[AVAILABLE_TOOLS]",
                                    "[/AVAILABLE_TOOLS]",
                                    "[TOOL_RESULTS]",
                                    "[/TOOL_RESULTS]",
                                    "[TOOL_CALLS]",
                                    "[IMG]",
                                    "<pad>",
                                    "[IMG_BREAK]",
                                    "[IMG_END]",
                                    "[PREFIX]",
                                    "[MIDDLE]",
                                    "[SUFFIX]",
                                    "[SYSTEM_PROMPT]",
                                    "[/SYSTEM_PROMPT]",
                                    "[TOOL_CONTENT]"};
  if (root.contains("special_tokens") && root["special_tokens"].is_array()) {
    names.clear();
    for (const json& node : root["special_tokens"])
      names.push_back(json_string(node, "token_str", "tekken.json special_tokens"));
  }
  for (size_t id = names.size(); id < num_special; ++id) names.push_back(fmt::format("<SPECIAL_{}>", id));
  for (size_t id = 0; id < num_special; ++id) {
    const auto signed_id = static_cast<int32_t>(id);
    add_special(names[id], signed_id, &spec);
    if (names[id] == "<s>") spec.bos_id = signed_id;
    if (names[id] == "</s>") spec.eos_id = signed_id;
    if (names[id] == "<pad>") spec.pad_id = signed_id;
  }
  spec.post_processor = bos_eos_post_processor(spec, spec.bos_id, -1);
  return Tokenizer(std::move(spec));
}

}  // namespace orrery
