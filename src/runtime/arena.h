// The one allocation that holds every tensor of a rank. Nothing else in a run may allocate tensor memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace orrery {

/// `bytes` of zeroed anonymous memory, 2 MiB aligned, huge pages asked for, every page touched before the constructor returns,
/// so that a step never meets a page fault and a machine that is too small says so at start.
/// Errors: kOutOfMemory, naming the bytes wanted and those available.
class Arena {
 public:
  explicit Arena(int64_t bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* mapping_ = nullptr;
  int64_t mapping_bytes_ = 0;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

/// What this process may still take: the least of the machine's available memory and its cgroup's limit less its use.
int64_t available_memory_bytes();

/// Resident anonymous and shared memory of this process (RssAnon + RssShmem); mapped files are not counted.
int64_t resident_memory_bytes();

}  // namespace orrery
