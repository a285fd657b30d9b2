// Building data: every input form becomes the documents it says, the same for one and two threads; building again is a no-op;
// the held-out split is stateless and never empty; malformed input is one message with file and line, and leaves nothing
// behind.
#include "data/data_builder.h"

#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include "data/document_reader.h"
#include "data/multiple_choice.h"
#include "data/testing.h"
#include "data/token_file.h"

namespace orrery {
namespace {

using namespace orrery::testing;

constexpr int32_t kBegin = 256, kEnd = 257, kImStart = 258, kImEnd = 259;

// One id a byte, so that documents can be read back as text.
TokenEncoder byte_encoder() {
  TokenEncoder encoder;
  encoder.vocab_size = 260;
  encoder.hash.bytes[0] = 1;
  encoder.document_end = {kEnd};
  encoder.new_session = [] {
    return [](std::string_view text, bool allow_special, std::vector<int32_t>* ids) {
      if (allow_special && text == "<|im_start|>") return ids->push_back(kImStart);
      if (allow_special && text == "<|im_end|>") return ids->push_back(kImEnd);
      for (char c : text) ids->push_back(static_cast<uint8_t>(c));
    };
  };
  return encoder;
}

// Documents of a split as text; a token without loss is shown in upper case where it is a letter.
std::vector<std::string> documents_of(const std::string& folder, const SplitSummary& split) {
  std::vector<std::string> documents;
  for (const std::string& shard : split.shards) {
    const auto file = TokenFile::open(folder + "/" + shard);
    for (uint64_t d = 0; d < file->num_documents(); ++d) {
      const uint64_t begin = file->document_offsets()[d], count = file->document_offsets()[d + 1] - begin;
      std::vector<int32_t> ids(count);
      std::vector<uint8_t> keep(count);
      file->read_tokens(begin, count, ids.data());
      file->read_mask(begin, count, keep.data());
      std::string text;
      for (uint64_t i = 0; i < count; ++i) {
        const char names[] = "^$<>";
        const char c = ids[i] < 256 ? static_cast<char>(ids[i]) : names[ids[i] - 256];
        text.push_back(keep[i] != 0 ? c : static_cast<char>(std::toupper(c)));
      }
      documents.push_back(text);
    }
  }
  return documents;
}

std::vector<std::string> build(const TemporaryDirectory& directory, BuildOptions options,
                               const TokenEncoder& encoder = byte_encoder()) {
  options.output_folder = directory / "out";
  const BuildResult result = build_data(options, encoder);
  return documents_of(options.output_folder, result.manifest.train);
}

using Texts = std::vector<std::string>;

TEST(DataBuilder, TextFilesSplitAtSeparators) {
  TemporaryDirectory directory;
  write_file(directory / "a.txt", "one\n\f\ntwo\n<|endoftext|>\nthree<|endoftext|>  \n");
  write_file(directory / "b.txt", "mid\fline\n\ffour");
  write_file(directory / "c.txt", "");
  write_file(directory / "d.txt", "bad \xFF\xFE utf8\0nul");
  EXPECT_EQ(build(directory, {.inputs = {directory / "*.txt"}}),
            (Texts{"one\n$", "two\n$", "three$", "mid\fline\n$", "four$", "bad \xFF\xFE utf8$"}));
}

TEST(DataBuilder, LongTextIsCutAtEmptyLinesAndNothingIsLost) {
  TemporaryDirectory directory;
  std::mt19937_64 random(1);
  std::string text;
  for (int i = 0; i < 60000; ++i) text += random() % 80 == 0 ? "\n\n" : random() % 6 == 0 ? " " : "\xC3\xA9";
  write_file(directory / "a.txt", text);
  const auto documents = build(directory, {.inputs = {directory / "a.txt"}, .max_document_bytes = 1000});
  std::string joined;
  for (const std::string& document : documents) {
    EXPECT_LE(document.size(), 1001u);
    EXPECT_NE(static_cast<uint8_t>(document[0]) & 0xC0, 0x80);
    joined += document.substr(0, document.size() - 1);
  }
  EXPECT_EQ(joined, text);
  EXPECT_EQ(build(directory, {.inputs = {directory / "a.txt"}, .max_document_bytes = 0}).size(), 1u);
}

TEST(DataBuilder, JsonForms) {
  TemporaryDirectory directory;
  write_file(directory / "a.jsonl",
             "\xEF\xBB\xBF{\"text\": \"plain \\u00e9\", \"id\": 3}\r\n\n"
             "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": [{\"type\": "
             "\"text\", \"text\": \"yes\"}]}]}\n"
             "{\"conversations\": [{\"from\": \"human\", \"value\": \"q\"}, {\"from\": \"gpt\", \"value\": \"a\"}]}\n"
             "{\"instruction\": \"do\", \"input\": \"it\", \"output\": \"done\"}\n"
             "{\"prompt\": \"p:\", \"completion\": \"c\"}");
  EXPECT_EQ(build(directory, {.inputs = {directory / "a.jsonl"}}),
            (Texts{"plain \xC3\xA9$", "<USER\nHI>\n<ASSISTANT\nyes>\n$", "<USER\nQ>\n<ASSISTANT\na>\n$",
                   "<USER\nDO\n\nIT>\n<ASSISTANT\ndone>\n$", "P:c$"}));
}

TEST(DataBuilder, BeginTokenAndATemplateOfItsOwn) {
  TemporaryDirectory directory;
  write_file(directory / "a.jsonl", "{\"text\": \"t\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}\n");
  TokenEncoder encoder = byte_encoder();
  encoder.document_begin = {kBegin};
  EXPECT_EQ(build(directory, {.inputs = {directory / "a.jsonl"}}, encoder), (Texts{"^t$", "^<USER\nQ>\n$"}));
  BuildOptions options{.inputs = {directory / "a.jsonl"}};
  options.chat_renderer = [](const std::vector<ChatMessage>& messages) {
    return std::vector<TextSegment>{{"say " + messages[0].content, true, false}};
  };
  options.chat_renderer_name = "say";
  EXPECT_EQ(build(directory, options, encoder), (Texts{"^t$", "^say q$"}));
}

TEST(DataBuilder, MalformedJsonNamesFileAndLineAndLeavesNothing) {
  TemporaryDirectory directory;
  for (const std::string bad :
       {"{\"text\": ", "[1]", "{\"text\": 3}", "{\"body\": \"x\"}", "{\"text\": \"\xFF\"}", "{\"text\": \"\\ud800\"}",
        "{\"messages\": []}", "{\"messages\": [{\"role\": \"user\"}]}", "{\"messages\": [3]}"}) {
    write_file(directory / "a.jsonl", "{\"text\": \"good\"}\n\n" + bad + "\n");
    const auto [message, status] = error_of([&] { build(directory, {.inputs = {directory / "a.jsonl"}}); });
    EXPECT_EQ(status, 4) << bad;
    EXPECT_NE(message.find("a.jsonl:3: "), std::string::npos) << message;
    for (const auto& entry : std::filesystem::directory_iterator(directory.path()))
      EXPECT_EQ(entry.path().filename(), "a.jsonl");
  }
}

std::string gzip(const std::string& text) {
  z_stream state{};
  deflateInit2(&state, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&state, text.size()) + 32, '\0');
  state.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  state.avail_in = static_cast<uInt>(text.size());
  state.next_out = reinterpret_cast<Bytef*>(out.data());
  state.avail_out = static_cast<uInt>(out.size());
  deflate(&state, Z_FINISH);
  out.resize(state.total_out);
  deflateEnd(&state);
  return out;
}

std::string zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  ZSTD_CCtx* context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);  // as the zstd program writes
  out.resize(ZSTD_compress2(context, out.data(), out.size(), text.data(), text.size()));
  ZSTD_freeCCtx(context);
  return out;
}

TEST(DataBuilder, CompressedFilesAndTheirTruncations) {
  TemporaryDirectory directory;
  std::string text;
  for (int i = 0; i < 200000; ++i) text += fmt::format("{} ", i * 7919 % 10007);
  for (const bool use_zstd : {false, true}) {
    const std::string packed = use_zstd ? zstd(text) + zstd("tail") : gzip(text) + gzip("tail");  // two members
    const std::string path = directory / (use_zstd ? "a.txt.zst" : "a.txt.gz");
    write_file(path, packed);
    const auto documents = build(directory, {.inputs = {path}, .max_document_bytes = 0});
    ASSERT_EQ(documents.size(), 1u);
    EXPECT_EQ(documents[0], text + "tail$");
    EXPECT_EQ(find_inputs({path})[0].description(), path + (use_zstd ? ": plain text, zstd" : ": plain text, gzip"));
    write_file(path, packed.substr(0, packed.size() - 5));
    EXPECT_EQ(error_of([&] { build(directory, {.inputs = {path}}); }).second, 4);
    std::string flipped = packed;
    flipped[flipped.size() / 3] ^= 0x10;
    write_file(path, flipped);
    EXPECT_NE(error_of([&] { build(directory, {.inputs = {path}}); }).second, 0) << use_zstd;
  }
}

TEST(DataBuilder, ThreadsAndRepetitionChangeNothing) {
  TemporaryDirectory directory;
  std::string lines;
  for (int i = 0; i < 30000; ++i)
    lines += fmt::format("{{\"text\": \"document {} {}\"}}\n", i, std::string(static_cast<size_t>(i % 200), 'x'));
  write_file(directory / "a.jsonl", lines);
  BuildOptions options{.inputs = {directory / "a.jsonl"},
                       .output_folder = directory / "one",
                       .val_fraction = 0.1,
                       .shard_tokens_max = 500000,
                       .num_threads = 1};
  const BuildResult one = build_data(options, byte_encoder());
  EXPECT_FALSE(one.was_up_to_date);
  EXPECT_GT(one.manifest.train.shards.size(), 3u);
  EXPECT_NEAR(static_cast<double>(one.manifest.validation.documents), 3000, 300);
  EXPECT_EQ(one.manifest.train.documents + one.manifest.validation.documents, 30000u);
  options.num_threads = 2;
  options.output_folder = directory / "two";
  const BuildResult two = build_data(options, byte_encoder());
  for (const SplitSummary* split : {&one.manifest.train, &one.manifest.validation})
    for (const std::string& shard : split->shards)
      EXPECT_EQ(read_file(directory / "one/" + shard), read_file(directory / "two/" + shard));

  EXPECT_TRUE(build_data(options, byte_encoder()).was_up_to_date);
  options.seed = 7;
  EXPECT_FALSE(build_data(options, byte_encoder()).was_up_to_date);  // replaced as a whole
  EXPECT_TRUE(build_data(options, byte_encoder()).was_up_to_date);
  const std::string shard = directory / "two/train-00000.orrtok";
  write_file(shard, read_file(shard).substr(0, 5000));
  EXPECT_FALSE(build_data(options, byte_encoder()).was_up_to_date);  // damaged, so built again
  for (const auto& entry : std::filesystem::directory_iterator(directory.path()))
    EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos);
}

