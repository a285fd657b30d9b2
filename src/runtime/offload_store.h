// Where a rank keeps what it offloads: a file in a folder, such as one on NVMe, or the memory of another NUMA node, such as CXL. Its bytes are
// scratch: a checkpoint has them when it matters, and nothing is left when the process ends, however it ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace orrery {

/// `bytes` of zeros that belong to this object.
/// Errors: kIo naming the folder: no file can be made there, or the disk has no room for all of it, which is asked for at once so that no step
/// can find it full; kInvalidConfig: no such node; kOutOfMemory: the node's memory cannot be had.
class OffloadStore {
 public:
  /// `place`: a folder, where the file has no name, or "numa:N", the memory of node N.
  OffloadStore(const std::string& place, int64_t bytes);
  ~OffloadStore();
  OffloadStore(const OffloadStore&) = delete;
  OffloadStore& operator=(const OffloadStore&) = delete;

  /// All of it as memory, for those who load and save, and not between begin and end of a write of the same bytes. A file's pages are the
  /// kernel's, which keeps what there is room for.
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

  /// Errors: kIo with the place and the reason.
  void read(int64_t offset, std::span<std::byte> out) const;
  void write(int64_t offset, std::span<const std::byte> in);

 private:
  void open_file();
  void take_node_memory();

  std::string place_;
  int64_t bytes_ = 0;
  int file_ = -1;  // -1: memory
  std::byte* data_ = nullptr;
};

/// "numa:N", the node's number; -1 for a folder.
int numa_node_of(const std::string& place);

}  // namespace orrery
