#include "runtime/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

#include "base/error.h"

namespace orrery {
namespace {

constexpr int64_t kHugePage = 2 << 20;

// "Name:   123 kB" of a /proc file, in bytes.
std::optional<int64_t> proc_field(const char* path, const std::string& name) {
  std::ifstream file(path);
  std::string key;
  while (file >> key) {
    int64_t kib = 0;
    if (key == name && file >> kib) return kib * 1024;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::nullopt;
}

std::optional<int64_t> read_number(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

}  // namespace

int64_t available_memory_bytes() {
  int64_t available = proc_field("/proc/meminfo", "MemAvailable:").value_or(std::numeric_limits<int64_t>::max());
  const auto limit = read_number("/sys/fs/cgroup/memory.max");
  const auto used = read_number("/sys/fs/cgroup/memory.current");
  if (limit && used) available = std::min(available, *limit - *used);
  return available;
}

int64_t resident_memory_bytes() {
  return proc_field("/proc/self/status", "RssAnon:").value_or(0) + proc_field("/proc/self/status", "RssShmem:").value_or(0);
}

Arena::Arena(int64_t bytes) : bytes_(bytes) {
  ORRERY_CHECK(bytes > 0, "arena of {} bytes", bytes);
  const auto refuse = [&](const char* why) {
    throw Error(ErrorCode::kOutOfMemory,
                "the plan needs an arena of {:.1f} MiB and {} ({:.1f} MiB available); use a smaller micro-batch or model, train.recompute = \"full\", or set budget.memory so that the plan is made for what there is",
                static_cast<double>(bytes) / (1 << 20), why, static_cast<double>(available_memory_bytes()) / (1 << 20));
  };
  // Checked first: under overcommit a mapping always succeeds and the kernel kills the process at the first touch.
  if (available_memory_bytes() < bytes) refuse("the machine has less");
  mapping_bytes_ = bytes + kHugePage;
  void* mapping = mmap(nullptr, static_cast<size_t>(mapping_bytes_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) refuse(std::strerror(errno));
  mapping_ = static_cast<std::byte*>(mapping);
  const auto address = reinterpret_cast<uintptr_t>(mapping_);
  data_ = mapping_ + ((kHugePage - address % kHugePage) % kHugePage);
  madvise(data_, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  for (int64_t offset = 0; offset < bytes; offset += 4096) data_[offset] = std::byte{0};
}

Arena::~Arena() {
  if (mapping_) munmap(mapping_, static_cast<size_t>(mapping_bytes_));
}

}  // namespace orrery
