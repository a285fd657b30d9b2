#include "train/tensorboard.h"

#include <fcntl.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <chrono>
#include <filesystem>

#include "base/crc32c.h"
#include "base/error.h"

namespace orrery {
namespace {

constexpr uint32_t kMaskDelta = 0xa282ead8u;

double unix_seconds() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

template <typename T>
void put_little_endian(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out += static_cast<char>(value >> (8 * i));
}

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

// Protobuf wire types: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes; a field begins with number << 3 | type.
void put_double(std::string& out, int field, double value) {
  out += static_cast<char>(field << 3 | 1);
  put_little_endian(out, std::bit_cast<uint64_t>(value));
}
void put_float(std::string& out, int field, float value) {
  out += static_cast<char>(field << 3 | 5);
  put_little_endian(out, std::bit_cast<uint32_t>(value));
}
void put_integer(std::string& out, int field, int64_t value) {
  out += static_cast<char>(field << 3);
  put_varint(out, static_cast<uint64_t>(value));
}
void put_bytes(std::string& out, int field, std::string_view bytes) {
  out += static_cast<char>(field << 3 | 2);
  put_varint(out, bytes.size());
  out += bytes;
}

uint32_t masked_crc(std::string_view bytes) {
  const uint32_t crc = crc32c(0, std::as_bytes(std::span(bytes.data(), bytes.size())));
  return std::rotr(crc, 15) + kMaskDelta;
}

std::string framed(const std::string& event) {
  std::string record;
  put_little_endian(record, static_cast<uint64_t>(event.size()));
  put_little_endian(record, masked_crc(record));
  record += event;
  put_little_endian(record, masked_crc(event));
  return record;
}

}  // namespace

std::string tensorboard_version_record(double wall_time) {
  std::string event;
  put_double(event, 1, wall_time);
  put_bytes(event, 3, "brain.Event:2");
  return framed(event);
}

std::string tensorboard_scalar_record(double wall_time, int64_t step, std::span<const TensorBoardScalar> scalars) {
  std::string summary;
  for (const TensorBoardScalar& scalar : scalars) {
    std::string value;
    put_bytes(value, 1, scalar.tag);
    put_float(value, 2, static_cast<float>(scalar.value));
    put_bytes(summary, 1, value);
  }
  std::string event;
  put_double(event, 1, wall_time);
  put_integer(event, 2, step);
  put_bytes(event, 5, summary);
  return framed(event);
}

TensorBoardWriter::TensorBoardWriter(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw_io_error(error.value(), fmt::format("cannot make the TensorBoard folder {}", folder));
  char host[256] = "localhost";
  ::gethostname(host, sizeof(host) - 1);
  const double now = unix_seconds();
  // A second run within the same second gets a name of its own: TensorBoard reads all files of a folder in order.
  for (int attempt = 0; file_ < 0; ++attempt) {
    path_ = fmt::format("{}/events.out.tfevents.{}.{}{}", folder, static_cast<int64_t>(now), host,
                        attempt == 0 ? "" : fmt::format(".{}", attempt));
    file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0644);
    if (file_ < 0 && errno != EEXIST) throw_io_error(errno, fmt::format("cannot make the TensorBoard file {}", path_));
  }
  append(tensorboard_version_record(now));
}

TensorBoardWriter::~TensorBoardWriter() { ::close(file_); }

void TensorBoardWriter::add(int64_t step, std::span<const TensorBoardScalar> scalars) {
  append(tensorboard_scalar_record(unix_seconds(), step, scalars));
}

void TensorBoardWriter::append(const std::string& record) {
  size_t written = 0;
  while (written < record.size()) {
    const ssize_t count = ::write(file_, record.data() + written, record.size() - written);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_io_error(errno, fmt::format("cannot write {}", path_));
    written += static_cast<size_t>(count);
  }
}

}  // namespace orrery
