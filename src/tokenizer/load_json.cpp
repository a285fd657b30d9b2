// tokenizer.json and tokenizer_config.json as the `tokenizers` and `transformers` packages write them.
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tokenizer/flat_map.h"
#include "tokenizer/json_util.h"
#include "tokenizer/spec.h"

namespace orrery {
namespace {

using nlohmann::json;

int64_t checked_token_id(const json& node, size_t num_tokens, const std::string& token) {
  const auto limit = static_cast<int64_t>(4 * num_tokens + 65536);
  if (node.is_number_unsigned() && node.get<uint64_t>() < static_cast<uint64_t>(limit)) {
    return node.get<int64_t>();
  }
  throw Error(ErrorCode::kCorruptData, "tokenizer.json: token '{}' has id {}; wanted an integer in [0, {}) for {} tokens",
              token, node.dump(), limit, num_tokens);
}

void put_token(TokenizerSpec* spec, int64_t id, const std::string& token) {
  if (token.empty()) throw Error(ErrorCode::kCorruptData, "tokenizer.json: token {} is an empty string", id);
  if (static_cast<size_t>(id) >= spec->tokens.size()) spec->tokens.resize(static_cast<size_t>(id) + 1);
  std::string& slot = spec->tokens[static_cast<size_t>(id)];
  if (!slot.empty()) throw Error(ErrorCode::kCorruptData, "tokenizer.json: id {} belongs to '{}' and to '{}'", id, slot, token);
  slot = token;
}

std::pair<std::string, std::string> merge_parts(const json& node, size_t rank) {
  if (node.is_array() && node.size() == 2 && node[0].is_string() && node[1].is_string()) {
    return {node[0].get<std::string>(), node[1].get<std::string>()};
  }
  if (node.is_string()) {
    const auto& text = node.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  }
  throw Error(ErrorCode::kCorruptData, "tokenizer.json: merge {} is {}; wanted two tokens", rank, node.dump());
}

void require_absent(const json& model, const char* key) {
  const auto it = model.find(key);
  if (it == model.end() || it->is_null() || (it->is_string() && it->get_ref<const std::string&>().empty()) ||
      (it->is_number() && it->get<double>() == 0.0)) {
    return;
  }
  throw Error(ErrorCode::kUnsupported, "tokenizer.json: BPE model with {} = {} is not supported", key, it->dump());
}

void read_bpe(const json& model, TokenizerSpec* spec) {
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) require_absent(model, key);
  const json& vocab = json_member(model, "vocab", "tokenizer.json model");
  if (!vocab.is_object())
    throw Error(ErrorCode::kCorruptData, "tokenizer.json: BPE vocab is a {}, wanted an object", vocab.type_name());
  spec->tokens.reserve(vocab.size());
  for (const auto& [token, id] : vocab.items()) put_token(spec, checked_token_id(id, vocab.size(), token), token);
  StringIndex index;
  for (size_t id = 0; id < spec->tokens.size(); ++id) {
    if (!spec->tokens[id].empty()) index.insert(spec->tokens, static_cast<int32_t>(id));
  }
  const json& merges = json_array(model, "merges", "tokenizer.json model");
  spec->merges.reserve(merges.size());
  for (const json& node : merges) {
    const size_t rank = spec->merges.size();
    const auto [left, right] = merge_parts(node, rank);
    const auto id_of = [&](const std::string& token) {
      const int32_t id = token.empty() ? -1 : index.find(spec->tokens, token);
      if (id < 0) {
        throw Error(ErrorCode::kCorruptData,
                    "tokenizer.json: merge {} ('{}' + '{}') names '{}', which is not in the vocabulary", rank, left, right,
                    token);
      }
      return id;
    };
    spec->merges.push_back({id_of(left), id_of(right), static_cast<uint32_t>(rank), id_of(left + right)});
  }
  if (model.contains("unk_token") && !model["unk_token"].is_null()) {
    const std::string unk = json_string(model, "unk_token", "tokenizer.json model");
    spec->unk_id = index.find(spec->tokens, unk);
    if (spec->unk_id < 0) {
      throw Error(ErrorCode::kCorruptData, "tokenizer.json: unk_token '{}' is not in the vocabulary", unk);
    }
  }
  spec->fuse_unk = json_bool(model, "fuse_unk", false);
  spec->byte_fallback = json_bool(model, "byte_fallback", false);
  spec->ignore_merges = json_bool(model, "ignore_merges", false);
}

void read_unigram(const json& model, TokenizerSpec* spec) {
  spec->model = TokenizerModel::kUnigram;
  const json& vocab = json_array(model, "vocab", "tokenizer.json model");
  for (const json& entry : vocab) {
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number()) {
      throw Error(ErrorCode::kCorruptData, "tokenizer.json: unigram vocab entry {} is {}; wanted [token, score]",
                  spec->tokens.size(), entry.dump());
    }
    put_token(spec, static_cast<int64_t>(spec->tokens.size()), entry[0].get<std::string>());
    spec->scores.push_back(entry[1].get<double>());
  }
  const auto unk = model.find("unk_id");
  if (unk != model.end() && unk->is_number_unsigned() && unk->get<uint64_t>() < spec->tokens.size())
    spec->unk_id = unk->get<int32_t>();
  spec->byte_fallback = json_bool(model, "byte_fallback", false);
}

