// The safetensors format: u64 header length N | N bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...,
// "__metadata__": {string: string}} | tensor bytes, little endian, row-major, offsets from the end of the header. One file here;
// folders with an index are in model_source.h.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/file_system.h"
#include "ir/dtype.h"

namespace orrery {

struct SafetensorsEntry {
  std::string name;
  std::string dtype_name;        // as in the file: "BF16"
  std::optional<DType> dtype;    // absent: a type that is sized but not read here (BOOL, U16, F8_E4M3, ...)
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // absolute file offset
  uint64_t bytes = 0;
  int64_t num_elements() const;
};

/// "F32" for kF32, ...: safetensors' names.
std::string_view safetensors_dtype_name(DType dtype);

/// A checked header. Tensors lie in file order and cover the file without gap or overlap.
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;

  /// Null when absent.
  const SafetensorsEntry* find(std::string_view name) const;

 private:
  friend SafetensorsHeader read_safetensors_header(const ByteSource& file);
  std::unordered_map<std::string, size_t> index_;
};

/// Reads and checks the header; the tensors' bytes are not touched. Memory: a small multiple of the header, which is at most
/// 100,000,000 bytes and at most the file.
/// Errors: kCorruptData, one message for each way to be malformed, naming the file and the tensor. kUnsupported: an unknown dtype.
SafetensorsHeader read_safetensors_header(const ByteSource& file);

struct SafetensorsSpec {
  std::string name;
  DType dtype{};
  std::vector<int64_t> shape;
  uint64_t bytes() const;
};

/// The length field and header for these tensors in this order, padded with spaces so that the data starts at a multiple of 8.
/// The file is this, then the tensors' bytes one after the other.
std::string make_safetensors_header(const std::vector<SafetensorsSpec>& tensors, const std::map<std::string, std::string>& metadata);

}  // namespace orrery