TEST(DataBuilder, ASmallCorpusHoldsOutOneDocument) {
  TemporaryDirectory directory;
  write_file(directory / "a.txt", "one\n\ftwo\n\fthree");
  const BuildResult result =
      build_data({.inputs = {directory / "a.txt"}, .output_folder = directory / "out", .val_fraction = 0.001}, byte_encoder());
  EXPECT_EQ(result.manifest.validation.documents, 1u);
  EXPECT_EQ(result.manifest.train.documents, 2u);
  write_file(directory / "a.txt", "one");
  const auto [message, status] = error_of([&] {
    build_data({.inputs = {directory / "a.txt"}, .output_folder = directory / "out", .val_fraction = 0.1}, byte_encoder());
  });
  EXPECT_EQ(status, 2);
  EXPECT_TRUE(is_shard_folder(directory / "out"));  // the failure left what was there
}

TEST(DataBuilder, TokensAreImported) {
  TemporaryDirectory directory;
  const std::vector<Document> documents{{{'a', 'b'}, {}}, {{'c', 'd'}, {0, 1}}};
  write_shard(directory / "x.orrtok", documents, 260);
  write_megatron(directory / "m", {{{'e'}, {}}});
  EXPECT_EQ(build(directory, {.inputs = {directory / "x.orrtok", directory / "m.idx"}}), (Texts{"ab", "Cd", "e"}));
}

