// Proves that what the writer makes reads back, and that each way for a GGUF file to lie has its own error, found before anything is
// allocated by it: by hand-made bytes and seeded mutations. Model files are in model_source_test.cpp.
#include "checkpoint/gguf.h"

#include <gtest/gtest.h>

#include "base/fuzz_util.h"
#include "checkpoint/test_files.h"
#define ORRERY_FUZZ_IN_TEST
#include "checkpoint/gguf_fuzz.cpp"

namespace orrery {
namespace {

/// Builds a file field by field; each piece can be replaced by a lie.
struct Builder {
  std::string bytes;
  template <typename T>
  Builder& number(T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Builder& text(const std::string& value) {
    number<uint64_t>(value.size());
    bytes += value;
    return *this;
  }
  Builder& header(uint32_t version, int64_t tensors, int64_t values) {
    bytes += "GGUF";
    return number(version).number(tensors).number(values);
  }
  Builder& u32_key(const std::string& key, uint32_t value) { return text(key).number<uint32_t>(4).number(value); }
  Builder& tensor(const std::string& name, std::vector<int64_t> ne, uint32_t type, uint64_t offset) {
    text(name).number<uint32_t>(static_cast<uint32_t>(ne.size()));
    for (const int64_t dim : ne) number(dim);
    return number(type).number(offset);
  }
  Builder& data(size_t count, size_t alignment = 32) {
    bytes.append((alignment - bytes.size() % alignment) % alignment, '\0');
    bytes.append(count, 'x');
    return *this;
  }
};

GgufFile parse(const std::string& bytes) { return parse_gguf(as_byte_span(bytes), "t.gguf"); }
void refuse(const Builder& file, ErrorCode code, std::initializer_list<std::string> parts) {
  expect_error([&] { parse(file.bytes); }, code, parts);
}
void refuse_tensor(std::vector<int64_t> ne, uint32_t type, std::initializer_list<std::string> parts, ErrorCode code = ErrorCode::kCorruptData) {
  refuse(Builder().header(3, 1, 0).tensor("w", std::move(ne), type, 0).data(4096), code, parts);
}

std::string good_file() {
  GgufMetadata metadata;
  metadata.add_text("general.architecture", "llama");
  metadata.add_u32("u", 7);
  metadata.add_f32("f", 0.5f);
  metadata.add_bool("b", true);
  const std::vector<std::string> texts = {"", "one", "two"};
  metadata.add_texts("texts", texts);
  const std::vector<float> floats = {1, 2};
  metadata.add_f32s("floats", floats);
  const std::vector<int32_t> ints = {-1, 5};
  metadata.add_i32s("ints", ints);
  const std::vector<GgufSpec> specs = {{"a", BlockType::kF32, {3}}, {"q", BlockType::kQ8_0, {2, 32}}};
  const GgufLayout layout = make_gguf_layout(metadata, specs);
  std::string bytes = layout.header + std::string(12, '\1') + std::string(layout.padding[0], '\0') + std::string(68, '\2') + std::string(layout.padding[1], '\0');
  return bytes;
}

TEST(Gguf, WritesWhatItReads) {
  TemporaryDirectory directory;
  write_text(directory.file("m.gguf"), good_file());
  const GgufReader file(directory.file("m.gguf"));
  EXPECT_EQ(file.text("general.architecture"), "llama");
  EXPECT_EQ(file.integer("u"), 7);
  EXPECT_EQ(file.number("f"), 0.5);
  EXPECT_EQ(file.flag("b"), true);
  EXPECT_EQ(file.texts("texts"), (std::vector<std::string>{"", "one", "two"}));
  EXPECT_EQ(file.numbers("floats"), (std::vector<double>{1, 2}));
  EXPECT_EQ(file.integers("ints"), (std::vector<int64_t>{-1, 5}));
  EXPECT_EQ(file.integer("absent"), std::nullopt);
  ASSERT_NE(file.find_tensor("q"), nullptr);
  EXPECT_EQ(file.find_tensor("q")->shape, (std::vector<int64_t>{2, 32}));
  EXPECT_EQ(file.find_tensor("q")->data[0], std::byte{2});
  expect_error([&] { (void)file.integer("general.architecture"); }, ErrorCode::kCorruptData, {"general.architecture", "an integer"});
  expect_error([&] { (void)file.texts("floats"); }, ErrorCode::kCorruptData, {"array of strings"});
  expect_error([&] { (void)file.flag("u"); }, ErrorCode::kCorruptData, {"a boolean"});
}

TEST(Gguf, BadMagicAndVersions) {
  expect_error([] { parse("GGML" + std::string(100, '\0')); }, ErrorCode::kCorruptData, {"not a GGUF"});
  expect_error([] { parse("GG"); }, ErrorCode::kCorruptData, {"truncated"});
  refuse(Builder().header(1, 0, 0), ErrorCode::kUnsupported, {"version 1"});
  refuse(Builder().header(4, 0, 0), ErrorCode::kUnsupported, {"version 4"});
  refuse(Builder().header(0x03000000, 0, 0), ErrorCode::kUnsupported, {"big endian"});
  EXPECT_TRUE(parse(Builder().header(2, 0, 0).bytes).tensors.empty());
}
TEST(Gguf, CountsThatCannotBe) {
  for (const int64_t count : {int64_t{1} << 60, int64_t{-1}, INT64_MIN, int64_t{100}}) {
    refuse(Builder().header(3, 0, count), ErrorCode::kCorruptData, {"keys in a file of"});
    refuse(Builder().header(3, count, 0), ErrorCode::kCorruptData, {"tensors in the"});
  }
}
TEST(Gguf, KeysAndStrings) {
  refuse(Builder().header(3, 0, 1).text("").number<uint32_t>(4).number<uint64_t>(1), ErrorCode::kCorruptData, {"a key of 0 bytes"});
  refuse(Builder().header(3, 0, 2).u32_key("k", 1).u32_key("k", 1), ErrorCode::kCorruptData, {"\"k\" stands twice"});
  refuse(Builder().header(3, 0, 1).number<uint64_t>(UINT64_MAX).data(64), ErrorCode::kCorruptData, {"at most"});
  refuse(Builder().header(3, 0, 1).number<uint64_t>(1000).data(64), ErrorCode::kCorruptData, {"truncated"});
  refuse(Builder().header(3, 0, 1).text("k").number<uint32_t>(8).number<uint64_t>(1 << 20).data(64), ErrorCode::kCorruptData, {"k:", "truncated"});
}
TEST(Gguf, ValueTypes) {
  for (const uint32_t type : {13u, 100u, 0xFFFFFFFFu}) {
    refuse(Builder().header(3, 0, 1).text("k").number(type).data(64), ErrorCode::kCorruptData, {"unknown value type"});
    refuse(Builder().header(3, 0, 1).text("k").number<uint32_t>(9).number(type).number<uint64_t>(1).data(64), ErrorCode::kCorruptData, {"unknown value type"});
  }
  refuse(Builder().header(3, 0, 1).text("k").number<uint32_t>(9).number<uint32_t>(9).number<uint64_t>(1).data(64), ErrorCode::kCorruptData, {"array of arrays"});
  refuse(Builder().header(3, 0, 1).text("key").number<uint32_t>(7).number<uint8_t>(2).data(64), ErrorCode::kCorruptData, {"a boolean is 2"});
}
TEST(Gguf, ArrayLengths) {
  for (const uint32_t element : {0u, 4u, 8u, 12u}) {
    refuse(Builder().header(3, 0, 1).text("k").number<uint32_t>(9).number(element).number<uint64_t>(UINT64_MAX).data(64), ErrorCode::kCorruptData, {"at most"});
    refuse(Builder().header(3, 0, 1).text("k").number<uint32_t>(9).number(element).number<uint64_t>(1 << 20).data(64), ErrorCode::kCorruptData, {"truncated"});
  }
}
TEST(Gguf, Alignment) {
  for (const uint32_t alignment : {0u, 3u, 48u, 0x80000000u}) {
    refuse(Builder().header(3, 0, 1).u32_key("general.alignment", alignment), ErrorCode::kCorruptData, {"power of two"});
  }
  refuse(Builder().header(3, 0, 1).text("general.alignment").number<uint32_t>(10).number<uint64_t>(32), ErrorCode::kCorruptData, {"not a u32"});
  const Builder wide = Builder().header(3, 2, 1).u32_key("general.alignment", 64).tensor("a", {1}, 0, 0).tensor("b", {1}, 0, 64).data(68, 64);
  EXPECT_EQ(parse(wide.bytes).tensors.size(), 2u);
}
TEST(Gguf, TensorNames) {
  refuse(Builder().header(3, 1, 0).tensor("", {1}, 0, 0).data(64), ErrorCode::kCorruptData, {"name of 0 bytes"});
  refuse(Builder().header(3, 1, 0).tensor(std::string(64, 'n'), {1}, 0, 0).data(64), ErrorCode::kCorruptData, {"name of 64 bytes"});
  refuse(Builder().header(3, 2, 0).tensor("a", {8}, 0, 0).tensor("a", {8}, 0, 32).data(64), ErrorCode::kCorruptData, {"\"a\" stands twice"});
}
TEST(Gguf, Dimensions) {
  refuse(Builder().header(3, 1, 0).text("w").number<uint32_t>(UINT32_MAX).data(4096), ErrorCode::kCorruptData, {"4294967295 dimensions"});
  refuse_tensor({}, 0, {"0 dimensions"});
  refuse_tensor({1, 1, 1, 1, 1}, 0, {"5 dimensions"});
  refuse_tensor({4, 0}, 0, {"dimension 1 is 0"});
  refuse_tensor({0}, 2, {"dimension 0 is 0"});
  refuse_tensor({-32}, 2, {"dimension 0 is -32"});
  refuse_tensor({INT64_MAX, 2}, 0, {"2^63"});
  refuse_tensor({int64_t{1} << 32, int64_t{1} << 32}, 0, {"2^63"});
  refuse_tensor({int64_t{1} << 61, 2}, 0, {"2^64"});
}
TEST(Gguf, BlockTypes) {
  refuse_tensor({32}, 4, {"block type 4"}, ErrorCode::kUnsupported);
  refuse_tensor({32}, 0xFFFFFFFF, {"block type"}, ErrorCode::kUnsupported);
  refuse_tensor({31}, 2, {"whole blocks of 32"});
  refuse_tensor({32, 8}, 12, {"whole blocks of 256"});
}
TEST(Gguf, Offsets) {
  refuse(Builder().header(3, 2, 0).tensor("a", {8}, 0, 0).tensor("b", {8}, 0, 0).data(64), ErrorCode::kCorruptData, {"\"b\"", "32 follows"});
  refuse(Builder().header(3, 2, 0).tensor("a", {8}, 0, 0).tensor("b", {8}, 0, UINT64_MAX - 31).data(64), ErrorCode::kCorruptData, {"\"b\""});
  refuse(Builder().header(3, 1, 0).tensor("a", {8}, 0, 4).data(64), ErrorCode::kCorruptData, {"offset 4"});
}
TEST(Gguf, DataShort) {
  refuse(Builder().header(3, 1, 0).tensor("a", {8}, 0, 0).data(31), ErrorCode::kCorruptData, {"\"a\"", "truncated"});
  refuse(Builder().header(3, 1, 0).tensor("a", {8}, 0, 0), ErrorCode::kCorruptData, {"truncated"});
  EXPECT_EQ(parse(Builder().header(3, 1, 0).tensor("a", {8}, 0, 0).data(32).bytes).tensors.size(), 1u);
}
TEST(Gguf, EveryTruncationIsRefused) {
  // The last tensor's padding may be absent; everything before it may not.
  const std::string good = good_file();
  for (size_t length = 0; length + 28 < good.size(); ++length) EXPECT_THROW(parse(good.substr(0, length)), Error) << length;
}

TEST(Gguf, Shards) {
  TemporaryDirectory directory;
  const auto part = [](uint16_t number, const std::string& name) {
    Builder file;
    file.header(3, 1, 3).text("split.no").number<uint32_t>(2).number(number).text("split.count").number<uint32_t>(2).number<uint16_t>(2);
    file.text("split.tensors.count").number<uint32_t>(5).number<int32_t>(2);
    return file.tensor(name, {8}, 0, 0).data(32).bytes;
  };
  const std::string first = directory.file("m-00001-of-00002.gguf"), second = directory.file("m-00002-of-00002.gguf");
  write_text(first, part(0, "a"));
  expect_error([&] { GgufReader file(first); }, ErrorCode::kCorruptData, {"m-00002-of-00002.gguf"});
  write_text(second, part(1, "b"));
  EXPECT_EQ(GgufReader(first).tensors().size(), 2u);
  expect_error([&] { GgufReader file(second); }, ErrorCode::kCorruptData, {"give the first part"});
  write_text(second, part(1, "a"));
  expect_error([&] { GgufReader file(first); }, ErrorCode::kCorruptData, {"two parts"});
}

TEST(Gguf, Mutations) { run_mutations(fuzz_gguf, {good_file(), Builder().header(3, 1, 0).tensor("a", {8}, 0, 0).data(32).bytes}, 20000, 4); }

}  // namespace
}  // namespace orrery
