// Shards and Megatron files: what is written comes back exactly; every truncation and every flipped bit is refused with one
// message that names the file; lying headers and random mutations end in an Error, never in a crash.
#include "data/token_file.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "base/fuzz_util.h"
#include "data/testing.h"

namespace orrery {
namespace {

using namespace orrery::testing;

std::span<const uint8_t> as_bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

void expect_equal(const TokenFile& file, const std::vector<Document>& documents) {
  ASSERT_EQ(file.num_documents(), documents.size());
  for (size_t d = 0; d < documents.size(); ++d) {
    const uint64_t begin = file.document_offsets()[d], count = file.document_offsets()[d + 1] - begin;
    ASSERT_EQ(count, documents[d].ids.size());
    std::vector<int32_t> ids(count);
    std::vector<uint8_t> keep(count);
    file.read_tokens(begin, count, ids.data());
    file.read_mask(begin, count, keep.data());
    for (size_t i = 0; i < count; ++i) {
      ASSERT_EQ(ids[i], documents[d].ids[i]);
      ASSERT_EQ(keep[i], documents[d].keep.empty() ? 1 : documents[d].keep[i]);
    }
  }
}

// A page that is no longer there is a signal, not a read error: one message, and the status of damaged data.
TEST(MappedFile, ThatIsCutWhileItIsReadEndsWithOneMessage) {
  TemporaryDirectory directory;
  const std::string path = directory / "cut";
  write_file(path, std::string(64 << 10, 'x'));
  const auto read_after_cut = [&] {
    const MappedFile file(path);
    std::filesystem::resize_file(path, 1000);
    std::exit(file.bytes()[60 << 10] == 'x' ? 0 : 1);
  };
  EXPECT_EXIT(read_after_cut(), ::testing::ExitedWithCode(4), "/cut: cut short while it was read.*restore the file");
}

TEST(TokenFile, RoundTripsBothWidthsWithAndWithoutMask) {
  TemporaryDirectory directory;
  for (uint32_t vocab_size : {300u, 65536u, 65537u, 200000u})
    for (bool masked : {false, true}) {
      const auto documents = random_documents(200, 9000, vocab_size, masked, vocab_size + masked);  // more than one block
      const std::string path = directory / "x.orrtok";
      const ShardInfo info = write_shard(path, documents, vocab_size);
      const auto file = TokenFile::open(path);
      EXPECT_EQ(file->token_bytes(), vocab_size <= 65536 ? 2u : 4u);
      EXPECT_EQ(file->has_mask(), masked);
      EXPECT_EQ(info.file_bytes, std::filesystem::file_size(path));
      file->verify_all();
      expect_equal(*file, documents);
    }
}

TEST(TokenFile, EmptyShard) {
  TemporaryDirectory directory;
  write_shard(directory / "x.orrtok", {}, 10);
  const auto file = TokenFile::open(directory / "x.orrtok");
  EXPECT_EQ(file->num_tokens(), 0u);
  EXPECT_EQ(file->num_documents(), 0u);
  file->verify_all();
}

TEST(TokenFile, EveryTruncationAndEveryFlippedBitIsRefused) {
  TemporaryDirectory directory;
  write_shard(directory / "x.orrtok", random_documents(5, 40, 500, true, 1), 500);
  const std::string good = read_file(directory / "x.orrtok");
  for (size_t size = 0; size < good.size(); ++size) {
    const auto [message, status] =
        error_of([&] { TokenFile::from_shard_bytes("a.orrtok", as_bytes(good.substr(0, size)))->verify_all(); });
    ASSERT_EQ(status, 4) << size;
    ASSERT_NE(message.find("a.orrtok"), std::string::npos);
  }
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    const auto [message, status] = error_of([&] { TokenFile::from_shard_bytes("a.orrtok", as_bytes(bad))->verify_all(); });
    ASSERT_NE(status, 0) << "bit " << bit;
    ASSERT_NE(message.find("a.orrtok"), std::string::npos);
  }
}

TEST(TokenFile, NamesTheAlteredBlock) {
  TemporaryDirectory directory;
  const std::string path = directory / "x.orrtok";
  write_shard(path, random_documents(300, 9000, 500, false, 1), 500);
  std::string bytes = read_file(path);
  bytes[kShardHeaderBytes + kShardBlockBytes + 5] ^= 1;
  write_file(path, bytes);
  const auto file = TokenFile::open(path);  // only the documents' blocks are read here
  int32_t id;
  file->read_tokens(0, 1, &id);
  const auto [message, status] = error_of([&] { file->read_tokens(kShardBlockBytes / 2 + 1, 1, &id); });
  EXPECT_EQ(status, 4);
  EXPECT_NE(message.find("block 2"), std::string::npos) << message;
}

TEST(TokenFile, AVocabularySmallerThanTheIdsIsRefused) {
  TemporaryDirectory directory;
  const std::vector<Document> documents{{{1, 2, 99}, {}}};
  write_shard(directory / "x.orrtok", documents, 100);
  write_megatron(directory / "m", documents);
  const auto shard = TokenFile::open(directory / "x.orrtok");
  shard->require_ids_below(100);
  const auto [message, status] = error_of([&] { shard->require_ids_below(99); });
  EXPECT_EQ(status, 4);
  EXPECT_NE(message.find("vocab_size >= 100"), std::string::npos) << message;
  const auto megatron = TokenFile::open(directory / "m.bin");
  megatron->require_ids_below(99);
  EXPECT_EQ(error_of([&] { megatron->verify_all(); }).second, 4);
  EXPECT_EQ(error_of([&] {
              ShardWriter(directory / "y.orrtok", {.vocab_size = 99, .tokenizer_hash = {}}).add_document(documents[0].ids, {});
            }).second,
            4);
  EXPECT_FALSE(std::filesystem::exists(directory / "y.orrtok.tmp"));
}

TEST(TokenFile, ReadsMegatron) {
  TemporaryDirectory directory;
  const auto documents = random_documents(50, 300, 60000, false, 7);
  write_megatron(directory / "m", documents);
  const auto file = TokenFile::open(directory / "m.idx");
  expect_equal(*file, documents);
  const ContentHash before = file->content_hash();
  std::string bin = read_file(directory / "m.bin");
  bin[100] ^= 1;
  write_file(directory / "m.bin", bin);
  EXPECT_NE(TokenFile::open(directory / "m.bin")->content_hash(), before);
  write_file(directory / "m.bin", bin.substr(2));
  EXPECT_EQ(error_of([&] { TokenFile::open(directory / "m.bin"); }).second, 4);
  const auto [message, status] = error_of([&] { TokenFile::open(directory / "absent.bin"); });
  EXPECT_EQ(status, 4);
}

TEST(TokenFile, MutatedFilesEndInAnError) {
  TemporaryDirectory directory;
  const auto documents = random_documents(6, 30, 500, true, 3);
  write_shard(directory / "x.orrtok", documents, 500);
  write_megatron(directory / "m", documents);
  const auto ignore_errors = [](auto&& body) {
    try {
      body();
    } catch (const Error&) {
    }
  };
  run_mutations(
      [&](const uint8_t* data, size_t size) {
        // Half of the inputs get a correct header checksum again, so that the checks behind it run too.
        std::vector<uint8_t> bytes(data, data + size);
        if (size >= kShardHeaderBytes && size % 2 == 0) {
          const uint32_t crc = crc32c_of(bytes.data(), offsetof(ShardHeader, header_crc));
          std::memcpy(bytes.data() + offsetof(ShardHeader, header_crc), &crc, 4);
        }
        ignore_errors([&] { TokenFile::from_shard_bytes("fuzz", bytes)->verify_all(); });
      },
      {read_file(directory / "x.orrtok")}, 20000, 1);
  const std::string bin = read_file(directory / "m.bin");
  run_mutations(
      [&](const uint8_t* data, size_t size) {
        ignore_errors([&] { TokenFile::from_megatron_bytes("fuzz", {data, size}, as_bytes(bin))->verify_all(); });
      },
      {read_file(directory / "m.idx")}, 20000, 2);
}

}  // namespace
}  // namespace orrery