TEST(DataBuilder, WrongPlacesAreRefusedWithTheirNames) {
  TemporaryDirectory directory;
  write_file(directory / "a.txt", "text");
  const auto [no_match, status] = error_of([&] { build(directory, {.inputs = {directory / "*.json"}}); });
  EXPECT_EQ(status, 4);
  EXPECT_NE(no_match.find("*.json"), std::string::npos);
  EXPECT_NE(no_match.find(directory.path()), std::string::npos);
  EXPECT_NE(error_of([&] { build(directory, {.inputs = {directory / "absent/*.txt"}}); }).first.find("absent does not exist"),
            std::string::npos);
  write_file(directory / "empty.txt", " \n ");
  EXPECT_EQ(error_of([&] { build(directory, {.inputs = {directory / "empty.txt"}}); }).second, 4);
  std::filesystem::create_directory(directory / "mine");
  write_file(directory / "mine/precious", "x");
  EXPECT_EQ(error_of([&] {
              build_data({.inputs = {directory / "a.txt"}, .output_folder = directory / "mine"}, byte_encoder());
            }).second,
            2);
  EXPECT_EQ(read_file(directory / "mine/precious"), "x");
}

// A stop while the inputs are hashed (the first questions, with zeros) and while the shards are written: the message names the folder, and neither it
// nor the one beside it in which it was made is left.
TEST(DataBuilder, AStopLeavesNothing) {
  TemporaryDirectory directory;
  write_file(directory / "a.txt", "text");
  for (const bool while_hashing : {true, false}) {
    const BuildCallback stop = [&](const BuildProgress& progress) { return !while_hashing && progress.documents == 0; };
    const auto [message, status] = error_of([&] {
      build_data({.inputs = {directory / "a.txt"}, .output_folder = directory / "out"}, byte_encoder(), stop);
    });
    EXPECT_EQ(status, 130);
    EXPECT_EQ(message, "interrupted; nothing was written at " + (directory / "out"));
    size_t entries = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory.path())) ++entries;
    EXPECT_EQ(entries, 1u);
  }
}

