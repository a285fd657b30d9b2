// Proves what the packages cannot be asked: special tokens, bytes that are not UTF-8, streaming, saving, hostile texts in
// bounded time, and that every kind of broken file gives one Error of the right code.
#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "base/fuzz_util.h"
#include "base/golden.h"
#include "tokenizer/bpe_trainer.h"
#include "tokenizer/json_util.h"
#include "tokenizer/spec.h"
#define ORRERY_FUZZ_IN_TEST
#include "tokenizer/sentencepiece_fuzz.cpp"
#include "tokenizer/tiktoken_fuzz.cpp"
#include "tokenizer/tokenizer_encode_fuzz.cpp"
#include "tokenizer/tokenizer_json_fuzz.cpp"

namespace orrery {
namespace {

using nlohmann::json;

Tokenizer train_on(const std::string& text, TrainBpeOptions options) {
  bool done = false;
  return train_bpe(
      [&](std::string* chunk) {
        if (done) return false;
        *chunk = text;
        return done = true;
      },
      options);
}

Tokenizer small_tokenizer() {
  TrainBpeOptions options;
  options.vocab_size = 400;
  options.min_frequency = 1;
  options.special_tokens = {"<s>", "<|end|>"};
  options.bos_token = "<s>";
  options.eos_token = "<|end|>";
  options.add_bos = true;
  return train_on("the cat sat on the mat and the other cat sat on that hat, héllo 👍 wörld; aaaa aaaaaaaa\n", options);
}

json small_json() { return json::parse(tokenizer_json_text(small_tokenizer())); }

json golden(const std::string& name) { return json::parse(read_file_bytes(golden_path("tokenizer_" + name + ".json"))); }
std::string sentencepiece_model(const std::string& name) {
  return base64_decode(golden(name)["file_base64"].get<std::string>());
}

template <typename Body>
void expect_error(ErrorCode code, const std::string& part, Body&& body) {
  try {
    body();
    ADD_FAILURE() << "no error; wanted one with '" << part << "'";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
  }
}

void expect_json_error(ErrorCode code, const std::string& part, const json& file) {
  expect_error(code, part, [&] { load_tokenizer_json(file.dump()); });
}

double seconds(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TEST(Tokenizer, SpecialTokensInPlainTextStayText) {
  const Tokenizer tokenizer = small_tokenizer();
  const std::string text = "the<|end|>cat<s>";
  const auto plain = tokenizer.encode(text);
  EXPECT_EQ(plain.front(), tokenizer.bos_id());
  EXPECT_EQ(std::count(plain.begin(), plain.end(), tokenizer.eos_id()), 0);
  EXPECT_EQ(std::count(plain.begin(), plain.end(), tokenizer.bos_id()), 1);
  const auto special = tokenizer.encode(text, {.add_special = false, .allow_special = true});
  EXPECT_EQ(std::count(special.begin(), special.end(), tokenizer.eos_id()), 1);
  EXPECT_EQ(special.back(), tokenizer.bos_id());
  EXPECT_EQ(tokenizer.decode(special), text);
  EXPECT_EQ(tokenizer.decode(special, {.skip_special = true}), "thecat");
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, {.add_special = false})), text);
  EXPECT_EQ(tokenizer.token_id("<|end|>"), tokenizer.eos_id());
  EXPECT_TRUE(tokenizer.is_special(tokenizer.eos_id()));
  EXPECT_EQ(tokenizer.special_tokens().size(), 2u);
}

TEST(Tokenizer, IdsOutsideTheVocabularyAreRefused) {
  const Tokenizer tokenizer = small_tokenizer();
  for (const int32_t id : {-1, tokenizer.vocab_size(), INT32_MAX, INT32_MIN}) {
    expect_error(ErrorCode::kInvalidArgument, "outside", [&] { (void)tokenizer.decode(std::vector<int32_t>{id}); });
  }
}

