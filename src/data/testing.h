// What the tests of this folder share: a directory that goes away, files written from bytes, shards with random documents.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "data/shard_writer.h"

namespace orrery::testing {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "orrery_data_XXXXXX").string();
    ORRERY_CHECK(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline void write_file(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Document {
  std::vector<int32_t> ids;
  std::vector<uint8_t> keep;  // empty: all
};

inline std::vector<Document> random_documents(int count, int length_max, uint32_t vocab_size, bool masked, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Document> documents(count);
  for (Document& document : documents) {
    document.ids.resize(1 + random() % length_max);
    for (int32_t& id : document.ids) id = static_cast<int32_t>(random() % vocab_size);
    if (masked && random() % 2 == 0)
      for (size_t i = 0; i < document.ids.size(); ++i) document.keep.push_back(random() % 2);
  }
  return documents;
}

inline ShardInfo write_shard(const std::string& path, const std::vector<Document>& documents, uint32_t vocab_size) {
  ShardWriter writer(path, {.vocab_size = vocab_size, .tokenizer_hash = {}});
  for (const Document& document : documents) writer.add_document(document.ids, document.keep);
  return writer.finish();
}

/// A Megatron .bin/.idx pair, one sequence a document, u16.
inline void write_megatron(const std::string& stem, const std::vector<Document>& documents) {
  std::string bin, lengths, pointers, boundaries;
  const auto put = [](std::string& out, uint64_t value, int width) {
    for (int i = 0; i < width; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
  };
  put(boundaries, 0, 8);
  for (size_t i = 0; i < documents.size(); ++i) {
    put(pointers, bin.size(), 8);
    put(lengths, documents[i].ids.size(), 4);
    put(boundaries, i + 1, 8);
    for (int32_t id : documents[i].ids) put(bin, static_cast<uint64_t>(id), 2);
  }
  std::string index("MMIDIDX\0\0", 9);
  put(index, 1, 8);
  put(index, 8, 1);
  put(index, documents.size(), 8);
  put(index, documents.size() + 1, 8);
  write_file(stem + ".idx", index + lengths + pointers + boundaries);
  write_file(stem + ".bin", bin);
}

/// The message of the Error that `body` throws, its code checked by the caller; empty when it throws none.
template <typename Body>
std::pair<std::string, int> error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return {error.what(), exit_status(error.code())};
  }
  return {"", 0};
}

}  // namespace orrery::testing