TEST(PrepareData, MakesSourcesOfEntries) {
  TemporaryDirectory directory;
  std::string text;
  for (int i = 0; i < 300; ++i) text += fmt::format("document number {}\n\f", i);
  write_file(directory / "a.txt", text);
  write_file(directory / "b.txt", text + "more");
  PrepareOptions options{
      .train = {{directory / "a.txt"}, {directory / "b.txt"}}, .val_fraction = 0.1, .cache_folder = directory / "cache"};
  const PreparedData together = prepare_data(options, byte_encoder());
  ASSERT_EQ(together.train.size(), 1u);
  ASSERT_EQ(together.validation.size(), 1u);
  EXPECT_EQ(prepare_data(options, byte_encoder()).notes[0].substr(0, 9), "unchanged");
  options.train[0].weight = 3;
  const PreparedData apart = prepare_data(options, byte_encoder());
  ASSERT_EQ(apart.train.size(), 2u);
  EXPECT_EQ(apart.train[0].weight, 3);
  EXPECT_EQ(apart.train[1].weight, 1);
  const Dataset dataset(apart.train, {.seq_len = 32, .vocab_size = 260});
  const Dataset validation(apart.validation, {.seq_len = 32, .vocab_size = 260, .sequential = true});
  EXPECT_GT(validation.num_samples(), 10u);
  // A folder is used as it is, but only with its own tokenizer.
  PrepareOptions folder{.train = {{directory / "cache/train-0/"}}, .cache_folder = directory / "cache2"};
  EXPECT_EQ(prepare_data(folder, byte_encoder()).train[0].files.size(), 1u);
  TokenEncoder other = byte_encoder();
  other.hash.bytes[3] = 9;
  EXPECT_EQ(error_of([&] { prepare_data(folder, other); }).second, 2);
  write_megatron(directory / "m", {{{1, 2, 3}, {}}});
  PrepareOptions tokens{.train = {{directory / "m.bin"}}, .val_fraction = 0.1, .cache_folder = directory / "cache3"};
  EXPECT_EQ(error_of([&] { prepare_data(tokens, byte_encoder()); }).second, 2);
}

TEST(MultipleChoice, ReadsTheCommonForms) {
  const auto plain = parse_multiple_choice(R"({"context": "c", "choices": ["x", "y"], "answer": 1})");
  EXPECT_EQ(plain.answer, 1);
  EXPECT_EQ(parse_multiple_choice(R"({"question": "c", "choices": ["x", "y"], "answer": "B"})").answer, 1);
  EXPECT_EQ(parse_multiple_choice(R"({"ctx": "c", "endings": ["x", "y"], "label": "1"})").answer, 1);
  EXPECT_EQ(
      parse_multiple_choice(R"({"question": "c", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"})")
          .answer,
      1);
  for (const char* bad :
       {"{", "[]", R"({"choices": ["x", "y"], "answer": 1})", R"({"context": "c", "choices": ["x"], "answer": 0})",
        R"({"context": "c", "choices": ["x", "y"], "answer": 2})", R"({"context": "c", "choices": ["x", "y"], "answer": -1})",
        R"({"context": "c", "choices": ["x", 3], "answer": 0})", R"({"context": "c", "choices": ["x", "y"]})",
        R"({"context": "c", "choices": ["x", ""], "answer": 0})",
        R"({"context": "c", "choices": ["x", "y"], "answer": 18446744073709551615})"})
    EXPECT_EQ(error_of([&] { parse_multiple_choice(bad); }).second, 4) << bad;
}

TEST(MultipleChoice, LoadsAFile) {
  TemporaryDirectory directory;
  write_file(directory / "q.jsonl", "{\"context\": \"ab \", \"choices\": [\"x\", \" yy\"], \"answer\": 0}\n");
  const auto questions = load_multiple_choice(directory / "q.jsonl", byte_encoder());
  ASSERT_EQ(questions.size(), 1u);
  EXPECT_EQ(questions[0].context_ids, (std::vector<int32_t>{'a', 'b'}));
  EXPECT_EQ(questions[0].choice_ids[0], (std::vector<int32_t>{' ', 'x'}));
  EXPECT_EQ(questions[0].choice_ids[1], (std::vector<int32_t>{' ', 'y', 'y'}));
  write_file(directory / "q.jsonl", "{\"context\": \"ab\", \"choices\": [\"x\", \"yy\"], \"answer\": 0}\n{}\n");
  EXPECT_NE(error_of([&] { load_multiple_choice(directory / "q.jsonl", byte_encoder()); }).first.find("q.jsonl:2: "),
            std::string::npos);
}

}  // namespace
}  // namespace orrery
