// Proves that the writer's header reads back, that a file made by the safetensors package reads, and that each way for a header to lie
// has its own error naming the tensor: by hand-made files, a golden, and seeded mutations.
#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include "base/fuzz_util.h"
#include "base/golden.h"
#include "checkpoint/test_files.h"
#define ORRERY_FUZZ_IN_TEST
#include "checkpoint/safetensors_fuzz.cpp"

namespace orrery {
namespace {

std::string file_of(const std::string& json, size_t data_bytes) {
  const uint64_t length = json.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + json + std::string(data_bytes, 'x');
}

SafetensorsHeader parse(const std::string& file) { return read_safetensors_header(MemorySource("t.safetensors", as_byte_span(file))); }

void refuse(const std::string& json, size_t data_bytes, ErrorCode code, std::initializer_list<std::string> parts) {
  const std::string file = file_of(json, data_bytes);
  expect_error([&] { parse(file); }, code, parts);
}

const std::string kGood = R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                          R"("b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}})";

TEST(Safetensors, HeaderRoundTrip) {
  const std::vector<SafetensorsSpec> specs = {{"w", DType::kF32, {3, 5}}, {"e", DType::kBF16, {0, 4}}, {"b\"\n", DType::kI16, {7}}};
  std::string file = make_safetensors_header(specs, {{"format", "pt"}});
  EXPECT_EQ(file.size() % 8, 0u);
  const uint64_t data_begin = file.size();
  file += std::string(60 + 14, '\0');
  const SafetensorsHeader header = parse(file);
  ASSERT_EQ(header.tensors.size(), 3u);
  EXPECT_EQ(header.metadata.at("format"), "pt");
  const SafetensorsEntry* b = header.find("b\"\n");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, DType::kI16);
  EXPECT_EQ(b->begin, data_begin + 60);
  EXPECT_EQ(header.find("e")->bytes, 0u);
  EXPECT_EQ(header.find("absent"), nullptr);
}

TEST(Safetensors, ReadsWhatThePackageWrites) {
  const FileSource file(golden_path("tiny.safetensors"));
  const SafetensorsHeader header = read_safetensors_header(file);
  const SafetensorsEntry* entry = header.find("f32");
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->shape, (std::vector<int64_t>{2, 3}));
  std::vector<float> values(6);
  file.read(entry->begin, std::as_writable_bytes(std::span(values)));
  EXPECT_EQ(values, (std::vector<float>{0, 1, 2, 3, 4, 5}));
  for (const char* name : {"bf16", "f16", "i8", "u8", "i16", "i32", "i64", "f64", "bool"}) EXPECT_NE(header.find(name), nullptr) << name;
  EXPECT_FALSE(header.find("bool")->dtype.has_value());
}

TEST(Safetensors, GoodHandMadeFile) {
  EXPECT_EQ(parse(file_of(kGood, 26)).tensors.size(), 2u);
  EXPECT_EQ(parse(file_of("{}", 0)).tensors.size(), 0u);
}

