#include "checkpoint/file_system.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/error.h"

namespace orrery {
namespace {

class RealFileSystem final : public FileSystem {
 public:
  void make_directory(const std::string& path) override {
    if (::mkdir(path.c_str(), 0777) != 0) throw_io_error(errno, "cannot create directory " + path);
  }
  int create_file(const std::string& path) override {
    const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file < 0) throw_io_error(errno, "cannot create " + path);
    return file;
  }
  void write_all(int file, const std::string& path, std::span<const std::byte> data) override {
    while (!data.empty()) {
      const ssize_t written = ::write(file, data.data(), data.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) throw_io_error(errno, "cannot write " + path);
      if (written == 0) throw_io_error(ENOSPC, "cannot write " + path);
      data = data.subspan(static_cast<size_t>(written));
    }
  }
  void sync_file(int file, const std::string& path) override {
    if (::fsync(file) != 0) throw_io_error(errno, "cannot sync " + path);
  }
  void close_file(int file, const std::string& path) override {
    if (::close(file) != 0 && errno != EINTR) throw_io_error(errno, "cannot close " + path);
  }
  void rename_path(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) throw_io_error(errno, "cannot rename " + from + " to " + to);
  }
  void exchange_paths(const std::string& a, const std::string& b) override {
    if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return;
    if (errno != EINVAL && errno != ENOSYS) throw_io_error(errno, "cannot exchange " + a + " and " + b);
    // A file system without the exchange: b steps aside first, and between the two renames it is known only by that name.
    const std::string aside = b + ".replaced";
    rename_path(b, aside);
    rename_path(a, b);
    rename_path(aside, a);
  }
  void sync_directory(const std::string& path) override {
    const int directory = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) throw_io_error(errno, "cannot open directory " + path);
    const int result = ::fsync(directory);
    const int reason = errno;
    ::close(directory);
    // Some network file systems cannot sync a directory and say so; their rename is already as durable as they offer.
    if (result != 0 && reason != EINVAL) throw_io_error(reason, "cannot sync directory " + path);
  }
  void remove_file(const std::string& path) override {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) throw_io_error(errno, "cannot remove " + path);
  }
  void remove_directory(const std::string& path) override {
    if (::rmdir(path.c_str()) != 0 && errno != ENOENT) throw_io_error(errno, "cannot remove directory " + path);
  }
};

void check_range(const ByteSource& source, uint64_t offset, uint64_t length) {
  if (offset <= source.size() && length <= source.size() - offset) return;
  throw Error(ErrorCode::kCorruptData, "{}: wanted bytes {} to {}, but the file has {}", source.name(), offset, offset + length, source.size());
}

}  // namespace

FileSystem& real_file_system() {
  static RealFileSystem files;
  return files;
}

void remove_flat_directory(FileSystem& files, const std::string& path) {
  // The manifest goes first: a directory without one is no checkpoint, however far the removal gets.
  std::vector<std::string> names = list_directory(path);
  std::stable_partition(names.begin(), names.end(), [](const std::string& name) { return name == "manifest.json"; });
  for (const std::string& name : names) files.remove_file(join_path(path, name));
  files.remove_directory(path);
}

FileSource::FileSource(std::string path) : path_(std::move(path)) {
  file_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // O_NONBLOCK: opening a FIFO must not hang
  if (file_ < 0) throw_io_error(errno, "cannot open " + path_);
  struct stat status {};
  if (::fstat(file_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(file_);
    throw Error(ErrorCode::kIo, "{}: wanted a regular file", path_);
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

FileSource::~FileSource() { ::close(file_); }

void FileSource::read(uint64_t offset, std::span<std::byte> out) const {
  check_range(*this, offset, out.size());
  while (!out.empty()) {
    const ssize_t got = ::pread(file_, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_io_error(errno, "cannot read " + path_);
    if (got == 0) {
      throw Error(ErrorCode::kCorruptData, "{}: the file ends at byte {}, but had {} bytes when it was opened; something changes it", path_, offset,
                  size_);
    }
    out = out.subspan(static_cast<size_t>(got));
    offset += static_cast<uint64_t>(got);
  }
}

void MemorySource::read(uint64_t offset, std::span<std::byte> out) const {
  check_range(*this, offset, out.size());
  if (!out.empty()) std::memcpy(out.data(), data_.data() + offset, out.size());
}

FileMapping::FileMapping(const FileSource& file) {
  if (file.size() == 0) return;
  void* data = ::mmap(nullptr, file.size(), PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
  if (data == MAP_FAILED) throw_io_error(errno, "cannot map " + file.name());
  bytes_ = {static_cast<const std::byte*>(data), file.size()};
}

FileMapping::~FileMapping() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

std::string read_small_file(const std::string& path, uint64_t limit_bytes) {
  const FileSource file(path);
  if (file.size() > limit_bytes) {
    throw Error(ErrorCode::kCorruptData, "{}: {} bytes, but such a file has at most {}", path, file.size(), limit_bytes);
  }
  std::string text(file.size(), '\0');
  file.read(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return text;
}

bool path_exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

bool is_directory(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored);
}

std::vector<std::string> list_directory(const std::string& path) {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string join_path(const std::string& directory, const std::string& name) {
  if (directory.empty()) return name;
  return directory.back() == '/' ? directory + name : directory + "/" + name;
}

bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

}  // namespace orrery
