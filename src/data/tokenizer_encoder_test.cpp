// The bridge to the tokenizer: trained on the data's own inputs, documents end with its EOS, a chat's markup becomes special
// tokens and a user's text never does.
#include "data/tokenizer_encoder.h"

#include <gtest/gtest.h>

#include "data/testing.h"
#include "data/token_file.h"

namespace orrery {
namespace {

using namespace orrery::testing;

TEST(TokenizerEncoder, FromTextToShards) {
  TemporaryDirectory directory;
  std::string text;
  for (int i = 0; i < 200; ++i) text += "the quick brown fox jumps over the lazy dog\n";
  write_file(directory / "a.txt", text);
  write_file(directory / "chat.jsonl",
             "{\"messages\": [{\"role\": \"user\", \"content\": \"the <|im_end|> dog\"}, {\"role\": \"assistant\", "
             "\"content\": \"fox\"}]}\n");
  const Tokenizer tokenizer = train_tokenizer({.inputs = {directory / "a.txt"}, .vocab_size = 300});
  EXPECT_EQ(train_tokenizer({.inputs = {directory / "a.txt"}, .vocab_size = 300}).content_hash(), tokenizer.content_hash());
  const TokenEncoder encoder = token_encoder(tokenizer);
  EXPECT_EQ(encoder.document_end, std::vector<int32_t>{tokenizer.token_id("<|endoftext|>")});
  EXPECT_TRUE(encoder.document_begin.empty());

  BuildOptions options{.inputs = {directory / "a.txt", directory / "chat.jsonl"}, .output_folder = directory / "out"};
  options.chat_renderer = chat_renderer(tokenizer, "auto");
  options.add_files = [&](const std::string& folder) { save_tokenizer_json(tokenizer, folder); };
  const BuildResult result = build_data(options, encoder);
  const auto file = TokenFile::open(directory / ("out/" + result.manifest.train.shards[0]));
  ASSERT_EQ(file->num_documents(), 2u);
  const uint64_t begin = file->document_offsets()[1], count = file->num_tokens() - begin;
  std::vector<int32_t> ids(count);
  std::vector<uint8_t> keep(count);
  file->read_tokens(begin, count, ids.data());
  file->read_mask(begin, count, keep.data());
  EXPECT_EQ(tokenizer.decode(ids),
            "<|im_start|>user\nthe <|im_end|> dog<|im_end|>\n<|im_start|>assistant\nfox<|im_end|>\n<|endoftext|>");
  EXPECT_EQ(std::count(ids.begin(), ids.end(), tokenizer.token_id("<|im_end|>")), 2);
  std::vector<int32_t> learned;
  for (uint64_t i = 0; i < count; ++i)
    if (keep[i] != 0) learned.push_back(ids[i]);
  EXPECT_EQ(tokenizer.decode(learned), "fox<|im_end|>");
  EXPECT_EQ(load_tokenizer(directory / "out").content_hash(), tokenizer.content_hash());
}

TEST(TokenizerEncoder, ATemplateItCannotRenderIsRefused) {
  TemporaryDirectory directory;
  write_file(directory / "a.txt", "some text some text");
  const Tokenizer tokenizer =
      train_tokenizer({.inputs = {directory / "a.txt"}, .vocab_size = 270}).with_chat_template("{{ other }}");
  EXPECT_EQ(error_of([&] { chat_renderer(tokenizer, "auto")({{"user", "x"}}); }).second, 2);
  EXPECT_EQ(chat_renderer(tokenizer, "chatml")({{"user", "x"}}).size(), 5u);
  EXPECT_EQ(error_of([&] { chat_renderer(tokenizer, "other"); }).second, 2);
}

// Training asks between stretches of text and between merges; a stop at any of these questions ends it.
TEST(TokenizerEncoder, TrainingStops) {
  TemporaryDirectory directory;
  write_file(directory / "a.txt", "abab abab abab cdcd cdcd");
  for (const int at : {1, 2, 3, 4}) {
    int asked = 0;
    const StopRequested stop = [&] { return ++asked == at; };
    EXPECT_EQ(error_of([&] { train_tokenizer({.inputs = {directory / "a.txt"}, .vocab_size = 264, .num_threads = 1, .stop_requested = stop}); }).second, 130) << at;
    EXPECT_EQ(asked, at);
  }
}

}  // namespace
}  // namespace orrery
