// Writing tokenizer.json and tokenizer_config.json, as `tokenizers` and `transformers` read them.
#include <sys/stat.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tokenizer/flat_map.h"
#include "tokenizer/json_util.h"
#include "tokenizer/spec.h"

namespace orrery {
namespace {

using nlohmann::ordered_json;

ordered_json added_json(const AddedToken& token) {
  return {{"id", token.id},          {"content", token.content}, {"single_word", token.single_word},
          {"lstrip", token.lstrip},  {"rstrip", token.rstrip},   {"normalized", token.normalized},
          {"special", token.special}};
}

ordered_json model_json(const TokenizerSpec& spec) {
  ordered_json model;
  if (spec.model == TokenizerModel::kUnigram) {
    ordered_json vocab = ordered_json::array();
    for (size_t id = 0; id < spec.tokens.size(); ++id) vocab.push_back({spec.tokens[id], spec.scores[id]});
    model = {{"type", "Unigram"}, {"unk_id", spec.unk_id}, {"vocab", std::move(vocab)}, {"byte_fallback", spec.byte_fallback}};
    return model;
  }
  // Members one by one: ordered_json's operator[] would search the whole vocabulary for every token.
  ordered_json::object_t vocab;
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (!spec.tokens[id].empty()) vocab.push_back({spec.tokens[id], id});
  }
  ordered_json merges = ordered_json::array();
  for (const Merge& merge : spec.merges) {
    merges.push_back({spec.tokens[static_cast<size_t>(merge.left)], spec.tokens[static_cast<size_t>(merge.right)]});
  }
  const auto unk = spec.unk_id >= 0 ? ordered_json(spec.tokens[static_cast<size_t>(spec.unk_id)]) : ordered_json();
  model = {{"type", "BPE"},
           {"dropout", nullptr},
           {"unk_token", unk},
           {"continuing_subword_prefix", nullptr},
           {"end_of_word_suffix", nullptr},
           {"fuse_unk", spec.fuse_unk},
           {"byte_fallback", spec.byte_fallback},
           {"ignore_merges", spec.ignore_merges}};
  model["vocab"] = std::move(vocab);
  model["merges"] = std::move(merges);
  return model;
}

std::string config_text(const Tokenizer& tokenizer) {
  const TokenizerSpec& spec = tokenizer.spec();
  ordered_json config;
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  const auto name = [&](const char* key, int32_t id) {
    if (id >= 0) config[key] = tokenizer.token_text(id);
  };
  name("bos_token", spec.bos_id);
  name("eos_token", spec.eos_id);
  name("pad_token", spec.pad_id);
  name("unk_token", spec.unk_id);
  config["clean_up_tokenization_spaces"] = false;
  config["model_max_length"] = 1000000000000000019884624838656.0;
  ordered_json decoder = ordered_json::object();
  for (const AddedToken& token : spec.added) {
    ordered_json entry = added_json(token);
    entry.erase("id");
    decoder[std::to_string(token.id)] = std::move(entry);
  }
  config["added_tokens_decoder"] = std::move(decoder);
  if (!spec.chat_template.empty()) config["chat_template"] = spec.chat_template;
  return config.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

std::string tokenizer_json_text(const Tokenizer& tokenizer) {
  const TokenizerSpec& spec = tokenizer.spec();
  ordered_json root;
  root["version"] = "1.0";
  root["truncation"] = nullptr;
  root["padding"] = nullptr;
  ordered_json added = ordered_json::array();
  for (const AddedToken& token : spec.added) added.push_back(added_json(token));
  root["added_tokens"] = std::move(added);
  root["normalizer"] = ordered_json::parse(spec.normalizer);
  root["pre_tokenizer"] = ordered_json::parse(spec.pre_tokenizer);
  root["post_processor"] = ordered_json::parse(spec.post_processor);
  root["decoder"] = ordered_json::parse(spec.decoder);
  root["model"] = model_json(spec);
  return root.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

void save_tokenizer_json(const Tokenizer& tokenizer, const std::string& folder) {
  if (mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST)
    throw_io_error(errno, fmt::format("cannot create folder {}", folder));
  write_file_bytes(folder + "/tokenizer.json", tokenizer_json_text(tokenizer));
  write_file_bytes(folder + "/tokenizer_config.json", config_text(tokenizer));
}

std::string Tokenizer::content_hash() const {
  const TokenizerSpec& s = spec();
  std::string content = tokenizer_json_text(*this);
  content += fmt::format("|{}|{}|{}|", s.bos_id, s.eos_id, s.pad_id);
  for (const Merge& merge : s.merges) content += fmt::format("{},", merge.rank);
  content += s.chat_template;
  if (s.sentencepiece) {
    const SentencePieceOptions& o = *s.sentencepiece;
    content += fmt::format("|{}{}{}{}|", o.add_dummy_prefix, o.remove_extra_whitespaces, o.escape_whitespaces,
                           o.treat_whitespace_as_suffix);
    content += o.precompiled_charsmap;
    for (const std::string& piece : o.user_defined) content += fmt::format("|{}", piece);
    content.append(s.piece_types.begin(), s.piece_types.end());
  }
  return hash_hex(content);
}

}  // namespace orrery
