// A file mapped for reading. A file that another program cuts while it is read ends the process with one message and status 4
// (the system signals it with SIGBUS, from which no read can return).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace orrery {

class MappedFile {
 public:
  MappedFile() = default;
  /// Errors  kIo: the file cannot be opened or mapped (the message names it).
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  std::span<const uint8_t> bytes() const { return {data_, size_}; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace orrery
