// Writes one token shard (docs/formats.md). The tokens stream to the disk; document offsets and mask bits stay in memory until
// finish(), 8 bytes a document and 1 bit a token. A shard exists under its name only once it is complete and on the disk.
#pragma once

#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "data/content_hash.h"

namespace orrery {

struct ShardInfo {
  uint64_t num_tokens = 0;
  uint64_t num_documents = 0;
  uint64_t num_masked_tokens = 0;  // tokens that do not count as targets
  uint64_t file_bytes = 0;
};

class ShardWriter {
 public:
  struct Options {
    uint32_t vocab_size = 0;  // decides the width: u16 up to 65,536 entries
    ContentHash tokenizer_hash;
  };
  /// Errors  kIo: cannot create path + ".tmp".
  ShardWriter(std::string path, Options options);
  /// Removes the temporary file unless finish() returned.
  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  /// `keep` is empty (every token counts) or has one entry per token, nonzero where it counts as a target.
  /// Errors  kCorruptData: an id that is not in [0, vocab_size). kIo: disk full and the like.
  void add_document(std::span<const int32_t> ids, std::span<const uint8_t> keep);
  uint64_t num_tokens() const { return info_.num_tokens; }
  /// Writes the tables and the header, syncs, renames.
  ShardInfo finish();

 private:
  void write(const void* data, size_t size);
  void pad_to_64();
  void write_header(uint64_t documents_offset, uint64_t mask_offset, uint64_t checksums_offset);

  std::string path_, temporary_path_;
  Options options_;
  std::FILE* file_ = nullptr;
  uint32_t token_bytes_ = 2;
  uint32_t max_token_id_ = 0;
  uint64_t position_ = 0;
  uint32_t block_crc_ = 0;
  uint64_t block_fill_ = 0;
  std::vector<uint32_t> block_crcs_;
  std::vector<uint64_t> offsets_{0};
  std::vector<uint8_t> mask_;
  std::vector<uint16_t> narrow_;
  ShardInfo info_;
};

/// fsync of a file or directory by name. Errors  kIo.
void sync_path(const std::string& path);

}  // namespace orrery
