#include "data/shard_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "data/token_file.h"

namespace orrery {

void sync_path(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw_io_error(errno, fmt::format("cannot open {} to sync it", path));
  const int result = ::fsync(file);
  const int error = errno;
  ::close(file);
  if (result != 0) throw_io_error(error, fmt::format("cannot sync {}", path));
}

ShardWriter::ShardWriter(std::string path, Options options)
    : path_(std::move(path)),
      temporary_path_(path_ + ".tmp"),
      options_(options),
      token_bytes_(options.vocab_size <= 65536 ? 2 : 4) {
  file_ = std::fopen(temporary_path_.c_str(), "wbe");
  if (file_ == nullptr) throw_io_error(errno, fmt::format("cannot create {}", temporary_path_));
  const ShardHeader placeholder{};  // all zeros, so that a shard without its header is refused
  if (std::fwrite(&placeholder, sizeof placeholder, 1, file_) != 1)
    throw_io_error(errno, fmt::format("cannot write {}", temporary_path_));
  position_ = sizeof placeholder;
}

ShardWriter::~ShardWriter() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  ::unlink(temporary_path_.c_str());
}

void ShardWriter::write(const void* data, size_t size) {
  if (size == 0) return;
  if (std::fwrite(data, 1, size, file_) != size) throw_io_error(errno, fmt::format("cannot write {}", temporary_path_));
  position_ += size;
  for (const auto* bytes = static_cast<const uint8_t*>(data); size > 0;) {
    const size_t piece = std::min<size_t>(size, kShardBlockBytes - block_fill_);
    block_crc_ = crc32c_of(bytes, piece, block_crc_);
    block_fill_ += piece;
    bytes += piece;
    size -= piece;
    if (block_fill_ == kShardBlockBytes) {
      block_crcs_.push_back(block_crc_);
      block_crc_ = 0;
      block_fill_ = 0;
    }
  }
}

void ShardWriter::pad_to_64() {
  constexpr uint8_t kZeros[64] = {};
  write(kZeros, (64 - position_ % 64) % 64);
}

void ShardWriter::add_document(std::span<const int32_t> ids, std::span<const uint8_t> keep) {
  ORRERY_CHECK(keep.empty() || keep.size() == ids.size(), "{} flags for {} ids", keep.size(), ids.size());
  if (ids.empty()) return;
  uint32_t largest = 0;  // a negative id becomes the largest
  for (int32_t id : ids) largest = std::max(largest, static_cast<uint32_t>(id));
  if (largest >= options_.vocab_size)
    throw Error(ErrorCode::kCorruptData,
                "{}: token id {} is not below the vocabulary's {} entries; is this the data's tokenizer?", path_, largest,
                options_.vocab_size);
  max_token_id_ = std::max(max_token_id_, largest);
  if (token_bytes_ == 2) {
    narrow_.assign(ids.begin(), ids.end());
    write(narrow_.data(), narrow_.size() * 2);
  } else {
    write(ids.data(), ids.size() * 4);
  }
  mask_.resize((info_.num_tokens + ids.size() + 7) / 8, 0);
  for (size_t i = 0; i < ids.size(); ++i) {
    const uint64_t token = info_.num_tokens + i;
    if (keep.empty() || keep[i] != 0)
      mask_[token / 8] |= static_cast<uint8_t>(1u << (token % 8));
    else
      ++info_.num_masked_tokens;
  }
  info_.num_tokens += ids.size();
  ++info_.num_documents;
  offsets_.push_back(info_.num_tokens);
}

void ShardWriter::write_header(uint64_t documents_offset, uint64_t mask_offset, uint64_t checksums_offset) {
  ShardHeader header{};
  std::memcpy(header.magic, "ORRTOKS\n", 8);
  header.version = kShardVersion;
  header.header_bytes = kShardHeaderBytes;
  header.token_bytes = token_bytes_;
  header.flags = mask_offset != 0 ? 1 : 0;
  header.num_tokens = info_.num_tokens;
  header.num_documents = info_.num_documents;
  header.tokens_offset = kShardHeaderBytes;
  header.documents_offset = documents_offset;
  header.mask_offset = mask_offset;
  header.checksums_offset = checksums_offset;
  header.file_bytes = checksums_offset + block_crcs_.size() * 4;
  header.block_bytes = kShardBlockBytes;
  header.max_token_id = max_token_id_;
  header.vocab_size = options_.vocab_size;
  std::copy_n(options_.tokenizer_hash.bytes.begin(), 16, header.tokenizer_hash);
  header.checksums_crc = crc32c_of(block_crcs_.data(), block_crcs_.size() * 4);
  header.header_crc = crc32c_of(&header, offsetof(ShardHeader, header_crc));
  if (std::fseek(file_, 0, SEEK_SET) != 0 || std::fwrite(&header, sizeof header, 1, file_) != 1)
    throw_io_error(errno, fmt::format("cannot write {}", temporary_path_));
  info_.file_bytes = header.file_bytes;
}

ShardInfo ShardWriter::finish() {
  pad_to_64();
  const uint64_t documents_offset = position_;
  write(offsets_.data(), offsets_.size() * 8);
  pad_to_64();
  uint64_t mask_offset = 0;
  if (info_.num_masked_tokens > 0) {
    mask_offset = position_;
    write(mask_.data(), mask_.size());
    pad_to_64();
  }
  const uint64_t checksums_offset = position_;
  if (block_fill_ > 0) block_crcs_.push_back(block_crc_);
  if (std::fwrite(block_crcs_.data(), 4, block_crcs_.size(), file_) != block_crcs_.size())
    throw_io_error(errno, fmt::format("cannot write {}", temporary_path_));
  write_header(documents_offset, mask_offset, checksums_offset);
  if (std::fflush(file_) != 0 || ::fsync(::fileno(file_)) != 0)
    throw_io_error(errno, fmt::format("cannot write {}", temporary_path_));
  const int closed = std::fclose(file_);
  file_ = nullptr;
  if (closed != 0 || std::rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary_path_.c_str());
    throw_io_error(error, fmt::format("cannot write {}", path_));
  }
  return info_;
}

}  // namespace orrery