TEST(Safetensors, TooShort) { expect_error([] { parse("abc"); }, ErrorCode::kCorruptData, {"too short"}); }
TEST(Safetensors, HeaderLength2To63) {
  std::string file = file_of(kGood, 26);
  file[7] = '\x80';
  expect_error([&] { parse(file); }, ErrorCode::kCorruptData, {"100000000"});
}
TEST(Safetensors, HeaderLongerThanFile) {
  std::string file = file_of(kGood, 26);
  file[1] = '\x7F';
  expect_error([&] { parse(file); }, ErrorCode::kCorruptData, {"truncated"});
}
TEST(Safetensors, NotJson) {
  refuse("{\"a\":", 0, ErrorCode::kCorruptData, {"not valid JSON"});
  refuse("[]", 0, ErrorCode::kCorruptData, {"does not start with"});
  refuse("{} x", 0, ErrorCode::kCorruptData, {"not valid JSON"});
  refuse("{\"\xff\":{}}", 0, ErrorCode::kCorruptData, {"not valid JSON"});
}
TEST(Safetensors, DeepNesting) {
  refuse("{\"a\":" + std::string(100000, '['), 0, ErrorCode::kCorruptData, {"an array"});
  refuse(R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4, ErrorCode::kCorruptData, {"an array"});
}
TEST(Safetensors, Overlap) {
  refuse(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})", 6, ErrorCode::kCorruptData,
         {"\"b\"", "overlap"});
}
TEST(Safetensors, Hole) {
  refuse(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})", 9, ErrorCode::kCorruptData,
         {"\"b\"", "hole"});
}
TEST(Safetensors, DescendingOffsets) {
  refuse(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", 4, ErrorCode::kCorruptData, {"\"a\"", "do not span"});
}
TEST(Safetensors, OffsetsDisagreeWithShape) {
  refuse(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}})", 4, ErrorCode::kCorruptData, {"\"a\"", "16 bytes"});
}
TEST(Safetensors, ShapeProductOverflow) {
  refuse(R"({"a":{"dtype":"F32","shape":[4611686018427387904,4,4],"data_offsets":[0,0]}})", 0, ErrorCode::kCorruptData, {"larger than 2^64"});
}
TEST(Safetensors, DimensionOutOfRange) {
  refuse(R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}})", 0, ErrorCode::kCorruptData, {"too large"});
  refuse(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1, ErrorCode::kCorruptData, {"negative"});
  refuse(R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", 1, ErrorCode::kCorruptData, {"a fraction"});
  refuse(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", 1, ErrorCode::kCorruptData, {"dimensions"});
}
TEST(Safetensors, PastTheEnd) { refuse(kGood, 25, ErrorCode::kCorruptData, {"\"b\"", "truncated"}); }
TEST(Safetensors, BytesThatBelongToNone) { refuse(kGood, 27, ErrorCode::kCorruptData, {"belong to none"}); }
TEST(Safetensors, ZeroDimIsEmpty) { EXPECT_EQ(parse(file_of(R"({"a":{"dtype":"U8","shape":[0,9],"data_offsets":[0,0]}})", 0)).tensors[0].bytes, 0u); }
TEST(Safetensors, UnknownDtype) { refuse(R"({"a":{"dtype":"F128","shape":[1],"data_offsets":[0,16]}})", 16, ErrorCode::kUnsupported, {"F128"}); }
TEST(Safetensors, DuplicateNamesAndKeys) {
  refuse(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2, ErrorCode::kCorruptData,
         {"\"a\"", "twice"});
  refuse(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, ErrorCode::kCorruptData, {"twice"});
  refuse(R"({"__metadata__":{},"__metadata__":{}})", 0, ErrorCode::kCorruptData, {"twice"});
}
TEST(Safetensors, MissingField) { refuse(R"({"a":{"dtype":"U8","shape":[1]}})", 1, ErrorCode::kCorruptData, {"wanted dtype"}); }
TEST(Safetensors, ManyTinyTensorsStayBounded) {
  std::string json = "{";
  for (int i = 0; i < 20000; ++i) json += fmt::format(R"({}"{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", i == 0 ? "" : ",", i);
  EXPECT_EQ(parse(file_of(json + "}", 0)).tensors.size(), 20000u);
}
TEST(Safetensors, FileThatShrankIsAnErrorNotASignal) {
  TemporaryDirectory directory;
  const std::string path = directory.file("t.safetensors");
  write_text(path, file_of(kGood, 26));
  const FileSource file(path);
  const SafetensorsHeader header = read_safetensors_header(file);
  std::filesystem::resize_file(path, 20);
  std::vector<std::byte> out(header.tensors[0].bytes);
  expect_error([&] { file.read(header.tensors[0].begin, out); }, ErrorCode::kCorruptData, {"something changes it"});
}
TEST(Safetensors, Mutations) {
  run_mutations(fuzz_safetensors, {file_of(kGood, 26), make_safetensors_header({{"w", DType::kF32, {3}}}, {}) + std::string(12, 'x')}, 20000, 2);
}

}  // namespace
}  // namespace orrery
