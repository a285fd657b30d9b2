// GGUF's tokenizer.* keys, and their making from a Hugging Face tokenizer.json.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "checkpoint/gguf_model.h"

namespace orrery {
namespace {

using Json = nlohmann::json;

int32_t id_of(const GgufReader& file, const std::string& key, size_t num_tokens) {
  const auto id = file.integer(key);
  if (!id) return -1;
  if (*id < 0 || static_cast<uint64_t>(*id) >= num_tokens) {
    throw Error(ErrorCode::kCorruptData, "{}: {}={} is outside the vocabulary of {}", file.path(), key, *id, num_tokens);
  }
  return static_cast<int32_t>(*id);
}

Json parse_json(std::string_view text, std::string_view where) {
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    throw Error(ErrorCode::kCorruptData, "{}: not valid JSON ({})", where, error.what());
  }
}

/// llama.cpp's name for a pre-tokenizer, by the regexes in it.
std::string pre_name(const Json& pre_tokenizer) {
  const std::string text = pre_tokenizer.is_null() ? "" : pre_tokenizer.dump();
  const auto has = [&](std::string_view part) { return text.find(part) != std::string::npos; };
  if (has(R"(\\p{N}{1,3})")) return has(R"(\\p{Lu})") ? "gpt-4o" : "llama-bpe";
  if (has(R"([^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|)")) return "qwen2";
  if (has(R"(\\p{Lu})") && has(R"(|\\p{N}|)")) return "tekken";
  if (!has("\"Regex\"") && has("\"ByteLevel\"")) {
    if (has("\"individual_digits\":true")) return "smollm";
    if (!has("\"Digits\"") && !has("\"Punctuation\"")) return "gpt-2";
  }
  throw Error(ErrorCode::kUnsupported, "tokenizer.json: GGUF has no name for this pre-tokenizer; known: gpt-2, smollm, llama-bpe, qwen2, tekken, gpt-4o");
}

/// The id of a special token that tokenizer_config.json names: a text, or an object with "content".
std::optional<std::string> token_name(const Json& config, const char* key) {
  const auto it = config.find(key);
  if (it == config.end()) return std::nullopt;
  if (it->is_string()) return it->get<std::string>();
  if (it->is_object() && it->contains("content") && (*it)["content"].is_string()) return (*it)["content"].get<std::string>();
  return std::nullopt;
}

int64_t checked_id(const Json& value, int64_t vocab_size) {
  if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() >= vocab_size) {
    throw Error(ErrorCode::kCorruptData, "tokenizer.json: token id {} is outside the model's vocabulary of {}", value.dump(), vocab_size);
  }
  return value.get<int64_t>();
}

void read_merges(const Json& model, GgufVocabulary& vocabulary) {
  for (const Json& merge : model.value("merges", Json::array())) {
    if (merge.is_string()) {
      vocabulary.merges.push_back(merge.get<std::string>());
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      vocabulary.merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    } else {
      throw Error(ErrorCode::kCorruptData, "tokenizer.json: a merge is neither \"a b\" nor [\"a\", \"b\"]");
    }
  }
}

GgufVocabulary read_bpe(const Json& json, const ModelConfig& config) {
  const Json& model = json.at("model");
  if (model.value("type", "BPE") != "BPE" || model.value("byte_fallback", false)) {
    throw Error(ErrorCode::kUnsupported, "tokenizer.json: model \"{}\"{} cannot be exported to GGUF; byte-level BPE can", model.value("type", ""),
                model.value("byte_fallback", false) ? " with byte fallback" : "");
  }
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = pre_name(json.value("pre_tokenizer", Json()));
  vocabulary.tokens.resize(static_cast<size_t>(config.vocab_size));
  vocabulary.token_types.assign(static_cast<size_t>(config.vocab_size), 5);
  const auto put = [&](int64_t id, const std::string& token, int32_t type) {
    vocabulary.tokens[static_cast<size_t>(id)] = token;
    vocabulary.token_types[static_cast<size_t>(id)] = type;
  };
  for (const auto& [token, id] : model.at("vocab").items()) put(checked_id(id, config.vocab_size), token, 1);
  for (const Json& added : json.value("added_tokens", Json::array())) {
    put(checked_id(added.at("id"), config.vocab_size), added.at("content").get<std::string>(), added.value("special", false) ? 3 : 4);
  }
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (vocabulary.token_types[id] == 5) vocabulary.tokens[id] = fmt::format("[PAD{}]", id);
  }
  read_merges(model, vocabulary);
  return vocabulary;
}

}  // namespace

