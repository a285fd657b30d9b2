// The bytes of a plain, gzip or zstd file, and the list of files that a set of globs means.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace orrery {

enum class Compression { kNone, kGzip, kZstd };
enum class InputKind { kText, kJsonl, kTokens };

/// Sequential reader; the compression is told from the first bytes, not from the name.
class InputStream {
 public:
  /// Errors  kIo.
  static std::unique_ptr<InputStream> open(const std::string& path);
  virtual ~InputStream() = default;
  /// Up to `size` bytes; 0 at the end. Errors  kIo; kCorruptData: a truncated or altered compressed file, by name.
  virtual size_t read(char* out, size_t size) = 0;
  /// Bytes of the file on disk read so far, for progress.
  virtual uint64_t file_position() const = 0;
  virtual Compression compression() const = 0;
};

struct InputFile {
  std::string path;
  InputKind kind = InputKind::kText;
  Compression compression = Compression::kNone;
  uint64_t file_bytes = 0;
  /// e.g. "notes.jsonl.gz: JSON lines, gzip".
  std::string description() const;
};

/// Every file that the patterns mean, sorted by name within a pattern, each once. A pattern is a glob, a file, a folder of
/// shards (its training shards) or any other folder (all files in it and below whose name ends in .txt, .md, .jsonl, .json,
/// .ndjson, .orrtok or .bin with its .idx, compressed or not). The kind is told from the name; an unknown name is JSON lines
/// when its first character other than space is '{', else text. Errors  kInvalidArgument: a pattern that matches nothing, with
/// the folder that was searched. kIo.
std::vector<InputFile> find_inputs(const std::vector<std::string>& patterns);

}  // namespace orrery
