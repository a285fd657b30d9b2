#include "data/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/error.h"

namespace orrery {
namespace {

// What the handler of SIGBUS may look at: fixed memory and atomics. A file beyond the table's size goes without a name.
struct Mapping {
  std::atomic<uintptr_t> begin{0};  // 0: free; written last
  std::atomic<uintptr_t> end{0};
  std::array<char, 512> path{};
};
std::array<Mapping, 1024> mappings;
std::mutex mappings_mutex;  // for writers
struct sigaction previous_action;

void write_to_stderr(const char* text) {
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text, std::strlen(text));
}

// A page of a mapped file that is no longer behind it: the file was cut while it was read, or its disk failed. There is nothing to
// return to. Only async-signal-safe calls here.
void on_bus_error(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Mapping& mapping : mappings) {
    const uintptr_t begin = mapping.begin.load(std::memory_order_acquire);
    if (begin == 0 || address < begin || address >= mapping.end.load(std::memory_order_relaxed)) continue;
    write_to_stderr("\nerror: ");
    write_to_stderr(mapping.path.data());
    write_to_stderr(": cut short while it was read, or its disk failed; restore the file and run the command again\n");
    ::_exit(exit_status(ErrorCode::kCorruptData));
  }
  ::sigaction(SIGBUS, &previous_action, nullptr);  // not ours: it happens again and is handled there
}

void register_mapping(const void* data, size_t size, const std::string& path) {
  static std::once_flag installed;
  std::call_once(installed, [] {
    struct sigaction action = {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, &previous_action);
  });
  const std::lock_guard lock(mappings_mutex);
  for (Mapping& mapping : mappings) {
    if (mapping.begin.load(std::memory_order_relaxed) != 0) continue;
    // The end of a long path says more than its beginning.
    const size_t length = std::min(path.size(), mapping.path.size() - 1);
    std::memcpy(mapping.path.data(), path.data() + (path.size() - length), length);
    mapping.path[length] = '\0';
    const auto begin = reinterpret_cast<uintptr_t>(data);
    mapping.end.store(begin + size, std::memory_order_relaxed);
    mapping.begin.store(begin, std::memory_order_release);
    return;
  }
}

void forget_mapping(const void* data) {
  const std::lock_guard lock(mappings_mutex);
  for (Mapping& mapping : mappings)
    if (mapping.begin.load(std::memory_order_relaxed) == reinterpret_cast<uintptr_t>(data)) return mapping.begin.store(0, std::memory_order_release);
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw_io_error(errno, fmt::format("cannot open {}", path));
  struct stat status {};
  void* mapping = nullptr;
  int error = ::fstat(file, &status) == 0 ? 0 : errno;
  if (error == 0 && !S_ISREG(status.st_mode)) error = EISDIR;
  if (error == 0 && status.st_size > 0) {
    mapping = ::mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_SHARED, file, 0);
    if (mapping == MAP_FAILED) error = errno;
  }
  ::close(file);
  if (error != 0) throw_io_error(error, fmt::format("cannot map {}", path));
  data_ = static_cast<const uint8_t*>(mapping);
  size_ = static_cast<size_t>(status.st_size);
  if (data_ != nullptr) register_mapping(data_, size_, path);
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  forget_mapping(data_);
  ::munmap(const_cast<uint8_t*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace orrery