// A character of several tokens comes out once it is whole; broken bytes become U+FFFD; the pieces join to the whole text.
TEST(Tokenizer, StreamEmitsWholeCharacters) {
  const Tokenizer tokenizer = load_tokenizer_json(golden("gpt2")["file"].get<std::string>());
  const std::string text = "Hi 👍🏽 你好, ﷽!";
  StreamDecoder stream(tokenizer);
  std::string joined;
  for (const int32_t id : tokenizer.encode(text)) {
    const std::string piece = stream.push(id);
    for (size_t i = 0; i < piece.size(); ++i) ASSERT_NE(static_cast<uint8_t>(piece.front()) & 0xC0, 0x80);
    joined += piece;
  }
  EXPECT_EQ(joined + stream.finish(), text);
  StreamDecoder broken(tokenizer);
  std::string out;
  for (const int32_t id : tokenizer.encode("a\xF0\x9F"
                                           "b\xE2\x82"))
    out += broken.push(id);
  EXPECT_EQ(out + broken.finish(),
            "a\xEF\xBF\xBD"
            "b\xEF\xBF\xBD");
  const Tokenizer llama = load_sentencepiece(sentencepiece_model("sp_bpe"));
  StreamDecoder spaces(llama, {.skip_special = true});
  out.clear();
  for (const int32_t id : llama.encode("the train 👍")) out += spaces.push(id);
  EXPECT_EQ(out + spaces.finish(), "the train 👍");
}

TEST(Tokenizer, SaveAndLoadFolder) {
  const auto folder = std::filesystem::temp_directory_path() / "orrery_tokenizer_test";
  std::filesystem::remove_all(folder);
  const Tokenizer tokenizer = small_tokenizer().with_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}");
  save_tokenizer_json(tokenizer, folder.string());
  const Tokenizer again = load_tokenizer(folder.string());
  EXPECT_EQ(again.content_hash(), tokenizer.content_hash());
  EXPECT_EQ(again.chat_template(), tokenizer.chat_template());
  EXPECT_EQ(again.bos_id(), tokenizer.bos_id());
  EXPECT_EQ(again.eos_id(), tokenizer.eos_id());
  EXPECT_EQ(load_tokenizer((folder / "tokenizer.json").string()).content_hash(), tokenizer.content_hash());
  write_file_bytes((folder / "tokenizer.json").string(), "");
  expect_error(ErrorCode::kCorruptData, "empty", [&] { load_tokenizer(folder.string()); });
  std::filesystem::remove(folder / "tokenizer.json");
  expect_error(ErrorCode::kIo, "no tokenizer in this folder", [&] { load_tokenizer(folder.string()); });
  std::filesystem::remove_all(folder);
  expect_error(ErrorCode::kCorruptData, "cannot open", [&] { load_tokenizer(folder.string()); });
  EXPECT_NE(small_tokenizer().content_hash(), tokenizer.content_hash());
}

TEST(Tokenizer, TrainerRefusesWhatCannotBe) {
  TrainBpeOptions options;
  options.vocab_size = 255;
  expect_error(ErrorCode::kInvalidArgument, "vocab_size", [&] { train_on("x", options); });
  options.vocab_size = 300;
  options.pattern = "nothing";
  expect_error(ErrorCode::kInvalidArgument, "pattern", [&] { train_on("x", options); });
  options.pattern = "gpt2";
  options.eos_token = "</s>";
  expect_error(ErrorCode::kInvalidArgument, "not among the special tokens", [&] { train_on("x", options); });
  options.eos_token.clear();
  EXPECT_EQ(train_on("", options).vocab_size(), 256);
}

// Every text of a megabyte that is hard for some part: one long word, spaces, marks, prefixes of tokens.
TEST(Tokenizer, HostileTextsEndSoon) {
  std::vector<Tokenizer> tokenizers;
  for (const char* name : {"gpt2", "qwen2", "o200k", "llama2", "unigram"})
    tokenizers.push_back(load_tokenizer_json(golden(name)["file"].get<std::string>()));
  tokenizers.push_back(load_sentencepiece(sentencepiece_model("sp_bpe")));
  const size_t n = 200'000;
  std::string marks, mixed;
  for (size_t i = 0; i < n / 4; ++i) marks += i % 2 ? "\u0315" : "\u0316", mixed += "aA";
  for (const std::string& text : {std::string(n, 'a'), std::string(n, ' '), std::string(n, '\n'), std::string(n, '1'),
                                  std::string(n, '\xFF'), "e" + marks, mixed, std::string(n, '<')}) {
    for (const Tokenizer& tokenizer : tokenizers) {
      EXPECT_LT(seconds([&] { (void)tokenizer.encode(text, {.allow_special = true}); }), 5.0) << text.substr(0, 8);
    }
  }
}

