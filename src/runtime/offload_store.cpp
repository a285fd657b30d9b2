#include "runtime/offload_store.h"

#include <fcntl.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "base/error.h"

namespace orrery {
namespace {

constexpr std::string_view kNode = "numa:";
constexpr int kMostNodes = 1024;  // of the kernel

double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

int make_unnamed_file(const std::string& folder) {
  const int file = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (file >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return file;
  // A file system without such files: the name goes at once.
  std::string name = folder + "/.offload-XXXXXX";
  const int named = ::mkostemp(name.data(), O_CLOEXEC);
  if (named >= 0) ::unlink(name.c_str());
  return named;
}

}  // namespace

int numa_node_of(const std::string& place) {
  if (!place.starts_with(kNode)) return -1;
  int node = -1;
  const char *begin = place.data() + kNode.size(), *end = place.data() + place.size();
  const auto parsed = std::from_chars(begin, end, node);
  if (parsed.ec != std::errc() || parsed.ptr != end || node < 0 || node >= kMostNodes)
    throw Error(ErrorCode::kInvalidConfig, "parallel.offload_dir = \"{}\": wanted numa: and the number of a node, such as \"numa:1\"", place);
  return node;
}

OffloadStore::OffloadStore(const std::string& place, int64_t bytes) : place_(place), bytes_(bytes) {
  ORRERY_CHECK(bytes > 0, "a store of {} bytes", bytes);
  if (numa_node_of(place) >= 0)
    take_node_memory();
  else
    open_file();
}

OffloadStore::~OffloadStore() {
  if (data_ != nullptr) ::munmap(data_, static_cast<size_t>(bytes_));
  if (file_ >= 0) ::close(file_);
}

void OffloadStore::open_file() {
  file_ = make_unnamed_file(place_);
  if (file_ < 0)
    throw Error(ErrorCode::kIo, "parallel.offload_dir = \"{}\": cannot make a file there: {}; give a folder that can be written, on a disk with {:.1f} MiB for this rank", place_,
                std::strerror(errno), mib(bytes_));
  if (const int reason = ::posix_fallocate(file_, 0, bytes_); reason != 0) {
    struct statvfs space {};
    const int64_t free = ::fstatvfs(file_, &space) == 0 ? static_cast<int64_t>(space.f_bavail) * static_cast<int64_t>(space.f_frsize) : 0;
    ::close(file_);
    throw Error(ErrorCode::kIo, "parallel.offload_dir = \"{}\": {:.1f} MiB are wanted there for what this rank offloads and {:.1f} MiB are free: {}; make room, or give another folder", place_,
                mib(bytes_), mib(free), std::strerror(reason));
  }
  void* const mapping = ::mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
  if (mapping == MAP_FAILED) {
    const int reason = errno;
    ::close(file_);
    throw Error(ErrorCode::kIo, "parallel.offload_dir = \"{}\": cannot map the file: {}; give a folder of another file system", place_, std::strerror(reason));
  }
  data_ = static_cast<std::byte*>(mapping);
}

void OffloadStore::take_node_memory() {
  const int node = numa_node_of(place_);
  if (!std::filesystem::exists(fmt::format("/sys/devices/system/node/node{}", node)))
    throw Error(ErrorCode::kInvalidConfig, "parallel.offload_dir = \"{}\": this machine has no such node; see: ls /sys/devices/system/node", place_);
  void* const mapping = ::mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  std::array<unsigned long, kMostNodes / (8 * sizeof(unsigned long))> mask{};
  mask[static_cast<size_t>(node) / (8 * sizeof(unsigned long))] = 1ul << (static_cast<size_t>(node) % (8 * sizeof(unsigned long)));
  if (mapping == MAP_FAILED || ::syscall(SYS_mbind, mapping, static_cast<size_t>(bytes_), MPOL_BIND, mask.data(), kMostNodes + 1, 0) != 0) {
    const int reason = errno;
    if (mapping != MAP_FAILED) ::munmap(mapping, static_cast<size_t>(bytes_));
    throw Error(ErrorCode::kOutOfMemory, "parallel.offload_dir = \"{}\": {:.1f} MiB of that node's memory cannot be had: {}; use a folder", place_, mib(bytes_), std::strerror(reason));
  }
  data_ = static_cast<std::byte*>(mapping);
  for (int64_t offset = 0; offset < bytes_; offset += 4096) data_[offset] = std::byte{0};
}

void OffloadStore::read(int64_t offset, std::span<std::byte> out) const {
  if (file_ < 0) {
    std::memcpy(out.data(), data_ + offset, out.size());
    return;
  }
  while (!out.empty()) {
    const ssize_t got = ::pread(file_, out.data(), out.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw Error(ErrorCode::kIo, "parallel.offload_dir = \"{}\": cannot read back {} bytes at {}: {}; resume from the checkpoint, with another folder if the disk fails", place_, out.size(), offset, got == 0 ? "the file is shorter" : std::strerror(errno));
    out = out.subspan(static_cast<size_t>(got));
    offset += got;
  }
}

void OffloadStore::write(int64_t offset, std::span<const std::byte> in) {
  if (file_ < 0) {
    std::memcpy(data_ + offset, in.data(), in.size());
    return;
  }
  while (!in.empty()) {
    const ssize_t put = ::pwrite(file_, in.data(), in.size(), offset);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) throw Error(ErrorCode::kIo, "parallel.offload_dir = \"{}\": cannot write {} bytes at {}: {}; resume from the checkpoint, with another folder if the disk fails", place_, in.size(), offset, std::strerror(errno));
    in = in.subspan(static_cast<size_t>(put));
    offset += put;
  }
}

}  // namespace orrery
