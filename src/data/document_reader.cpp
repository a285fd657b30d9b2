#include "data/document_reader.h"

#include <algorithm>

#include "base/error.h"

namespace orrery {
namespace {

constexpr size_t kBatchBytes = size_t{1} << 20;
constexpr size_t kFillBytes = size_t{1} << 20;
constexpr std::string_view kEndOfText = "<|endoftext|>";
constexpr std::string_view kWhiteSpace = " \t\r\n\f\v";

// Where a document of more than `limit` bytes is cut.
size_t cut_point(std::string_view text, size_t limit) {
  const std::string_view head = text.substr(0, limit);
  if (const size_t at = head.rfind("\n\n"); at != std::string_view::npos && at >= limit / 2) return at + 2;
  if (const size_t at = head.rfind('\n'); at != std::string_view::npos && at >= limit / 2) return at + 1;
  if (const size_t at = head.rfind(' '); at != std::string_view::npos && at >= limit / 2) return at + 1;
  size_t at = limit;
  while (at > 1 && limit - at < 3 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;  // not inside a UTF-8 character
  return at;
}

struct DocumentEnd {
  size_t at = std::string_view::npos;
  size_t separator_bytes = 0;
};

// The first separator in `text` from `from` on; text[0] is the start of a line.
DocumentEnd find_separator(std::string_view text, size_t from) {
  DocumentEnd end;
  for (size_t at = text.find('\f', from); at != std::string_view::npos; at = text.find('\f', at + 1))
    if (at == 0 || text[at - 1] == '\n') {
      end = {at, 1};
      break;
    }
  if (const size_t at = text.find(kEndOfText, from); at < end.at) end = {at, kEndOfText.size()};
  return end;
}

}  // namespace

DocumentReader::DocumentReader(std::vector<InputFile> inputs, uint64_t max_document_bytes)
    : inputs_(std::move(inputs)), max_document_bytes_(max_document_bytes) {
  for (const InputFile& input : inputs_) bytes_total_ += input.file_bytes;
}

bool DocumentReader::open_next_file() {
  if (next_file_ == inputs_.size()) return false;
  const InputFile& input = inputs_[next_file_++];
  if (input.kind == InputKind::kTokens)
    tokens_ = TokenFile::open(input.path);
  else
    stream_ = InputStream::open(input.path);
  pending_.clear();
  begin_ = scanned_ = 0;
  at_end_ = false;
  line_ = document_in_file_ = 0;
  return true;
}

void DocumentReader::close_file() {
  stream_.reset();
  tokens_.reset();
  bytes_before_file_ += inputs_[next_file_ - 1].file_bytes;
}

// Reads more of the file behind pending_ (perhaps nothing, which sets at_end_); false, and nothing changed, once it has ended.
bool DocumentReader::fill() {
  if (at_end_) return false;
  if (begin_ > 0) {
    pending_.erase(0, begin_);
    begin_ = 0;
  }
  const size_t before = pending_.size();
  pending_.resize(before + kFillBytes);
  const size_t count = stream_->read(pending_.data() + before, kFillBytes);
  pending_.resize(before + count);
  at_end_ = count == 0;
  return true;
}

void DocumentReader::append(RawBatch* batch, std::string_view text) {
  const auto file_index = static_cast<uint32_t>(next_file_ - 1);
  batch->items.push_back({inputs_[file_index].kind, file_index, line_, num_documents_++, batch->bytes.size(), text.size()});
  batch->bytes += text;
}

bool DocumentReader::read_text(RawBatch* batch) {
  while (true) {
    const std::string_view text = std::string_view(pending_).substr(begin_);
    // A separator may straddle what was read before.
    const std::string_view searched = max_document_bytes_ > 0 ? text.substr(0, max_document_bytes_ + kEndOfText.size()) : text;
    const DocumentEnd end = find_separator(searched, scanned_ - std::min(scanned_, kEndOfText.size() - 1));
    size_t size = end.at, skip = end.separator_bytes;
    if (max_document_bytes_ > 0 && std::min(size, text.size()) > max_document_bytes_) {
      size = cut_point(text, max_document_bytes_);
      skip = 0;
    } else if (size == std::string_view::npos) {
      scanned_ = text.size();
      if (fill()) continue;
      if (text.empty()) return false;
      size = text.size();
    }
    const std::string_view document = text.substr(0, size);
    const bool is_blank = document.find_first_not_of(kWhiteSpace) == std::string_view::npos;
    if (!is_blank) append(batch, document);
    begin_ += size + skip;
    if (skip > 0 && begin_ < pending_.size() && pending_[begin_] == '\n') ++begin_;
    scanned_ = 0;
    if (!is_blank) return true;
  }
}

bool DocumentReader::read_line(RawBatch* batch) {
  while (true) {
    const std::string_view text = std::string_view(pending_).substr(begin_);
    size_t size = text.find('\n', scanned_);
    if (size == std::string_view::npos) {
      scanned_ = text.size();
      if (scanned_ > kJsonLineBytesMax)
        throw Error(ErrorCode::kCorruptData, "{}:{}: a line of more than {} MiB; JSON lines have one document a line",
                    inputs_[next_file_ - 1].path, line_ + 1, kJsonLineBytesMax >> 20);
      if (fill()) continue;
      if (text.empty()) return false;
      size = text.size();
    }
    ++line_;
    std::string_view line = text.substr(0, size);
    if (line_ == 1 && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
    const bool is_blank = line.find_first_not_of(kWhiteSpace) == std::string_view::npos;
    if (!is_blank) append(batch, line);
    begin_ = std::min(begin_ + size + 1, pending_.size());
    scanned_ = 0;
    if (!is_blank) return true;
  }
}

bool DocumentReader::read_tokens(RawBatch* batch) {
  if (document_in_file_ == tokens_->num_documents()) return false;
  const auto offsets = tokens_->document_offsets();
  const uint64_t begin = offsets[document_in_file_], count = offsets[document_in_file_ + 1] - begin;
  ++document_in_file_;
  if (count == 0) return true;
  const size_t at = batch->ids.size();
  batch->ids.resize(at + count);
  batch->keep.resize(at + count);
  tokens_->read_tokens(begin, count, batch->ids.data() + at);
  tokens_->read_mask(begin, count, batch->keep.data() + at);
  batch->items.push_back({InputKind::kTokens, static_cast<uint32_t>(next_file_ - 1), 0, num_documents_++, at, count});
  return true;
}

bool DocumentReader::read_one(RawBatch* batch) {
  if (tokens_) return read_tokens(batch);
  return inputs_[next_file_ - 1].kind == InputKind::kJsonl ? read_line(batch) : read_text(batch);
}

bool DocumentReader::next(RawBatch* batch) {
  batch->items.clear();
  batch->bytes.clear();
  batch->ids.clear();
  batch->keep.clear();
  while (batch->bytes.size() < kBatchBytes && batch->ids.size() < kBatchBytes) {
    if (!stream_ && !tokens_ && !open_next_file()) break;
    if (!read_one(batch)) close_file();
  }
  batch->number = num_batches_++;
  return !batch->items.empty();
}

}  // namespace orrery