TEST(Tokenizer, NestedQuantifierIsAnErrorAndNoHang) {
  json file = small_json();
  for (const char* pattern : {"(a+)+$", "(a|aa)+b", "(\\w+\\s?)*x", "((a*)*)*b"}) {
    file["pre_tokenizer"] = json::parse(pre_tokenizer_of_regex(pattern));
    const Tokenizer tokenizer = load_tokenizer_json(file.dump());
    const double time = seconds([&] {
      try {
        (void)tokenizer.encode(std::string(20000, 'a') + "!");
      } catch (const Error& e) {
        EXPECT_EQ(e.code(), ErrorCode::kUnsupported);
      }
    });
    EXPECT_LT(time, 10.0) << pattern;
  }
  file["pre_tokenizer"] = json::parse(pre_tokenizer_of_regex("(a+)+$"));
  expect_error(ErrorCode::kUnsupported, "gave up",
               [&] { (void)load_tokenizer_json(file.dump()).encode(std::string(5000, 'a') + "!"); });
  file["pre_tokenizer"] = json::parse(pre_tokenizer_of_regex("(unclosed"));
  expect_json_error(ErrorCode::kUnsupported, "does not compile", file);
}

TEST(TokenizerBadInput, Json) {
  const json good = small_json();
  const std::string text = good.dump();
  for (const size_t size : {size_t{0}, size_t{1}, text.size() / 2, text.size() - 1}) {
    expect_error(ErrorCode::kCorruptData, "not JSON", [&] { load_tokenizer_json(text.substr(0, size)); });
  }
  expect_error(ErrorCode::kCorruptData, "nested deeper", [&] { load_tokenizer_json(std::string(100000, '[')); });
  json bad = good;
  bad.erase("model");
  expect_json_error(ErrorCode::kCorruptData, "'model' is missing", bad);
  bad = good;
  bad["model"]["merges"].push_back({"the", "absent-token"});
  expect_json_error(ErrorCode::kCorruptData, "not in the vocabulary", bad);
  // A merge with an empty side would give back its other side: a cycle.
  bad = good;
  bad["model"]["merges"].push_back({"a", ""});
  expect_json_error(ErrorCode::kCorruptData, "not in the vocabulary", bad);
  bad = good;
  bad["model"]["merges"].push_back("a b c");
  expect_json_error(ErrorCode::kCorruptData, "wanted two tokens", bad);
  bad = good;
  bad["model"]["vocab"]["new"] = 7;
  expect_json_error(ErrorCode::kCorruptData, "belongs to", bad);
  for (const json& id : {json(-1), json(1.5), json(4000000000u), json(1ull << 62), json("7")}) {
    bad = good;
    bad["model"]["vocab"]["new"] = id;
    expect_json_error(ErrorCode::kCorruptData, "'new' has id", bad);
    bad = good;
    bad["added_tokens"][0]["id"] = id;
    expect_json_error(ErrorCode::kCorruptData, "has id", bad);
  }
  bad = good;
  bad["model"]["vocab"][""] = 500;
  expect_json_error(ErrorCode::kCorruptData, "empty string", bad);
  bad = good;
  bad["model"]["unk_token"] = "<nowhere>";
  expect_json_error(ErrorCode::kCorruptData, "unk_token", bad);
  bad = good;
  bad["model"]["vocab"]["far"] = 1000;
  EXPECT_EQ(load_tokenizer_json(bad.dump()).vocab_size(), 1001) << "holes are allowed";
}

