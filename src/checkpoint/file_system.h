// The file operations that decide whether a save survives, behind one small interface, so that a test can fail or stop at the
// n-th of them. And the two ways to read: bounded positional reads, and a read-only mapping.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace orrery {

/// Every function throws Error{kIo} that names the path and the system's reason. Nothing is retried: after a failed fsync the data
/// may be lost though the next fsync succeeds, so the only way on is a new file.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual void make_directory(const std::string& path) = 0;
  /// A new file for writing; refuses an existing one. Returns a handle for the calls below.
  virtual int create_file(const std::string& path) = 0;
  virtual void write_all(int file, const std::string& path, std::span<const std::byte> data) = 0;
  virtual void sync_file(int file, const std::string& path) = 0;
  virtual void close_file(int file, const std::string& path) = 0;
  virtual void rename_path(const std::string& from, const std::string& to) = 0;
  /// Swaps two existing paths in one step.
  virtual void exchange_paths(const std::string& a, const std::string& b) = 0;
  virtual void sync_directory(const std::string& path) = 0;
  virtual void remove_file(const std::string& path) = 0;
  virtual void remove_directory(const std::string& path) = 0;
};

/// The operating system's.
FileSystem& real_file_system();

/// Removes a flat directory and its files through `files`; what is already gone is no error.
void remove_flat_directory(FileSystem& files, const std::string& path);

/// Random access to bytes that may be verified on the way. Thread-safe.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual uint64_t size() const = 0;
  /// Errors: kCorruptData when the range is not there (a file that shrank), kIo.
  virtual void read(uint64_t offset, std::span<std::byte> out) const = 0;
  virtual const std::string& name() const = 0;  // for messages: the path
};

/// A regular file read with pread, so that a file truncated under us is an Error and not a SIGBUS.
class FileSource final : public ByteSource {
 public:
  explicit FileSource(std::string path);
  ~FileSource() override;
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;
  uint64_t size() const override { return size_; }
  void read(uint64_t offset, std::span<std::byte> out) const override;
  const std::string& name() const override { return path_; }
  int descriptor() const { return file_; }

 private:
  std::string path_;
  int file_ = -1;
  uint64_t size_ = 0;
};

/// Bytes in memory, for tests and fuzzing.
class MemorySource final : public ByteSource {
 public:
  MemorySource(std::string name, std::span<const std::byte> data) : name_(std::move(name)), data_(data) {}
  uint64_t size() const override { return data_.size(); }
  void read(uint64_t offset, std::span<std::byte> out) const override;
  const std::string& name() const override { return name_; }

 private:
  std::string name_;
  std::span<const std::byte> data_;
};

/// A read-only mapping of a whole file. Its pages are the kernel's cache, not our memory.
class FileMapping {
 public:
  explicit FileMapping(const FileSource& file);
  ~FileMapping();
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

/// A whole small file. Errors: kCorruptData above `limit_bytes`, kIo.
std::string read_small_file(const std::string& path, uint64_t limit_bytes);

bool path_exists(const std::string& path);
bool is_directory(const std::string& path);
/// Names in a directory, sorted; empty when it does not exist.
std::vector<std::string> list_directory(const std::string& path);
/// `name` inside `directory`.
std::string join_path(const std::string& directory, const std::string& name);
/// Whether a name taken from a file's content may be joined to a directory: not empty, no '/', no NUL, not "." or "..".
bool is_plain_file_name(const std::string& name);

}  // namespace orrery