void read_added(const json& root, TokenizerSpec* spec) {
  if (!root.contains("added_tokens") || root["added_tokens"].is_null()) return;
  const json& added = json_array(root, "added_tokens", "tokenizer.json");
  for (const json& node : added) {
    AddedToken token;
    token.content = json_string(node, "content", "tokenizer.json added_tokens");
    token.id = static_cast<int32_t>(
        checked_token_id(json_member(node, "id", "added_tokens"), spec->tokens.size() + added.size(), token.content));
    token.special = json_bool(node, "special", false);
    token.normalized = json_bool(node, "normalized", !token.special);
    token.single_word = json_bool(node, "single_word", false);
    token.lstrip = json_bool(node, "lstrip", false);
    token.rstrip = json_bool(node, "rstrip", false);
    spec->added.push_back(std::move(token));
  }
}

std::string component(const json& root, const char* key) {
  const auto it = root.find(key);
  return it == root.end() ? "null" : it->dump(-1, ' ', false, json::error_handler_t::replace);
}

int32_t find_token(const TokenizerSpec& spec, const std::string& name) {
  for (const AddedToken& token : spec.added) {
    if (token.content == name) return token.id;
  }
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (spec.tokens[id] == name) return static_cast<int32_t>(id);
  }
  return -1;
}

void read_config(const json& config, TokenizerSpec* spec) {
  if (!config.is_object())
    throw Error(ErrorCode::kCorruptData, "tokenizer_config.json: wanted an object, found {}", config.type_name());
  const auto id_of = [&](const char* key) -> int32_t {
    const auto it = config.find(key);
    if (it == config.end() || it->is_null()) return -1;
    const std::string name = it->is_string() ? it->get<std::string>() : json_string(*it, "content", "tokenizer_config.json");
    return find_token(*spec, name);
  };
  spec->bos_id = id_of("bos_token");
  spec->eos_id = id_of("eos_token");
  spec->pad_id = id_of("pad_token");
  const auto it = config.find("chat_template");
  if (it == config.end() || it->is_null()) return;
  if (it->is_string()) spec->chat_template = it->get<std::string>();
  if (!it->is_array()) return;
  // Several named templates: the one called "default".
  for (const json& entry : *it) {
    if (json_string(entry, "name", "chat_template") == "default")
      spec->chat_template = json_string(entry, "template", "chat_template");
  }
}

}  // namespace

Tokenizer load_tokenizer_json(std::string_view text, std::string_view config_text) {
  const json root = parse_json(text, "tokenizer.json");
  const json& model = json_member(root, "model", "tokenizer.json");
  TokenizerSpec spec;
  const std::string type =
      model.is_object() && !model.contains("type") ? "BPE" : json_string(model, "type", "tokenizer.json model");
  if (type == "BPE") {
    read_bpe(model, &spec);
  } else if (type == "Unigram") {
    read_unigram(model, &spec);
  } else {
    throw Error(ErrorCode::kUnsupported, "tokenizer.json: model '{}' is not supported; BPE and Unigram are", type);
  }
  read_added(root, &spec);
  spec.normalizer = component(root, "normalizer");
  spec.pre_tokenizer = component(root, "pre_tokenizer");
  spec.post_processor = component(root, "post_processor");
  spec.decoder = component(root, "decoder");
  if (!config_text.empty()) read_config(parse_json(config_text, "tokenizer_config.json"), &spec);
  return Tokenizer(std::move(spec));
}

}  // namespace orrery