TEST(TokenizerBadInput, UnknownComponentsAreNamed) {
  for (const char* key : {"normalizer", "pre_tokenizer", "post_processor", "decoder"}) {
    json bad = small_json();
    bad[key] = {{"type", "Frobnicator"}};
    expect_json_error(ErrorCode::kUnsupported, "Frobnicator", bad);
    bad[key] = json::array();
    expect_json_error(ErrorCode::kCorruptData, key, bad);
  }
  json bad = small_json();
  bad["model"]["type"] = "WordPiece";
  expect_json_error(ErrorCode::kUnsupported, "WordPiece", bad);
  bad = small_json();
  bad["model"]["dropout"] = 0.1;
  expect_json_error(ErrorCode::kUnsupported, "dropout", bad);
  // Steps that double the text end in an error before the memory does.
  bad = small_json();
  json steps = json::array();
  for (int i = 0; i < 60; ++i) steps.push_back({{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}});
  bad["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
  expect_error(ErrorCode::kUnsupported, "64 times",
               [&] { (void)load_tokenizer_json(bad.dump()).encode(std::string(1000, 'a')); });
}

TEST(TokenizerBadInput, RankFiles) {
  const std::string good = golden("tiktoken")["file"];
  expect_error(ErrorCode::kCorruptData, "empty", [&] { load_tiktoken("", "gpt2"); });
  expect_error(ErrorCode::kInvalidArgument, "pattern", [&] { load_tiktoken(good, "gpt5"); });
  expect_error(ErrorCode::kCorruptData, "line 1", [&] { load_tiktoken("IQ==\n", "gpt2"); });
  expect_error(ErrorCode::kCorruptData, "not base64", [&] { load_tiktoken("I?== 0\n", "gpt2"); });
  expect_error(ErrorCode::kCorruptData, "has no token", [&] { load_tiktoken("IQ== 0\n", "gpt2"); });
  expect_error(ErrorCode::kCorruptData, "line 1", [&] { load_tiktoken("IQ== 4000000000\n" + good, "gpt2"); });
  expect_error(ErrorCode::kCorruptData, "stands twice", [&] { load_tiktoken(good + "IUE= 3\n", "gpt2"); });
  expect_error(ErrorCode::kCorruptData, "stands twice", [&] { load_tiktoken(good + "IQ== 60000\n", "gpt2"); });
  expect_error(ErrorCode::kInvalidArgument, "cannot have id", [&] { load_tiktoken(good, "gpt2", {{"<s>", 5}}); });
  EXPECT_EQ(load_tiktoken(good, "gpt2", {{"<s>", 1000}}).encode("a<s>", {.allow_special = true}).back(), 1000);
}

TEST(TokenizerBadInput, SentencePieceModels) {
  const std::string good = sentencepiece_model("sp_unigram");
  expect_error(ErrorCode::kCorruptData, "no pieces", [&] { load_sentencepiece(""); });
  for (size_t size = 1; size < good.size(); size += 97) {
    try {
      load_sentencepiece(std::string_view(good).substr(0, size));  // a cut between two fields is a smaller model
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kCorruptData) << e.what();
    }
  }
  const std::string huge =
      "\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F"
      "abc";
  expect_error(ErrorCode::kCorruptData, "bytes where", [&] { load_sentencepiece(huge); });
  expect_error(ErrorCode::kCorruptData, "ten bytes",
               [&] { load_sentencepiece("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01"); });
  // trainer_spec {model_type: WORD}
  expect_error(ErrorCode::kUnsupported, "type 3", [&] { load_sentencepiece(good + std::string("\x12\x02\x18\x03")); });
  // A score of NaN in a piece of its own.
  expect_error(ErrorCode::kCorruptData, "not finite",
               [&] { load_sentencepiece(good + std::string("\x0A\x0A\x0A\x03xyz\x15\x00\x00\xC0\x7F", 12)); });
  const std::string lying_map =
      "\x1A\x0A\x12\x08\xFF\xFF\xFF\x0F"
      "abcd";
  expect_error(ErrorCode::kCorruptData, "charsmap", [&] { load_sentencepiece(good + lying_map); });
}

