// The GGUF container, versions 2 and 3 (reading) and 3 (writing): typed metadata and tensors of block types. What its keys and names
// mean for a model is in gguf_model.h. Little endian:
//   "GGUF" | u32 version | i64 n_tensors | i64 n_kv | key-values | tensor infos | padding to the alignment | tensor data
//   string = u64 length, bytes.  key-value = string key, u32 type, value.  array = u32 element type, u64 count, elements.
//   tensor info = string name, u32 n_dims (1..4), i64 ne[n_dims] (ne[0] contiguous), u32 type, u64 offset from the data's start.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "backend/block_formats.h"
#include "checkpoint/file_system.h"

namespace orrery {

enum class GgufType : uint32_t { kU8 = 0, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

/// A value as it lies in the file: nothing is copied until it is asked for.
struct GgufValue {
  GgufType type{};
  GgufType element_type{};  // arrays
  uint64_t count = 0;       // arrays
  std::span<const std::byte> raw;  // the value's bytes; an array's without its type and count
};

struct GgufTensor {
  std::string name;
  BlockType type{};
  std::vector<int64_t> shape;  // torch's order: the contiguous dimension last
  std::span<const std::byte> data;  // in the mapping: only as good as the file stays as long as it was
  uint64_t file_offset = 0;
  int shard = 0;
  int64_t num_elements() const;
};

/// One parsed file. Views point into the bytes that were parsed.
struct GgufFile {
  uint32_t version = 0;
  std::map<std::string, GgufValue, std::less<>> metadata;
  std::vector<GgufTensor> tensors;
};

/// Parses and checks a whole file in memory. Allocation stays below a small multiple of the metadata's bytes.
/// Errors: kCorruptData, one message for each way to be malformed, naming file and key or tensor. kUnsupported: version 1, big endian,
/// an unknown block type.
GgufFile parse_gguf(std::span<const std::byte> bytes, std::string_view where);

/// A model in one or several GGUF files (name-00001-of-0000N.gguf; give the first), mapped.
class GgufReader {
 public:
  /// Errors: as parse_gguf; kCorruptData: a shard missing or of another set; kIo.
  explicit GgufReader(const std::string& path);

  const std::string& path() const { return path_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find_tensor(std::string_view name) const;  // null when absent
  /// Bytes of a tensor by pread: a file cut short since it was opened is kCorruptData, not a signal. Thread-safe.
  void read(const GgufTensor& tensor, uint64_t offset, std::span<std::byte> out) const;

  /// Absent keys give nullopt. Errors: kCorruptData naming the key when the type is another.
  bool has(std::string_view key) const { return find(key) != nullptr; }
  std::optional<int64_t> integer(std::string_view key) const;  // any integer type
  std::optional<double> number(std::string_view key) const;    // any integer or float type
  std::optional<bool> flag(std::string_view key) const;
  std::optional<std::string> text(std::string_view key) const;
  std::optional<std::vector<std::string>> texts(std::string_view key) const;
  std::optional<std::vector<double>> numbers(std::string_view key) const;  // an array of any numeric type
  std::optional<std::vector<int64_t>> integers(std::string_view key) const;

 private:
  const GgufValue* find(std::string_view key) const;
  [[noreturn]] void wrong_type(std::string_view key, std::string_view wanted) const;

  struct Shard {
    FileSource file;
    FileMapping mapping;
    explicit Shard(const std::string& path) : file(path), mapping(file) {}
  };
  std::string path_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
};

constexpr uint64_t kGgufAlignment = 32;

/// Metadata to be written, in order of addition. A key may be added once.
class GgufMetadata {
 public:
  void add_u32(std::string_view key, uint32_t value);
  void add_f32(std::string_view key, float value);
  void add_bool(std::string_view key, bool value);
  void add_text(std::string_view key, std::string_view value);
  void add_texts(std::string_view key, std::span<const std::string> values);
  void add_f32s(std::string_view key, std::span<const float> values);
  void add_i32s(std::string_view key, std::span<const int32_t> values);

 private:
  friend struct GgufLayout;
  friend struct GgufLayout make_gguf_layout(const GgufMetadata&, const std::vector<struct GgufSpec>&);
  void begin(std::string_view key, GgufType type);
  std::string bytes_;
  uint64_t count_ = 0;
  std::map<std::string, bool, std::less<>> keys_;
};

struct GgufSpec {
  std::string name;
  BlockType type{};
  std::vector<int64_t> shape;  // torch's order
  uint64_t bytes() const;
};

/// A file is `header`, then each tensor's bytes followed by zeros up to a multiple of kGgufAlignment.
struct GgufLayout {
  std::string header;
  std::vector<uint64_t> padding;  // zeros after each tensor
};

/// Errors: kUnsupported: a name of 64 bytes or more, a row that is not whole blocks.
GgufLayout make_gguf_layout(const GgufMetadata& metadata, const std::vector<GgufSpec>& tensors);

}  // namespace orrery
