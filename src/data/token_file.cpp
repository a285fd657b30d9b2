#include "data/token_file.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/error.h"

namespace orrery {

static_assert(std::endian::native == std::endian::little, "the files are mapped as they are");

namespace {

constexpr char kShardMagic[8] = {'O', 'R', 'R', 'T', 'O', 'K', 'S', '\n'};
constexpr char kRebuild[] = "; build it again with `orrery data build`";

template <typename Integer>
Integer load(const uint8_t* bytes) {
  Integer value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

bool ends_with(const std::string& text, std::string_view end) { return std::string_view(text).ends_with(end); }

}  // namespace

std::unique_ptr<TokenFile> TokenFile::open(const std::string& path) {
  if (ends_with(path, ".bin") || ends_with(path, ".idx")) {
    const std::string stem = path.substr(0, path.size() - 4);
    MappedFile index(stem + ".idx"), tokens(stem + ".bin");
    auto file = from_megatron_bytes(stem + ".idx", index.bytes(), tokens.bytes());
    file->index_mapping_ = std::move(index);
    file->token_mapping_ = std::move(tokens);
    return file;
  }
  MappedFile mapping(path);
  auto file = from_shard_bytes(path, mapping.bytes());
  file->token_mapping_ = std::move(mapping);
  return file;
}

std::unique_ptr<TokenFile> TokenFile::from_shard_bytes(std::string name, std::span<const uint8_t> bytes) {
  std::unique_ptr<TokenFile> file(new TokenFile);
  file->name_ = std::move(name);
  file->bytes_ = bytes;
  file->is_shard_ = true;
  file->parse_shard();
  return file;
}

void TokenFile::check_shard_header(const ShardHeader& header) const {
  const auto corrupt = [&](const std::string& what) {
    return Error(ErrorCode::kCorruptData, "{}: block 0 (header): {}{}", name_, what, kRebuild);
  };
  if (std::memcmp(header.magic, kShardMagic, sizeof kShardMagic) != 0)
    throw Error(ErrorCode::kCorruptData, "{}: not an Orrery token shard (the first 8 bytes are not \"ORRTOKS\\n\")", name_);
  if (header.version != kShardVersion)
    throw Error(ErrorCode::kUnsupported, "{}: shard version {}, this program reads version {}{}", name_, header.version,
                kShardVersion, kRebuild);
  if (crc32c_of(&header, offsetof(ShardHeader, header_crc)) != header.header_crc) throw corrupt("its checksum does not match");
  if (header.file_bytes != bytes_.size())
    throw corrupt(fmt::format("the header says {} bytes, the file has {} (truncated?)", header.file_bytes, bytes_.size()));
  if (header.token_bytes != 2 && header.token_bytes != 4)
    throw corrupt(fmt::format("token_bytes={}, wanted 2 or 4", header.token_bytes));
  if (header.header_bytes != kShardHeaderBytes || header.block_bytes != kShardBlockBytes || header.flags > 1)
    throw corrupt(
        fmt::format("header_bytes={}, block_bytes={}, flags={}", header.header_bytes, header.block_bytes, header.flags));
  // Every section's place follows from the counts; bounding the counts by the file's size first keeps the sums from wrapping.
  if (header.num_tokens > bytes_.size() || header.num_documents > bytes_.size())
    throw corrupt(
        fmt::format("{} tokens and {} documents in {} bytes", header.num_tokens, header.num_documents, bytes_.size()));
  const auto aligned = [](uint64_t offset) { return (offset + 63) / 64 * 64; };
  const bool has_mask = header.flags & 1;
  const uint64_t documents = aligned(kShardHeaderBytes + header.num_tokens * header.token_bytes);
  const uint64_t mask = aligned(documents + (header.num_documents + 1) * 8);
  const uint64_t checksums = has_mask ? aligned(mask + (header.num_tokens + 7) / 8) : mask;
  const uint64_t num_blocks = (checksums - kShardHeaderBytes + kShardBlockBytes - 1) / kShardBlockBytes;
  if (header.tokens_offset != kShardHeaderBytes || header.documents_offset != documents ||
      header.mask_offset != (has_mask ? mask : 0) || header.checksums_offset != checksums ||
      header.file_bytes != checksums + num_blocks * 4)
    throw corrupt("the sections' offsets do not follow from the counts");
  if (crc32c_of(bytes_.data() + checksums, num_blocks * 4) != header.checksums_crc)
    throw Error(ErrorCode::kCorruptData, "{}: the table of block checksums does not match its own checksum{}", name_, kRebuild);
  if (header.num_tokens > 0 && header.max_token_id >= header.vocab_size)
    throw corrupt(fmt::format("max_token_id={} is not below vocab_size={}", header.max_token_id, header.vocab_size));
}

void TokenFile::parse_shard() {
  if (bytes_.size() < kShardHeaderBytes)
    throw Error(ErrorCode::kCorruptData, "{}: {} bytes, shorter than a shard's header of {} (truncated?){}", name_,
                bytes_.size(), kShardHeaderBytes, kRebuild);
  ShardHeader header;
  std::memcpy(&header, bytes_.data(), sizeof header);
  check_shard_header(header);
  token_bytes_ = header.token_bytes;
  num_tokens_ = header.num_tokens;
  tokens_ = bytes_.data() + header.tokens_offset;
  if (header.flags & 1) mask_ = bytes_.data() + header.mask_offset;
  checksums_ = bytes_.data() + header.checksums_offset;
  payload_begin_ = header.header_bytes;
  payload_end_ = header.checksums_offset;
  max_token_id_ = header.max_token_id;
  vocab_size_ = header.vocab_size;
  id_limit_ = std::min<uint64_t>(id_limit_, uint64_t{header.max_token_id} + 1);
  tokenizer_hash_.emplace();
  std::copy_n(header.tokenizer_hash, 16, tokenizer_hash_->bytes.begin());
  prepare_block_states();

  verify_bytes(header.documents_offset, header.documents_offset + (header.num_documents + 1) * 8);
  const uint8_t* offsets = bytes_.data() + header.documents_offset;
  if (reinterpret_cast<uintptr_t>(offsets) % 8 == 0) {
    document_offsets_ = {reinterpret_cast<const uint64_t*>(offsets), header.num_documents + 1};
  } else {  // only over a caller's unaligned bytes; a map is page-aligned
    own_offsets_.resize(header.num_documents + 1);
    std::memcpy(own_offsets_.data(), offsets, own_offsets_.size() * 8);
    document_offsets_ = own_offsets_;
  }
  if (document_offsets_.front() != 0 || document_offsets_.back() != num_tokens_ ||
      !std::is_sorted(document_offsets_.begin(), document_offsets_.end()))
    throw Error(ErrorCode::kCorruptData, "{}: document offsets do not ascend from 0 to {}{}", name_, num_tokens_, kRebuild);
}

// Megatron-LM's MMIDIDX version 1: 9 bytes magic, u64 version, u8 type, u64 sequences, u64 document boundaries, i32 length per
// sequence, i64 byte pointer per sequence, i64 document boundaries (indices of sequences). Nothing is aligned.
// Source  Megatron-LM, megatron/core/datasets/indexed_dataset.py.
std::unique_ptr<TokenFile> TokenFile::from_megatron_bytes(std::string name, std::span<const uint8_t> index,
                                                          std::span<const uint8_t> tokens) {
  std::unique_ptr<TokenFile> file(new TokenFile);
  file->name_ = std::move(name);
  file->bytes_ = tokens;
  file->index_bytes_ = index;
  file->parse_megatron(index);
  return file;
}

void TokenFile::parse_megatron(std::span<const uint8_t> index) {
  const auto corrupt = [&](const std::string& what) { return Error(ErrorCode::kCorruptData, "{}: {}", name_, what); };
  constexpr size_t kFixedBytes = 34;
  if (index.size() < kFixedBytes)
    throw corrupt(fmt::format("{} bytes, shorter than a Megatron index's header of 34", index.size()));
  if (std::memcmp(index.data(), "MMIDIDX\0\0", 9) != 0) throw corrupt("not a Megatron index (no MMIDIDX magic)");
  if (const auto version = load<uint64_t>(index.data() + 9); version != 1)
    throw Error(ErrorCode::kUnsupported, "{}: Megatron index version {}, this program reads version 1", name_, version);
  const int type = index[17];
  if (type != 4 && type != 8)
    throw Error(ErrorCode::kUnsupported,
                "{}: token type code {}, wanted 8 (uint16) or 4 (int32): preprocess it again with one of these", name_, type);
  token_bytes_ = type == 8 ? 2 : 4;
  const auto num_sequences = load<uint64_t>(index.data() + 18);
  const auto num_boundaries = load<uint64_t>(index.data() + 26);
  const uint64_t rest = index.size() - kFixedBytes;
  if (num_sequences > rest / 12 || num_boundaries > (rest - num_sequences * 12) / 8 || num_boundaries < 1)
    throw corrupt(fmt::format("{} sequences and {} document boundaries do not fit {} bytes (truncated?)", num_sequences,
                              num_boundaries, index.size()));
  const uint8_t* lengths = index.data() + kFixedBytes;
  const uint8_t* pointers = lengths + num_sequences * 4;
  const uint8_t* boundaries = pointers + num_sequences * 8;
  own_offsets_.assign(1, 0);
  own_offsets_.reserve(num_boundaries);
  if (load<int64_t>(boundaries) != 0) throw corrupt("the first document boundary is not 0");
  uint64_t sequence = 0;
  for (uint64_t boundary = 1; boundary < num_boundaries; ++boundary) {
    const auto end = load<uint64_t>(boundaries + boundary * 8);
    if (end < sequence || end > num_sequences)
      throw corrupt(fmt::format("document boundary {} is {}, wanted {} to {}", boundary, end, sequence, num_sequences));
    for (; sequence < end; ++sequence) {
      const auto length = load<int32_t>(lengths + sequence * 4);
      const auto pointer = load<uint64_t>(pointers + sequence * 8);
      if (length < 0 || pointer != num_tokens_ * token_bytes_)
        throw corrupt(fmt::format("sequence {} has length {} at byte {}, wanted it at byte {}", sequence, length, pointer,
                                  num_tokens_ * token_bytes_));
      num_tokens_ += static_cast<uint64_t>(length);
    }
    own_offsets_.push_back(num_tokens_);
  }
  if (sequence != num_sequences) throw corrupt(fmt::format("the documents cover {} of {} sequences", sequence, num_sequences));
  if (num_tokens_ * token_bytes_ != bytes_.size())
    throw corrupt(fmt::format("the index describes {} bytes of tokens, the .bin has {} (truncated?)",
                              num_tokens_ * token_bytes_, bytes_.size()));
  document_offsets_ = own_offsets_;
  tokens_ = bytes_.data();
  payload_end_ = bytes_.size();
  prepare_block_states();
}

void TokenFile::prepare_block_states() {
  const uint64_t num_blocks = (payload_end_ - payload_begin_ + kShardBlockBytes - 1) / kShardBlockBytes;
  block_is_verified_ = std::make_unique<std::atomic<uint8_t>[]>(num_blocks);
}

ContentHash TokenFile::content_hash() const {
  ContentHasher hasher;
  if (is_shard_) {
    hasher.add_text("orrtok");
    hasher.add(bytes_.data(), kShardHeaderBytes);
    hasher.add(checksums_, bytes_.size() - payload_end_);
    return hasher.finish();
  }
  hasher.add_text("megatron");
  hasher.add(index_bytes_.data(), index_bytes_.size());
  hasher.add_number(bytes_.size());
  constexpr uint64_t kPiecesMax = 4096;
  const uint64_t num_blocks = (bytes_.size() + kShardBlockBytes - 1) / kShardBlockBytes;
  const uint64_t num_pieces = std::min(num_blocks, kPiecesMax);
  for (uint64_t piece = 0; piece < num_pieces; ++piece) {
    const uint64_t begin = num_blocks * piece / num_pieces * kShardBlockBytes;
    hasher.add(bytes_.data() + begin, std::min<uint64_t>(kShardBlockBytes, bytes_.size() - begin));
  }
  return hasher.finish();
}

void TokenFile::require_ids_below(uint32_t vocab_size) {
  if (max_token_id_ && num_tokens_ > 0 && *max_token_id_ >= vocab_size)
    throw Error(ErrorCode::kCorruptData,
                "{}: holds token id {} but the vocabulary has {} entries; build the data with this model's tokenizer, or give "
                "the model vocab_size >= {}",
                name_, *max_token_id_, vocab_size, *max_token_id_ + 1);
  id_limit_ = std::min<uint64_t>(id_limit_, vocab_size);
}

void TokenFile::verify_bytes(uint64_t begin, uint64_t end) const {
  if (begin >= end) return;
  const uint64_t last = (end - 1 - payload_begin_) / kShardBlockBytes;
  for (uint64_t block = (begin - payload_begin_) / kShardBlockBytes; block <= last; ++block)
    if (block_is_verified_[block].load(std::memory_order_relaxed) == 0) verify_block(block);
}

// Two threads may check the same block at once; both find the same answer.
void TokenFile::verify_block(uint64_t block_index) const {
  const uint64_t begin = payload_begin_ + block_index * kShardBlockBytes;
  const uint64_t end = std::min(begin + kShardBlockBytes, payload_end_);
  if (checksums_ != nullptr && crc32c_of(bytes_.data() + begin, end - begin) != load<uint32_t>(checksums_ + block_index * 4))
    throw Error(ErrorCode::kCorruptData, "{}: block {} (bytes {} to {}) does not match its checksum{}", name_, block_index + 1,
                begin, end, kRebuild);
  const uint64_t tokens_begin = static_cast<uint64_t>(tokens_ - bytes_.data());
  check_ids(std::max(begin, tokens_begin), std::min(end, tokens_begin + num_tokens_ * token_bytes_), block_index);
  block_is_verified_[block_index].store(1, std::memory_order_relaxed);
}

void TokenFile::check_ids(uint64_t byte_begin, uint64_t byte_end, uint64_t block_index) const {
  uint32_t largest = 0;
  for (uint64_t at = byte_begin; at < byte_end; at += token_bytes_)
    largest = std::max(largest, token_bytes_ == 2 ? load<uint16_t>(bytes_.data() + at) : load<uint32_t>(bytes_.data() + at));
  if (byte_begin < byte_end && largest >= id_limit_)
    throw Error(ErrorCode::kCorruptData,
                "{}: block {} holds token id {}, the vocabulary allows ids below {}; use the tokenizer that made it", name_,
                block_index + 1, largest, id_limit_);
}

void TokenFile::read_tokens(uint64_t begin, uint64_t count, int32_t* ids) const {
  ORRERY_CHECK(begin <= num_tokens_ && count <= num_tokens_ - begin, "begin={} count={} of {}", begin, count, num_tokens_);
  const uint8_t* source = tokens_ + begin * token_bytes_;
  const uint64_t byte_begin = static_cast<uint64_t>(source - bytes_.data());
  verify_bytes(byte_begin, byte_begin + count * token_bytes_);
  if (token_bytes_ == 4) {
    std::memcpy(ids, source, count * 4);
  } else {
    for (uint64_t i = 0; i < count; ++i) ids[i] = load<uint16_t>(source + 2 * i);
  }
}

void TokenFile::read_mask(uint64_t begin, uint64_t count, uint8_t* keep) const {
  ORRERY_CHECK(begin <= num_tokens_ && count <= num_tokens_ - begin, "begin={} count={} of {}", begin, count, num_tokens_);
  if (mask_ == nullptr) {
    std::fill_n(keep, count, uint8_t{1});
    return;
  }
  const uint64_t mask_begin = static_cast<uint64_t>(mask_ - bytes_.data());
  verify_bytes(mask_begin + begin / 8, mask_begin + (begin + count + 7) / 8);
  for (uint64_t i = begin; i < begin + count; ++i) keep[i - begin] = (mask_[i / 8] >> (i % 8)) & 1;
}

void TokenFile::verify_all() const { verify_bytes(payload_begin_, payload_end_); }

}  // namespace orrery
