// What the tests of this folder share: a directory that goes away, file bytes in and out, and a file system that fails or loses power
// at the n-th operation.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/file_system.h"

namespace orrery {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    // In memory where there is such a place: these tests write thousands of small files, and a busy disk would make them slow.
    const std::string root = ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : std::filesystem::temp_directory_path().string();
    std::string name = root + "/orrery-test-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) ADD_FAILURE() << "mkdtemp";
    path_ = name;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return join_path(path_, name); }

 private:
  std::string path_;
};

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}
inline std::span<const std::byte> as_byte_span(const std::string& text) { return std::as_bytes(std::span(text.data(), text.size())); }

/// Runs `body`, which must throw Error with this code and every part in its message.
template <typename Body>
void expect_error(Body&& body, ErrorCode code, std::initializer_list<std::string> parts) {
  try {
    body();
    ADD_FAILURE() << "no error; wanted " << *parts.begin();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    for (const std::string& part : parts) EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << "wanted \"" << part << "\" in: " << error.what();
  }
}

/// Counts operations; syncing is remembered, not done. At operation `fail_at` it either fails once with `error_number` (and a write leaves half its bytes), or, with
/// `crash`, cuts the power: that operation and all later ones do nothing but throw, and lose_unsynced() then does to the disk what
/// a power cut may do.
class FaultyFileSystem final : public FileSystem {
 public:
  int64_t fail_at = -1;
  int error_number = 28;  // ENOSPC
  bool crash = false;
  int64_t count = 0;
  bool dead = false;

  void make_directory(const std::string& path) override { step("mkdir " + path), real_.make_directory(path); }
  int create_file(const std::string& path) override {
    step("create " + path);
    unsynced_.insert(path);
    return real_.create_file(path);
  }
  void write_all(int file, const std::string& path, std::span<const std::byte> data) override {
    try {
      step("write " + path);
    } catch (const Error&) {
      if (!was_dead_) real_.write_all(file, path, data.first(data.size() / 2));
      was_dead_ = dead;
      throw;
    }
    real_.write_all(file, path, data);
  }
  void sync_file(int file, const std::string& path) override {
    step("sync " + path);  // not passed on: a real disk would make these tests minutes long
    (void)file;
    unsynced_.erase(path);
  }
  void close_file(int file, const std::string& path) override {
    real_.close_file(file, path);  // the test process must not leak it
    step("close " + path);
  }
  void rename_path(const std::string& from, const std::string& to) override {
    step("rename " + from);
    real_.rename_path(from, to);
    follow(from, to);
    renames_.push_back({from, to, false});
  }
  void exchange_paths(const std::string& a, const std::string& b) override {
    step("exchange " + a);
    real_.exchange_paths(a, b);
    follow(a, b);
    renames_.push_back({a, b, true});
  }
  void sync_directory(const std::string& path) override {
    step("sync directory " + path);
    std::erase_if(renames_, [&](const Rename& r) { return std::filesystem::path(r.to).parent_path() == path; });
  }
  void remove_file(const std::string& path) override { step("remove " + path), real_.remove_file(path); }
  void remove_directory(const std::string& path) override { step("rmdir " + path), real_.remove_directory(path); }

  /// After a crash: each rename whose directory was not synced is undone or not, and each file that was not synced ends anywhere.
  void lose_unsynced(std::mt19937_64& random) {
    for (const std::string& path : unsynced_) {
      std::error_code error;
      const auto size = std::filesystem::file_size(path, error);
      if (!error) std::filesystem::resize_file(path, random() % (size + 1), error);
    }
    for (auto it = renames_.rbegin(); it != renames_.rend(); ++it) {
      if (random() % 2 == 0) break;  // a later rename survives only with the earlier ones
      it->exchange ? real_.exchange_paths(it->from, it->to) : real_.rename_path(it->to, it->from);
    }
  }
  const std::string& last() const { return last_; }

 private:
  struct Rename {
    std::string from, to;
    bool exchange;
  };
  /// Files that are not synced keep that state under their new name.
  void follow(const std::string& from, const std::string& to) {
    std::set<std::string> moved;
    for (const std::string& path : unsynced_) {
      const bool inside = path == from || path.starts_with(from + "/");
      moved.insert(inside ? to + path.substr(from.size()) : path);
    }
    unsynced_ = std::move(moved);
  }
  void step(const std::string& what) {
    if (dead) throw Error(ErrorCode::kIo, "power is off");
    if (count++ != fail_at) return;
    last_ = what;
    dead = crash;
    throw_io_error(error_number, "injected: " + what);
  }

  FileSystem& real_ = real_file_system();
  std::set<std::string> unsynced_;
  std::vector<Rename> renames_;
  std::string last_;
  bool was_dead_ = false;
};

}  // namespace orrery