std::optional<GgufVocabulary> read_gguf_vocabulary(const GgufReader& file) {
  const auto model = file.text("tokenizer.ggml.model");
  if (!model || *model == "none" || *model == "no_vocab") return std::nullopt;
  GgufVocabulary vocabulary;
  vocabulary.model = *model;
  vocabulary.pre = file.text("tokenizer.ggml.pre").value_or("");
  vocabulary.tokens = file.texts("tokenizer.ggml.tokens").value_or(std::vector<std::string>{});
  const size_t count = vocabulary.tokens.size();
  if (count == 0) throw Error(ErrorCode::kCorruptData, "{}: tokenizer.ggml.tokens is missing or empty", file.path());
  for (const double score : file.numbers("tokenizer.ggml.scores").value_or(std::vector<double>{})) vocabulary.scores.push_back(static_cast<float>(score));
  for (const int64_t type : file.integers("tokenizer.ggml.token_type").value_or(std::vector<int64_t>{})) {
    vocabulary.token_types.push_back(static_cast<int32_t>(type));
  }
  if ((!vocabulary.scores.empty() && vocabulary.scores.size() != count) || (!vocabulary.token_types.empty() && vocabulary.token_types.size() != count)) {
    throw Error(ErrorCode::kCorruptData, "{}: {} tokens, {} scores and {} token types", file.path(), count, vocabulary.scores.size(),
                vocabulary.token_types.size());
  }
  vocabulary.merges = file.texts("tokenizer.ggml.merges").value_or(std::vector<std::string>{});
  vocabulary.bos_id = id_of(file, "tokenizer.ggml.bos_token_id", count);
  vocabulary.eos_id = id_of(file, "tokenizer.ggml.eos_token_id", count);
  vocabulary.pad_id = id_of(file, "tokenizer.ggml.padding_token_id", count);
  vocabulary.unk_id = id_of(file, "tokenizer.ggml.unknown_token_id", count);
  vocabulary.add_bos = file.flag("tokenizer.ggml.add_bos_token");
  vocabulary.add_eos = file.flag("tokenizer.ggml.add_eos_token");
  vocabulary.add_space_prefix = file.flag("tokenizer.ggml.add_space_prefix");
  vocabulary.remove_extra_whitespaces = file.flag("tokenizer.ggml.remove_extra_whitespaces");
  for (const int64_t byte : file.integers("tokenizer.ggml.precompiled_charsmap").value_or(std::vector<int64_t>{})) {
    vocabulary.precompiled_charsmap.push_back(static_cast<char>(byte));
  }
  vocabulary.chat_template = file.text("tokenizer.chat_template").value_or("");
  vocabulary.tokenizer_json = file.text("tokenizer.huggingface.json").value_or("");
  return vocabulary;
}

void add_vocabulary_metadata(const GgufVocabulary& vocabulary, GgufMetadata& metadata) {
  metadata.add_text("tokenizer.ggml.model", vocabulary.model);
  if (!vocabulary.pre.empty()) metadata.add_text("tokenizer.ggml.pre", vocabulary.pre);
  metadata.add_texts("tokenizer.ggml.tokens", vocabulary.tokens);
  if (!vocabulary.scores.empty()) metadata.add_f32s("tokenizer.ggml.scores", vocabulary.scores);
  if (!vocabulary.token_types.empty()) metadata.add_i32s("tokenizer.ggml.token_type", vocabulary.token_types);
  if (!vocabulary.merges.empty()) metadata.add_texts("tokenizer.ggml.merges", vocabulary.merges);
  const auto id = [&](const char* key, int32_t value) {
    if (value >= 0) metadata.add_u32(key, static_cast<uint32_t>(value));
  };
  id("tokenizer.ggml.bos_token_id", vocabulary.bos_id);
  id("tokenizer.ggml.eos_token_id", vocabulary.eos_id);
  id("tokenizer.ggml.padding_token_id", vocabulary.pad_id);
  id("tokenizer.ggml.unknown_token_id", vocabulary.unk_id);
  const auto flag = [&](const char* key, const std::optional<bool>& value) {
    if (value) metadata.add_bool(key, *value);
  };
  flag("tokenizer.ggml.add_bos_token", vocabulary.add_bos);
  flag("tokenizer.ggml.add_eos_token", vocabulary.add_eos);
  flag("tokenizer.ggml.add_space_prefix", vocabulary.add_space_prefix);
  flag("tokenizer.ggml.remove_extra_whitespaces", vocabulary.remove_extra_whitespaces);
  if (!vocabulary.chat_template.empty()) metadata.add_text("tokenizer.chat_template", vocabulary.chat_template);
  if (!vocabulary.tokenizer_json.empty()) metadata.add_text("tokenizer.huggingface.json", vocabulary.tokenizer_json);
}

