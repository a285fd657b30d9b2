// A TensorBoard event file: scalars that `tensorboard --logdir` shows. Not a general protobuf writer.
//
// File     events.out.tfevents.<unix seconds>.<host>: TFRecords, one Event each; the first says "brain.Event:2".
// Record   u64 length | u32 masked CRC32C of the length's 8 bytes | bytes | u32 masked CRC32C of the bytes; little-endian.
//          masked(crc) = rotate_right(crc, 15) + 0xa282ead8
// Event    1: wall_time double | 2: step varint | 3: file_version string | 5: Summary { 1: Value { 1: tag, 2: simple_value
// float } }
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace orrery {

struct TensorBoardScalar {
  std::string_view tag;  // "train/loss"
  double value = 0;
};

/// One event as a TFRecord.
std::string tensorboard_version_record(double wall_time);
std::string tensorboard_scalar_record(double wall_time, int64_t step, std::span<const TensorBoardScalar> scalars);

/// Appends to a new event file of a folder; every record is handed to the OS as it is written.
class TensorBoardWriter {
 public:
  /// Makes the folder. Errors: kIo.
  explicit TensorBoardWriter(const std::string& folder);
  ~TensorBoardWriter();
  TensorBoardWriter(const TensorBoardWriter&) = delete;
  TensorBoardWriter& operator=(const TensorBoardWriter&) = delete;

  /// Errors: kIo, e.g. a full disk.
  void add(int64_t step, std::span<const TensorBoardScalar> scalars);

 private:
  void append(const std::string& record);
  std::string path_;
  int file_ = -1;
};

}  // namespace orrery
