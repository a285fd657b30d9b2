// Proves that ids and text equal those of the tokenizers, tiktoken and sentencepiece packages: small vocabularies of every
// kind, with odd texts and the packages' answers, from tests/golden/make_tokenizer_goldens.py.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/golden.h"
#include "tokenizer/bpe_trainer.h"
#include "tokenizer/json_util.h"
#include "tokenizer/tokenizer.h"

namespace orrery {
namespace {

using nlohmann::json;

json read_golden(const std::string& name) { return json::parse(read_file_bytes(golden_path("tokenizer_" + name + ".json"))); }

Tokenizer load(const json& golden) {
  const std::string kind = golden.at("kind");
  if (kind == "json") return load_tokenizer_json(golden.at("file").get<std::string>());
  if (kind == "sentencepiece") return load_sentencepiece(base64_decode(golden.at("file_base64").get<std::string>()));
  return load_tiktoken(golden.at("file").get<std::string>(), kind.substr(kind.find(':') + 1));
}

std::string text_of(const json& entry) {
  if (entry.contains("text")) return entry["text"];
  const std::string hex = entry.at("hex");
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

class TokenizerGolden : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerGolden, IdsEqualThePackages) {
  const json golden = read_golden(GetParam());
  const Tokenizer tokenizer = load(golden);
  EncodeScratch scratch;
  for (const json& entry : golden["cases"]) {
    const bool special = entry.value("special", false);
    std::vector<int32_t> ids;
    tokenizer.encode(text_of(entry), {.add_special = special, .allow_special = special}, &scratch, &ids);
    EXPECT_EQ(ids, entry["ids"].get<std::vector<int32_t>>()) << entry.dump().substr(0, 300);
    // The package writes U+FFFD for broken UTF-8 where Orrery gives the bytes.
    if (entry.contains("decoded") && entry["decoded"].get<std::string>().find("\xEF\xBF\xBD") == std::string::npos) {
      EXPECT_EQ(tokenizer.decode(ids), entry["decoded"].get<std::string>()) << entry.dump().substr(0, 300);
    }
  }
}

// What save writes reads back as the same tokenizer (SentencePiece changes its kind on the way, so its hash does too).
TEST_P(TokenizerGolden, SavedTextReadsBackTheSame) {
  const json golden = read_golden(GetParam());
  const Tokenizer tokenizer = load(golden);
  const Tokenizer again = load_tokenizer_json(tokenizer_json_text(tokenizer));
  EXPECT_EQ(again.vocab_size(), tokenizer.vocab_size());
  if (golden["kind"] == "json") {
    EXPECT_EQ(again.content_hash(), tokenizer.content_hash());
  }
  if (golden["kind"] == "sentencepiece") return;
  for (const json& entry : golden["cases"]) {
    const std::string text = text_of(entry);
    EXPECT_EQ(again.encode(text), tokenizer.encode(text)) << text.substr(0, 200);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerGolden,
                         testing::Values("gpt2", "llama3", "qwen2", "cl100k", "o200k", "smollm", "deepseek", "odd", "llama2",
                                         "unigram", "sp_unigram", "sp_bpe", "sp_bpe_rules", "sp_user", "tiktoken"),
                         [](const auto& kind) { return std::string(kind.param); });

// The trainer learns the vocabulary and the merges that the tokenizers package learns from the same text, for 1 and 3 threads.
TEST(TokenizerGolden, TrainerEqualsThePackage) {
  const json golden = read_golden("trained");
  const std::string text = golden["cases"][0]["text"];
  const json wanted = json::parse(golden["file"].get<std::string>())["model"];
  TrainBpeOptions options;
  options.vocab_size = 900;
  options.min_frequency = 3;
  options.special_tokens = {"<|end|>"};
  ThreadPool pool(3, /*pin=*/false);
  for (ThreadPool* threads : {static_cast<ThreadPool*>(nullptr), &pool}) {
    options.pool = threads;
    // With threads the text comes in pieces that end at a line's end, where no word crosses.
    size_t at = 0;
    const NextChunk next = [&](std::string* chunk) {
      if (at >= text.size()) return false;
      *chunk = text.substr(at);
      at = text.size();
      return true;
    };
    const json model = json::parse(tokenizer_json_text(train_bpe(next, options)))["model"];
    EXPECT_EQ(model["vocab"], wanted["vocab"]);
    EXPECT_EQ(model["merges"], wanted["merges"]);
  }
}

}  // namespace
}  // namespace orrery
