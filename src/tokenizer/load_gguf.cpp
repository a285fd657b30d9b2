// A vocabulary as GGUF keeps it: "gpt2" is byte-level BPE with a named pattern, "llama" SentencePiece BPE, "t5" SentencePiece
// unigram.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tokenizer/flat_map.h"
#include "tokenizer/spec.h"

namespace orrery {
namespace {

using nlohmann::json;

constexpr std::string_view kDeepSeekPattern =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

std::string deepseek_pre_tokenizer() {
  json steps = json::array();
  for (const std::string_view pattern :
       {std::string_view(R"(\p{N}{1,3})"), std::string_view("[一-龥぀-ゟ゠-ヿ]+"), kDeepSeekPattern}) {
    steps.push_back(
        {{"type", "Split"}, {"pattern", {{"Regex", std::string(pattern)}}}, {"behavior", "Isolated"}, {"invert", false}});
  }
  steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}});
  return json{{"type", "Sequence"}, {"pretokenizers", steps}}.dump();
}

std::string pre_tokenizer_of_gguf(const std::string& pre) {
  const auto is = [&](std::initializer_list<std::string_view> names) {
    return std::find(names.begin(), names.end(), pre) != names.end();
  };
  if (is({"", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v2-code"})) {
    return pre_tokenizer_of_pattern("gpt2");
  }
  if (is({"llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe", "chatglm-bpe", "glm4"}))
    return pre_tokenizer_of_pattern("llama3");
  if (is({"qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"})) return pre_tokenizer_of_pattern("qwen2");
  if (is({"smollm", "starcoder", "refact", "command-r", "codeshell"})) return pre_tokenizer_of_pattern("digits+gpt2");
  if (is({"gpt-4o", "llama4"})) return pre_tokenizer_of_pattern("o200k");
  if (is({"tekken"})) return pre_tokenizer_of_pattern("tekken");
  if (is({"deepseek-v3"})) return deepseek_pre_tokenizer();
  throw Error(ErrorCode::kUnsupported, "GGUF tokenizer: pre-tokenizer '{}' is not supported", pre);
}

// Control tokens are special, user-defined ones are matched in any text.
void add_gguf_tokens(const GgufTokenizerData& data, TokenizerSpec* spec) {
  for (size_t id = 0; id < data.token_types.size(); ++id) {
    const int32_t type = data.token_types[id];
    if (type != 3 && type != 4 && type != 2) continue;
    AddedToken token;
    token.id = static_cast<int32_t>(id);
    token.content = data.tokens[id];
    token.special = type != 4;
    spec->added.push_back(std::move(token));
  }
}

void read_merges(const GgufTokenizerData& data, TokenizerSpec* spec) {
  StringIndex index;
  for (size_t id = 0; id < spec->tokens.size(); ++id) {
    if (!spec->tokens[id].empty()) index.insert(spec->tokens, static_cast<int32_t>(id));
  }
  for (const std::string& text : data.merges) {
    const size_t space = text.find(' ', 1);
    const std::string left = text.substr(0, std::min(space, text.size()));
    const std::string right = space == std::string::npos ? "" : text.substr(space + 1);
    const auto id_of = [&](const std::string& token) {
      const int32_t id = token.empty() ? -1 : index.find(spec->tokens, token);
      if (id < 0) {
        throw Error(ErrorCode::kCorruptData, "GGUF tokenizer: merge {} ('{}') names '{}', which is not in the vocabulary",
                    spec->merges.size(), text, token);
      }
      return id;
    };
    spec->merges.push_back({id_of(left), id_of(right), static_cast<uint32_t>(spec->merges.size()), id_of(left + right)});
  }
}

void fill_bpe(const GgufTokenizerData& data, TokenizerSpec* spec) {
  spec->pre_tokenizer = pre_tokenizer_of_gguf(data.pre);
  spec->ignore_merges = data.pre == "llama3" || data.pre == "llama-v3" || data.pre == "llama-bpe" || data.pre == "falcon3" ||
                        data.pre == "tekken";
  if (data.pre == "qwen2" || data.pre == "deepseek-r1-qwen") spec->normalizer = R"({"type":"NFC"})";
  spec->decoder = R"({"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true})";
  require_utf8_tokens(spec->tokens, "GGUF tokenizer");
  read_merges(data, spec);
  add_gguf_tokens(data, spec);
}

std::string with_escaped_spaces(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (c == ' ')
      escaped += "\xE2\x96\x81";
    else
      escaped += c;
  }
  return escaped;
}

void fill_sentencepiece(const GgufTokenizerData& data, TokenizerSpec* spec) {
  if (data.scores.size() != data.tokens.size() || data.token_types.size() != data.tokens.size()) {
    throw Error(ErrorCode::kCorruptData, "GGUF tokenizer '{}': {} tokens, {} scores, {} types", data.model, data.tokens.size(),
                data.scores.size(), data.token_types.size());
  }
  spec->model = data.model == "t5" ? TokenizerModel::kUnigram : TokenizerModel::kBpe;
  spec->scores.assign(data.scores.begin(), data.scores.end());
  for (const int32_t type : data.token_types) {
    if (type < 1 || type > 6) throw Error(ErrorCode::kCorruptData, "GGUF tokenizer: token type {}", type);
    spec->piece_types.push_back(static_cast<uint8_t>(type));
    if (type == 6) spec->byte_fallback = true;
    // Converters write user-defined pieces as they stand in a text (Gemma's runs of spaces); SentencePiece has every space escaped.
    if (type == 4) spec->tokens[spec->piece_types.size() - 1] = with_escaped_spaces(spec->tokens[spec->piece_types.size() - 1]);
  }
  SentencePieceOptions options;
  options.precompiled_charsmap = data.precompiled_charsmap;
  options.add_dummy_prefix = data.add_space_prefix.value_or(true);
  options.remove_extra_whitespaces = data.remove_extra_whitespaces.value_or(false);
  spec->sentencepiece = std::move(options);
  finish_sentencepiece(spec);
}

}  // namespace

Tokenizer load_gguf_tokenizer(const GgufTokenizerData& data) {
  if (!data.token_types.empty() && data.token_types.size() != data.tokens.size()) {
    throw Error(ErrorCode::kCorruptData, "GGUF tokenizer: {} tokens, {} types", data.tokens.size(), data.token_types.size());
  }
  TokenizerSpec spec;
  spec.tokens = data.tokens;
  spec.unk_id = data.unk_id;
  spec.bos_id = data.bos_id;
  spec.eos_id = data.eos_id;
  spec.pad_id = data.pad_id;
  spec.chat_template = data.chat_template;
  if (data.model == "gpt2") {
    spec.unk_id = -1;  // every byte has a token
    fill_bpe(data, &spec);
  } else if (data.model == "llama" || data.model == "t5") {
    fill_sentencepiece(data, &spec);
  } else {
    throw Error(ErrorCode::kUnsupported, "GGUF tokenizer: model '{}' is not supported; gpt2, llama and t5 are", data.model);
  }
  const bool llama3 = spec.ignore_merges && data.pre != "tekken";
  const bool add_bos = data.add_bos.value_or(data.model == "llama" || llama3 || data.pre == "tekken");
  const bool add_eos = data.add_eos.value_or(data.model == "t5");
  spec.post_processor = bos_eos_post_processor(spec, add_bos ? data.bos_id : -1, add_eos ? data.eos_id : -1);
  return Tokenizer(std::move(spec));
}

}  // namespace orrery
