#include "data/input_stream.h"

#include <glob.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "data/token_file.h"

namespace orrery {
namespace {

namespace fs = std::filesystem;

constexpr size_t kReadBytes = size_t{1} << 18;

class RawFile {
 public:
  explicit RawFile(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "rbe")) {
    if (file_ == nullptr) throw_io_error(errno, fmt::format("cannot open {}", path));
    std::setvbuf(file_, nullptr, _IONBF, 0);
  }
  ~RawFile() { std::fclose(file_); }
  RawFile(const RawFile&) = delete;
  size_t read(void* out, size_t size) {
    const size_t count = std::fread(out, 1, size, file_);
    if (count < size && std::ferror(file_)) throw_io_error(errno, fmt::format("cannot read {}", path_));
    position_ += count;
    return count;
  }
  void rewind() {
    std::rewind(file_);
    position_ = 0;
  }
  uint64_t position() const { return position_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::FILE* file_;
  uint64_t position_ = 0;
};

class PlainStream : public InputStream {
 public:
  explicit PlainStream(std::unique_ptr<RawFile> file) : file_(std::move(file)) {}
  size_t read(char* out, size_t size) override { return file_->read(out, size); }
  uint64_t file_position() const override { return file_->position(); }
  Compression compression() const override { return Compression::kNone; }

 private:
  std::unique_ptr<RawFile> file_;
};

// Concatenated members are one stream, as gzip -d reads them.
class GzipStream : public InputStream {
 public:
  explicit GzipStream(std::unique_ptr<RawFile> file) : file_(std::move(file)), input_(kReadBytes) {
    ORRERY_CHECK(inflateInit2(&state_, 15 + 16) == Z_OK);  // 16: gzip framing only
  }
  ~GzipStream() override { inflateEnd(&state_); }
  size_t read(char* out, size_t size) override {
    state_.next_out = reinterpret_cast<Bytef*>(out);
    state_.avail_out = static_cast<uInt>(size);
    while (state_.avail_out == size) {
      if (state_.avail_in == 0) {
        state_.next_in = input_.data();
        state_.avail_in = static_cast<uInt>(file_->read(input_.data(), input_.size()));
        if (state_.avail_in == 0) {
          if (at_member_end_) return 0;
          throw Error(ErrorCode::kCorruptData, "{}: the gzip data end in the middle (truncated?)", file_->path());
        }
      }
      if (at_member_end_) inflateReset(&state_);
      const int result = inflate(&state_, Z_NO_FLUSH);
      at_member_end_ = result == Z_STREAM_END;
      if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR)
        throw Error(ErrorCode::kCorruptData, "{}: corrupt gzip data near byte {}: {}", file_->path(), file_->position(),
                    state_.msg != nullptr ? state_.msg : "unexpected content");
    }
    return size - state_.avail_out;
  }
  uint64_t file_position() const override { return file_->position(); }
  Compression compression() const override { return Compression::kGzip; }

 private:
  std::unique_ptr<RawFile> file_;
  std::vector<Bytef> input_;
  z_stream state_{};
  bool at_member_end_ = false;
};

class ZstdStream : public InputStream {
 public:
  explicit ZstdStream(std::unique_ptr<RawFile> file)
      : file_(std::move(file)), input_(kReadBytes), state_(ZSTD_createDStream()) {
    ORRERY_CHECK(state_ != nullptr);
  }
  ~ZstdStream() override { ZSTD_freeDStream(state_); }
  size_t read(char* out, size_t size) override {
    ZSTD_outBuffer output{out, size, 0};
    while (output.pos == 0) {
      if (buffer_.pos == buffer_.size) {
        buffer_ = {input_.data(), file_->read(input_.data(), input_.size()), 0};
        if (buffer_.size == 0) {
          if (frame_is_open_)
            throw Error(ErrorCode::kCorruptData, "{}: the zstd data end in the middle (truncated?)", file_->path());
          return 0;
        }
      }
      const size_t result = ZSTD_decompressStream(state_, &output, &buffer_);
      if (ZSTD_isError(result))
        throw Error(ErrorCode::kCorruptData, "{}: corrupt zstd data near byte {}: {}", file_->path(), file_->position(),
                    ZSTD_getErrorName(result));
      frame_is_open_ = result != 0;
    }
    return output.pos;
  }
  uint64_t file_position() const override { return file_->position(); }
  Compression compression() const override { return Compression::kZstd; }