TEST(TokenizerBadInput, GgufVocabularies) {
  const Tokenizer small = small_tokenizer();
  GgufTokenizerData data;
  data.model = "gpt2";
  data.pre = "gpt-2";
  for (int32_t id = 0; id < small.vocab_size(); ++id) {
    data.tokens.push_back(small.token_text(id));
    data.token_types.push_back(small.is_special(id) ? 3 : 1);
  }
  for (const Merge& merge : small.spec().merges)
    data.merges.push_back(small.token_text(merge.left) + " " + small.token_text(merge.right));
  data.bos_id = 0;
  data.add_bos = true;
  const std::string text = "the cat sat 👍 <s>";
  EXPECT_EQ(load_gguf_tokenizer(data).encode(text), small.encode(text));
  const auto with = [&](auto&& change) {
    GgufTokenizerData bad = data;
    change(&bad);
    return [bad] { load_gguf_tokenizer(bad); };
  };
  expect_error(ErrorCode::kUnsupported, "bert", with([](auto* d) { d->model = "bert"; }));
  expect_error(ErrorCode::kUnsupported, "newest", with([](auto* d) { d->pre = "newest"; }));
  expect_error(ErrorCode::kCorruptData, "types", with([](auto* d) { d->token_types.pop_back(); }));
  expect_error(ErrorCode::kCorruptData, "not in the vocabulary", with([](auto* d) { d->merges.push_back("zz zz"); }));
  expect_error(ErrorCode::kCorruptData, "not in the vocabulary", with([](auto* d) { d->merges.push_back(""); }));
  expect_error(ErrorCode::kCorruptData, "BOS", with([](auto* d) { d->bos_id = 1 << 30; }));
  expect_error(ErrorCode::kCorruptData, "stands twice",
               with([](auto* d) { d->merges.clear(), d->tokens[270] = d->tokens[269]; }));
  expect_error(ErrorCode::kCorruptData, "not UTF-8", with([](auto* d) { d->merges.clear(), d->tokens[270] = "\xFF"; }));
  expect_error(ErrorCode::kCorruptData, "empty",
               with([](auto* d) { d->tokens.clear(), d->token_types.clear(), d->merges.clear(), d->bos_id = -1; }));
  expect_error(ErrorCode::kCorruptData, "scores", with([](auto* d) { d->model = "llama"; }));
}

// Gemma's files: user-defined pieces that are runs of spaces and line ends, written as they stand in a text. The longest run goes first.
TEST(Tokenizer, GgufUserDefinedPiecesWithSpaces) {
  GgufTokenizerData data;
  data.model = "llama";
  const auto add = [&](const char* token, int32_t type, float score) {
    data.tokens.push_back(token);
    data.token_types.push_back(type);
    data.scores.push_back(score);
  };
  add("<unk>", 2, 0);
  add("\xE2\x96\x81", 1, -1);
  add("a", 1, -2);
  add("\xE2\x96\x81" "a", 1, -3);
  add("  ", 4, -1000);
  add("   ", 4, -1000);
  add("\n\n", 4, -1000);
  data.unk_id = 0;
  data.add_bos = false;
  data.add_space_prefix = false;
  const Tokenizer tokenizer = load_gguf_tokenizer(data);
  const std::string text = "a a    a  \n\na";
  const std::vector<int32_t> ids = tokenizer.encode(text);
  EXPECT_EQ(ids, (std::vector<int32_t>{2, 3, 5, 3, 4, 6, 2}));
  EXPECT_EQ(tokenizer.decode(ids), text);
}

TEST(TokenizerFuzz, Files) {
  const std::string small = small_json().dump();
  run_mutations(fuzz_tokenizer_json, {small.substr(0, 4000), small, golden("unigram")["file"].get<std::string>()}, 300, 1);
  run_mutations(fuzz_sentencepiece, {sentencepiece_model("sp_unigram"), sentencepiece_model("sp_bpe_rules")}, 600, 2);
  run_mutations(fuzz_tiktoken, {golden("tiktoken")["file"].get<std::string>(), "IQ== 0\nIg== 1\n"}, 600, 3);
}

TEST(TokenizerFuzz, EncodeRoundTrip) {
  std::vector<std::string> seeds = {"The cat's HAT 123,456\r\n\n  x", "👍🏽 你好 e\u0301 \u00a0\u3000",
                                    "\xFF\xC0\x80 'ſ ǅaA ªA", std::string(50, 'a'), "<|end|><s>"};
  run_mutations(fuzz_tokenizer_encode, seeds, 3000, 4);
}

}  // namespace
}  // namespace orrery
