// Reads a list of input files as one sequence of raw documents, in batches that threads can tokenize independently.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/input_stream.h"
#include "data/token_file.h"

namespace orrery {

/// A few megabytes of documents in their order. Text and JSON lines lie in `bytes`, documents that are tokens already in `ids`.
struct RawBatch {
  struct Item {
    InputKind kind;
    uint32_t file_index;
    uint64_t line;            // from 1, of JSON lines
    uint64_t document_index;  // over all files
    size_t begin, size;
  };
  uint64_t number = 0;
  std::vector<Item> items;
  std::string bytes;
  std::vector<int32_t> ids;
  std::vector<uint8_t> keep;
};

/// Text files   A document ends at a form feed that starts a line, at "<|endoftext|>", at the end of the file, and, so that a
/// large file does
///   not become one document, at max_document_bytes: there at the last empty line of the second half, or else the last line
///   end, space or character. Documents of white space only are left out. Any bytes are text.
/// JSON lines   One document a line; empty lines are left out. The caller parses.
/// Tokens       The file's own documents.
class DocumentReader {
 public:
  static constexpr uint64_t kJsonLineBytesMax = uint64_t{256} << 20;
  DocumentReader(std::vector<InputFile> inputs, uint64_t max_document_bytes);
  /// Fills the next batch; false at the end.
  /// Errors  kIo, kCorruptData (a line longer than kJsonLineBytesMax, corrupt compression, corrupt tokens), with file and line.
  [[nodiscard]] bool next(RawBatch* batch);
  const std::vector<InputFile>& inputs() const { return inputs_; }
  uint64_t file_bytes_done() const { return bytes_before_file_ + (stream_ ? stream_->file_position() : 0); }
  uint64_t file_bytes_total() const { return bytes_total_; }

 private:
  bool open_next_file();
  void close_file();
  bool fill();
  bool read_one(RawBatch* batch);
  bool read_text(RawBatch* batch);
  bool read_line(RawBatch* batch);
  bool read_tokens(RawBatch* batch);
  void append(RawBatch* batch, std::string_view text);

  std::vector<InputFile> inputs_;
  uint64_t max_document_bytes_;
  size_t next_file_ = 0;
  std::unique_ptr<InputStream> stream_;
  std::unique_ptr<TokenFile> tokens_;
  std::string pending_;  // read and not yet given out: pending_[begin_..]
  size_t begin_ = 0;
  size_t scanned_ = 0;   // pending_[begin_..begin_ + scanned_) holds no document end
  bool at_end_ = false;  // of the file
  uint64_t line_ = 0;
  uint64_t document_in_file_ = 0;
  uint64_t num_documents_ = 0;
  uint64_t num_batches_ = 0;
  uint64_t bytes_before_file_ = 0, bytes_total_ = 0;
};

}  // namespace orrery
