// One file of tokens with document boundaries, read through a memory map: an Orrery shard (.orrtok, docs/formats.md gives every
// byte) or a Megatron-LM .bin/.idx pair. Writing shards is shard_writer.h; many files as one training set is dataset.h.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "data/content_hash.h"
#include "data/mapped_file.h"

namespace orrery {

inline constexpr char kShardSuffix[] = ".orrtok";
inline constexpr uint64_t kShardHeaderBytes = 128;
inline constexpr uint64_t kShardBlockBytes = uint64_t{1} << 20;
inline constexpr uint32_t kShardVersion = 1;

/// The first 128 bytes of a shard, little endian, as they stand in the file.
struct ShardHeader {
  char magic[8];  // "ORRTOKS\n"
  uint32_t version;
  uint32_t header_bytes;
  uint32_t token_bytes;  // 2 or 4
  uint32_t flags;        // bit 0: a loss mask is present
  uint64_t num_tokens;
  uint64_t num_documents;
  uint64_t tokens_offset;
  uint64_t documents_offset;  // u64[num_documents + 1], first 0, last num_tokens, never descending
  uint64_t mask_offset;       // 0 without a mask; bit i of byte i/8 set: token i counts as a target
  uint64_t checksums_offset;  // u32 per block of [header_bytes, checksums_offset)
  uint64_t file_bytes;
  uint32_t block_bytes;
  uint32_t max_token_id;
  uint32_t vocab_size;
  uint32_t reserved;
  uint8_t tokenizer_hash[16];
  uint64_t reserved2;
  uint32_t checksums_crc;
  uint32_t header_crc;  // over the 124 bytes before it
};
static_assert(sizeof(ShardHeader) == kShardHeaderBytes);

/// CRC32C as the shards use it; `crc` continues an earlier sum.
inline uint32_t crc32c_of(const void* data, size_t size, uint32_t crc = 0) {
  return crc32c(crc, {static_cast<const std::byte*>(data), size});
}

/// A token file that is open. Headers and document offsets are checked when it is opened; a block of 1 MiB of tokens or mask is
/// checked (CRC32C, and every id against the bound) when it is first read, so opening a terabyte costs nothing.
/// Thread-safe: every member may be called from several threads.
class TokenFile {
 public:
  /// A shard when the name ends in .orrtok, a Megatron pair when it ends in .bin or .idx.
  /// Errors  kIo: cannot open. kCorruptData: truncated, altered or lying, naming file, block and value. kUnsupported: a version
  /// or
  ///         a token type that this program does not read.
  static std::unique_ptr<TokenFile> open(const std::string& path);
  /// Over bytes that outlive the result; the names only appear in messages.
  static std::unique_ptr<TokenFile> from_shard_bytes(std::string name, std::span<const uint8_t> bytes);
  static std::unique_ptr<TokenFile> from_megatron_bytes(std::string name, std::span<const uint8_t> index,
                                                        std::span<const uint8_t> tokens);

  const std::string& name() const { return name_; }
  bool is_shard() const { return is_shard_; }
  uint64_t num_tokens() const { return num_tokens_; }
  uint64_t num_documents() const { return document_offsets_.size() - 1; }
  /// num_documents() + 1 token positions, from 0 to num_tokens().
  std::span<const uint64_t> document_offsets() const { return document_offsets_; }
  uint32_t token_bytes() const { return token_bytes_; }
  bool has_mask() const { return mask_ != nullptr; }
  /// What the header says; a Megatron file says nothing.
  std::optional<uint32_t> max_token_id() const { return max_token_id_; }
  std::optional<uint32_t> vocab_size() const { return vocab_size_; }
  std::optional<ContentHash> tokenizer_hash() const { return tokenizer_hash_; }
  /// Of a shard: over its header and block checksums, so it covers every byte and costs no read. Of a Megatron pair: over the
  /// index, the size of the .bin, and at most 4,096 evenly spaced 1 MiB pieces of it.
  ContentHash content_hash() const;

  /// Refuses a file that may hold ids >= vocab_size: at once for a shard, block by block as they are read for a Megatron pair.
  void require_ids_below(uint32_t vocab_size);

  /// Copies `count` ids from `begin` on. No heap allocation unless it throws.
  /// Errors  kCorruptData: a block's checksum or an id is wrong.
  void read_tokens(uint64_t begin, uint64_t count, int32_t* ids) const;
  /// keep[i] = whether token begin + i counts as a target; all true without a mask.
  void read_mask(uint64_t begin, uint64_t count, uint8_t* keep) const;
  /// Checks every block now. Errors as read_tokens.
  void verify_all() const;

 private:
  TokenFile() = default;
  void check_shard_header(const ShardHeader& header) const;
  void parse_shard();
  void parse_megatron(std::span<const uint8_t> index);
  void prepare_block_states();
  void verify_bytes(uint64_t begin, uint64_t end) const;
  void verify_block(uint64_t block_index) const;
  void check_ids(uint64_t byte_begin, uint64_t byte_end, uint64_t block_index) const;

  std::string name_;
  MappedFile token_mapping_, index_mapping_;
  std::span<const uint8_t> bytes_;  // the file that holds the tokens
  std::span<const uint8_t> index_bytes_;
  bool is_shard_ = false;
  uint32_t token_bytes_ = 2;
  uint64_t num_tokens_ = 0;
  const uint8_t* tokens_ = nullptr;
  const uint8_t* mask_ = nullptr;
  const uint8_t* checksums_ = nullptr;
  uint64_t payload_begin_ = 0, payload_end_ = 0;
  std::span<const uint64_t> document_offsets_;
  std::vector<uint64_t> own_offsets_;
  std::optional<uint32_t> max_token_id_, vocab_size_;
  uint64_t id_limit_ = uint64_t{1} << 31;  // ids must be below it
  std::optional<ContentHash> tokenizer_hash_;
  std::unique_ptr<std::atomic<uint8_t>[]> block_is_verified_;
};

}  // namespace orrery