 private:
  std::unique_ptr<RawFile> file_;
  std::vector<uint8_t> input_;
  ZSTD_DStream* state_;
  ZSTD_inBuffer buffer_{nullptr, 0, 0};
  bool frame_is_open_ = false;
};

bool has_suffix(std::string_view name, std::initializer_list<std::string_view> suffixes) {
  return std::any_of(suffixes.begin(), suffixes.end(), [&](std::string_view suffix) { return name.ends_with(suffix); });
}

std::string_view without_compression(std::string_view name) {
  for (std::string_view suffix : {".gz", ".zst", ".zstd"})
    if (name.ends_with(suffix)) name.remove_suffix(suffix.size());
  return name;
}

InputFile describe(const std::string& path) {
  InputFile input{.path = path};
  std::error_code error;
  input.file_bytes = fs::file_size(path, error);
  if (error) throw_io_error(error.value(), fmt::format("cannot read {}", path));
  if (has_suffix(path, {kShardSuffix, ".bin", ".idx"})) {
    input.kind = InputKind::kTokens;
    if (path.ends_with(".idx")) input.path = path.substr(0, path.size() - 4) + ".bin";
    return input;
  }
  const auto stream = InputStream::open(path);
  input.compression = stream->compression();
  const std::string_view name = without_compression(path);
  if (has_suffix(name, {".jsonl", ".json", ".ndjson"})) {
    input.kind = InputKind::kJsonl;
  } else if (!has_suffix(name, {".txt", ".md"})) {
    char start[4096];
    const std::string_view text(start, stream->read(start, sizeof start));
    const size_t first = text.find_first_not_of(" \t\r\n\xEF\xBB\xBF");
    if (first != std::string_view::npos && text[first] == '{') input.kind = InputKind::kJsonl;
  }
  return input;
}

std::vector<std::string> files_below(const std::string& folder) {
  std::vector<std::string> paths;
  if (fs::exists(fs::path(folder) / "manifest.json")) {
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.path().filename().string().starts_with("train-") && entry.path().extension() == kShardSuffix)
        paths.push_back(entry.path().string());
  } else {
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (!entry.is_regular_file()) continue;
      const std::string path = entry.path().string();
      const std::string_view name = without_compression(path);
      if (has_suffix(name, {".txt", ".md", ".jsonl", ".json", ".ndjson"}) || path.ends_with(kShardSuffix) ||
          (path.ends_with(".bin") && fs::exists(path.substr(0, path.size() - 4) + ".idx")))
        paths.push_back(path);
    }
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::vector<std::string> expand(const std::string& pattern) {
  if (fs::is_directory(pattern)) return files_below(pattern);
  glob_t matches{};
  const int result = ::glob(pattern.c_str(), GLOB_NOSORT | GLOB_TILDE, nullptr, &matches);
  std::vector<std::string> paths;
  if (result == 0) paths.assign(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  ::globfree(&matches);
  std::erase_if(paths, [](const std::string& path) { return fs::is_directory(path); });
  std::sort(paths.begin(), paths.end());
  return paths;
}

[[noreturn]] void nothing_matches(const std::string& pattern) {
  if (fs::is_directory(pattern))
    throw Error(ErrorCode::kInvalidArgument, "no .txt, .md, .jsonl, .orrtok or .bin/.idx file in the folder {}",
                fs::absolute(pattern).string());
  fs::path folder = fs::absolute(fs::path(pattern).parent_path().empty() ? fs::path(".") : fs::path(pattern).parent_path())
                        .lexically_normal();
  std::string missing;
  while (!fs::exists(folder) && folder.has_parent_path() && folder != folder.parent_path()) {
    missing = folder.string();
    folder = folder.parent_path();
  }
  if (!missing.empty() && missing.find_first_of("*?[") == std::string::npos)
    throw Error(ErrorCode::kCorruptData, "no file matches \"{}\": the folder {} does not exist", pattern, missing);
  throw Error(ErrorCode::kCorruptData,
              "no file matches \"{}\" in {}; check the pattern (quotes keep the shell from expanding it)", pattern,
              folder.string());
}

}  // namespace

std::unique_ptr<InputStream> InputStream::open(const std::string& path) {
  auto file = std::make_unique<RawFile>(path);
  uint8_t magic[4] = {};
  const size_t count = file->read(magic, sizeof magic);
  file->rewind();
  if (count >= 2 && magic[0] == 0x1F && magic[1] == 0x8B) return std::make_unique<GzipStream>(std::move(file));
  if (count == 4 && std::memcmp(magic, "\x28\xB5\x2F\xFD", 4) == 0) return std::make_unique<ZstdStream>(std::move(file));
  return std::make_unique<PlainStream>(std::move(file));
}

std::string InputFile::description() const {
  const char* kinds[] = {"plain text", "JSON lines", "tokens"};
  const char* compressions[] = {"", ", gzip", ", zstd"};
  return fmt::format("{}: {}{}", path, kinds[static_cast<int>(kind)], compressions[static_cast<int>(compression)]);
}

std::vector<InputFile> find_inputs(const std::vector<std::string>& patterns) {
  std::vector<InputFile> inputs;
  std::set<std::string> seen;
  for (const std::string& pattern : patterns) {
    const std::vector<std::string> paths = expand(pattern);
    if (paths.empty()) nothing_matches(pattern);
    for (const std::string& path : paths) {
      InputFile input = describe(path);
      if (seen.insert(fs::absolute(input.path).lexically_normal().string()).second) inputs.push_back(std::move(input));
    }
  }
  if (inputs.empty()) throw Error(ErrorCode::kInvalidArgument, "no input files were named");
  return inputs;
}

}  // namespace orrery