GgufVocabulary vocabulary_from_tokenizer_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json, const ModelConfig& config) {
  const Json json = parse_json(tokenizer_json, "tokenizer.json");
  GgufVocabulary vocabulary;
  try {
    vocabulary = read_bpe(json, config);
  } catch (const Json::exception& error) {
    throw Error(ErrorCode::kCorruptData, "tokenizer.json: {}", error.what());
  }
  vocabulary.tokenizer_json = std::string(tokenizer_json);
  const auto find = [&](const std::optional<std::string>& name) -> int32_t {
    if (!name) return -1;
    const auto it = std::find(vocabulary.tokens.begin(), vocabulary.tokens.end(), *name);
    return it == vocabulary.tokens.end() ? -1 : static_cast<int32_t>(it - vocabulary.tokens.begin());
  };
  const auto in_range = [&](std::optional<int64_t> id) -> int32_t { return id && *id >= 0 && *id < config.vocab_size ? static_cast<int32_t>(*id) : -1; };
  vocabulary.bos_id = in_range(config.bos_token_id);
  vocabulary.eos_id = config.eos_token_ids.empty() ? -1 : in_range(config.eos_token_ids[0]);
  vocabulary.pad_id = in_range(config.pad_token_id);
  vocabulary.add_bos = false;
  if (!tokenizer_config_json.empty()) {
    const Json settings = parse_json(tokenizer_config_json, "tokenizer_config.json");
    if (settings.is_object()) {
      if (vocabulary.bos_id < 0) vocabulary.bos_id = find(token_name(settings, "bos_token"));
      // The tokenizer's own end token ends a chat turn, which the model's first may not.
      if (const int32_t eos = find(token_name(settings, "eos_token")); eos >= 0) vocabulary.eos_id = eos;
      if (vocabulary.pad_id < 0) vocabulary.pad_id = find(token_name(settings, "pad_token"));
      vocabulary.unk_id = find(token_name(settings, "unk_token"));
      const auto add_bos = settings.find("add_bos_token");
      if (add_bos != settings.end() && add_bos->is_boolean()) vocabulary.add_bos = add_bos->get<bool>();
    }
    vocabulary.chat_template = chat_template_of(tokenizer_config_json);
  }
  // A template post-processor that starts with the BOS token puts it, whatever the configuration says.
  const std::string post = json.contains("post_processor") ? json["post_processor"].dump() : "";
  if (vocabulary.bos_id >= 0 && post.find("\"TemplateProcessing\"") != std::string::npos &&
      post.find(Json(vocabulary.tokens[static_cast<size_t>(vocabulary.bos_id)]).dump()) != std::string::npos) {
    vocabulary.add_bos = true;
  }
  return vocabulary;
}

std::string chat_template_of(std::string_view tokenizer_config_json) {
  if (tokenizer_config_json.empty()) return {};
  const Json settings = parse_json(tokenizer_config_json, "tokenizer_config.json");
  if (!settings.is_object() || !settings.contains("chat_template")) return {};
  const Json& entry = settings["chat_template"];
  if (entry.is_string()) return entry.get<std::string>();
  if (!entry.is_array()) return {};
  for (const Json& named : entry) {
    if (named.is_object() && named.value("name", Json()) == "default" && named.contains("template") && named["template"].is_string()) {
      return named["template"].get<std::string>();
    }
  }
  return {};
}

}  // namespace orrery
