#include "checkpoint/gguf.h"

#include <bit>
#include <cstring>
#include <numeric>

#include "base/error.h"

namespace orrery {
namespace {

constexpr uint64_t kMaxLength = uint64_t{1} << 30;  // of a string or an array, as in ggml
constexpr uint64_t kMaxNameBytes = 63;
constexpr uint64_t kMinKeyValueBytes = 8 + 1 + 4 + 1;       // a key of one byte, a value of one
constexpr uint64_t kMinTensorInfoBytes = 8 + 1 + 4 + 8 + 4 + 8;

/// Bytes of a fixed-size value; 0 for strings, arrays and unknown types.
uint64_t fixed_bytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool: return 1;
    case GgufType::kU16:
    case GgufType::kI16: return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32: return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64: return 8;
    default: return 0;
  }
}

/// Walks the bytes; nothing is read that is not there.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, std::string_view where) : bytes_(bytes), where_(where) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return bytes_.size() - position_; }
  std::string_view where() const { return where_; }

  template <typename... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw Error(ErrorCode::kCorruptData, "{}: {}", where_, fmt::format(format, std::forward<Args>(args)...));
  }
  std::span<const std::byte> take(uint64_t count, std::string_view what) {
    if (count > left()) fail("{}: {} bytes wanted at byte {}, {} left; the file is truncated", what, count, position_, left());
    const auto taken = bytes_.subspan(position_, count);
    position_ += count;
    return taken;
  }
  template <typename T>
  T number(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof value, what).data(), sizeof value);
    return value;
  }
  std::string_view string(std::string_view what) {
    const uint64_t length = number<uint64_t>(what);
    if (length > kMaxLength) fail("{}: a string of {} bytes, at most {} allowed", what, length, kMaxLength);
    const auto taken = take(length, what);
    return {reinterpret_cast<const char*>(taken.data()), taken.size()};
  }

 private:
  std::span<const std::byte> bytes_;
  std::string_view where_;
  uint64_t position_ = 0;
};

GgufType checked_type(const Cursor& cursor, uint32_t number, std::string_view key) {
  if (number > static_cast<uint32_t>(GgufType::kF64)) cursor.fail("key \"{}\" has the unknown value type {}", key, number);
  return static_cast<GgufType>(number);
}

void check_bools(const Cursor& cursor, std::string_view key, std::span<const std::byte> raw) {
  for (const std::byte byte : raw) {
    if (byte > std::byte{1}) cursor.fail("key \"{}\": a boolean is {}", key, static_cast<int>(byte));
  }
}

/// The value's bytes, checked element by element where elements have lengths.
GgufValue read_value(Cursor& cursor, std::span<const std::byte> bytes, std::string_view key) {
  GgufValue value;
  value.type = checked_type(cursor, cursor.number<uint32_t>(key), key);
  if (value.type == GgufType::kString) {
    const std::string_view text = cursor.string(key);
    value.raw = std::as_bytes(std::span(text.data(), text.size()));
    return value;
  }
  if (value.type != GgufType::kArray) {
    value.raw = cursor.take(fixed_bytes(value.type), key);
    if (value.type == GgufType::kBool) check_bools(cursor, key, value.raw);
    return value;
  }
  value.element_type = checked_type(cursor, cursor.number<uint32_t>(key), key);
  if (value.element_type == GgufType::kArray) cursor.fail("key \"{}\": an array of arrays", key);
  value.count = cursor.number<uint64_t>(key);
  if (value.count > kMaxLength) cursor.fail("key \"{}\": an array of {} elements, at most {} allowed", key, value.count, kMaxLength);
  const uint64_t begin = cursor.position();
  if (value.element_type == GgufType::kString) {
    if (value.count > cursor.left() / 8) cursor.fail("key \"{}\": {} strings in the {} bytes left; the file is truncated", key, value.count, cursor.left());
    for (uint64_t i = 0; i < value.count; ++i) (void)cursor.string(key);
  } else {
    (void)cursor.take(value.count * fixed_bytes(value.element_type), key);
  }
  value.raw = bytes.subspan(begin, cursor.position() - begin);
  if (value.element_type == GgufType::kBool) check_bools(cursor, key, value.raw);
  return value;
}

/// A tensor info; the offset goes to `offset`, its data is placed later.
GgufTensor read_tensor_info(Cursor& cursor, uint64_t& offset, uint64_t& bytes) {
  GgufTensor tensor;
  const std::string_view name = cursor.string("tensor name");
  if (name.empty() || name.size() > kMaxNameBytes) cursor.fail("a tensor name of {} bytes, 1 to {} allowed", name.size(), kMaxNameBytes);
  tensor.name = std::string(name);
  const uint32_t num_dims = cursor.number<uint32_t>(name);
  if (num_dims < 1 || num_dims > 4) cursor.fail("tensor \"{}\" has {} dimensions, 1 to 4 allowed", name, num_dims);
  uint64_t elements = 1;
  tensor.shape.resize(num_dims);
  for (uint32_t i = 0; i < num_dims; ++i) {
    const int64_t dim = cursor.number<int64_t>(name);
    if (dim <= 0) cursor.fail("tensor \"{}\": dimension {} is {}", name, i, dim);
    if (__builtin_mul_overflow(elements, static_cast<uint64_t>(dim), &elements) || elements > static_cast<uint64_t>(INT64_MAX)) {
      cursor.fail("tensor \"{}\": its shape has more than 2^63 elements", name);
    }
    tensor.shape[num_dims - 1 - i] = dim;
  }
  const uint32_t type = cursor.number<uint32_t>(name);
  const BlockTypeInfo* info = find_block_type(type);
  if (info == nullptr) throw Error(ErrorCode::kUnsupported, "{}: tensor \"{}\" has block type {}, which is not known", cursor.where(), name, type);
  tensor.type = info->type;
  if (tensor.shape.back() % info->block_elements != 0) {
    cursor.fail("tensor \"{}\": rows of {} elements are not whole blocks of {} ({})", name, tensor.shape.back(), info->block_elements, info->name);
  }
  if (__builtin_mul_overflow(elements / static_cast<uint64_t>(info->block_elements), static_cast<uint64_t>(info->block_bytes), &bytes)) {
    cursor.fail("tensor \"{}\": more than 2^64 bytes", name);
  }
  offset = cursor.number<uint64_t>(name);
  return tensor;
}

uint64_t read_alignment(const Cursor& cursor, const GgufFile& file) {
  const auto it = file.metadata.find("general.alignment");
  if (it == file.metadata.end()) return kGgufAlignment;
  uint32_t alignment = 0;
  if (it->second.type != GgufType::kU32) cursor.fail("general.alignment is not a u32");
  std::memcpy(&alignment, it->second.raw.data(), 4);
  if (!std::has_single_bit(alignment) || alignment > (1u << 20)) cursor.fail("general.alignment={} is not a power of two up to 2^20", alignment);
  return alignment;
}

template <typename T>
T raw_number(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

std::optional<int64_t> integer_at(GgufType type, const std::byte* at) {
  switch (type) {
    case GgufType::kU8: return raw_number<uint8_t>(at);
    case GgufType::kI8: return raw_number<int8_t>(at);
    case GgufType::kU16: return raw_number<uint16_t>(at);
    case GgufType::kI16: return raw_number<int16_t>(at);
    case GgufType::kU32: return raw_number<uint32_t>(at);
    case GgufType::kI32: return raw_number<int32_t>(at);
    case GgufType::kI64: return raw_number<int64_t>(at);
    case GgufType::kU64: {
      const uint64_t value = raw_number<uint64_t>(at);
      return value <= static_cast<uint64_t>(INT64_MAX) ? std::optional(static_cast<int64_t>(value)) : std::nullopt;
    }
    default: return std::nullopt;
  }
}

std::optional<double> number_at(GgufType type, const std::byte* at) {
  if (type == GgufType::kF32) return raw_number<float>(at);
  if (type == GgufType::kF64) return raw_number<double>(at);
  const auto integer = integer_at(type, at);
  return integer ? std::optional(static_cast<double>(*integer)) : std::nullopt;
}

}  // namespace

int64_t GgufTensor::num_elements() const { return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>()); }

GgufFile parse_gguf(std::span<const std::byte> bytes, std::string_view where) {
  Cursor cursor(bytes, where);
  const auto magic = cursor.take(4, "the magic");
  if (std::memcmp(magic.data(), "GGUF", 4) != 0) cursor.fail("not a GGUF file: it does not start with \"GGUF\"");
  GgufFile file;
  file.version = cursor.number<uint32_t>("the version");
  if (file.version != 2 && file.version != 3) {
    const bool swapped = (file.version & 0xFFFF) == 0 && file.version != 0;
    throw Error(ErrorCode::kUnsupported, "{}: GGUF version {}{}; versions 2 and 3 are read", where, swapped ? __builtin_bswap32(file.version) : file.version,
                swapped ? " in big endian" : "");
  }
  const int64_t num_tensors = cursor.number<int64_t>("the number of tensors");
  const int64_t num_values = cursor.number<int64_t>("the number of keys");
  // Counts that cannot fit are refused before anything is sized by them.
  if (num_values < 0 || static_cast<uint64_t>(num_values) > cursor.left() / kMinKeyValueBytes) {
    cursor.fail("{} keys in a file of {} bytes", num_values, bytes.size());
  }
  for (int64_t i = 0; i < num_values; ++i) {
    const std::string_view key = cursor.string("a key");
    if (key.empty() || key.size() > 65535) cursor.fail("a key of {} bytes, 1 to 65535 allowed", key.size());
    const GgufValue value = read_value(cursor, bytes, key);
    if (!file.metadata.emplace(key, value).second) cursor.fail("key \"{}\" stands twice", key);
  }
  if (num_tensors < 0 || static_cast<uint64_t>(num_tensors) > cursor.left() / kMinTensorInfoBytes) {
    cursor.fail("{} tensors in the {} bytes left", num_tensors, cursor.left());
  }
  std::vector<std::pair<uint64_t, uint64_t>> places;  // offset, bytes
  std::map<std::string_view, bool> names;
  file.tensors.reserve(static_cast<size_t>(num_tensors));
  for (int64_t i = 0; i < num_tensors; ++i) {
    auto& [offset, size] = places.emplace_back();
    file.tensors.push_back(read_tensor_info(cursor, offset, size));
    if (!names.emplace(file.tensors.back().name, true).second) cursor.fail("tensor \"{}\" stands twice", file.tensors.back().name);
  }
  const uint64_t alignment = read_alignment(cursor, file);
  const auto padded = [&](uint64_t value) { return value + (alignment - value % alignment) % alignment; };
  const uint64_t data_begin = padded(cursor.position());
  if (!file.tensors.empty() && data_begin > bytes.size()) cursor.fail("no tensor data; the file is truncated");
  const uint64_t data_bytes = file.tensors.empty() ? 0 : bytes.size() - data_begin;
  uint64_t next = 0;
  for (size_t i = 0; i < file.tensors.size(); ++i) {
    const auto [offset, size] = places[i];
    if (offset != next) cursor.fail("tensor \"{}\" is at offset {}, but {} follows from the ones before it", file.tensors[i].name, offset, next);
    if (offset > data_bytes || size > data_bytes - offset) {
      cursor.fail("tensor \"{}\" needs {} bytes at offset {}, but the data has {}; the file is truncated", file.tensors[i].name, size, offset, data_bytes);
    }
    file.tensors[i].data = bytes.subspan(data_begin + offset, size);
    file.tensors[i].file_offset = data_begin + offset;
    next = padded(offset + size);
  }
  return file;
}

GgufReader::GgufReader(const std::string& path) : path_(path) {
  const auto open = [&](const std::string& name) {
    shards_.push_back(std::make_unique<Shard>(name));
    return parse_gguf(shards_.back()->mapping.bytes(), name);
  };
  GgufFile first = open(path);
  metadata_ = std::move(first.metadata);
  tensors_ = std::move(first.tensors);
  const int64_t count = integer("split.count").value_or(1);
  if (count > 1) {
    const std::string suffix = fmt::format("-00001-of-{:05d}.gguf", count);
    if (count > 99999 || integer("split.no").value_or(0) != 0 || !path.ends_with(suffix)) {
      throw Error(ErrorCode::kCorruptData, "{}: part {} of {}; give the first part, whose name ends in {}", path, integer("split.no").value_or(0) + 1, count, suffix);
    }
    const std::string stem = path.substr(0, path.size() - suffix.size());
    for (int64_t part = 1; part < count; ++part) {
      GgufFile shard = open(fmt::format("{}-{:05d}-of-{:05d}.gguf", stem, part + 1, count));
      for (GgufTensor& tensor : shard.tensors) {
        tensor.shard = static_cast<int>(part);
        tensors_.push_back(std::move(tensor));
      }
    }
    const auto total = integer("split.tensors.count");
    if (total && *total != static_cast<int64_t>(tensors_.size())) {
      throw Error(ErrorCode::kCorruptData, "{}: split.tensors.count={}, but the {} parts hold {}", path, *total, count, tensors_.size());
    }
  }
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (!index_.emplace(tensors_[i].name, i).second) {
      throw Error(ErrorCode::kCorruptData, "{}: tensor \"{}\" stands in two parts", path, tensors_[i].name);
    }
  }
}

const GgufTensor* GgufReader::find_tensor(std::string_view name) const {
  const auto it = index_.find(std::string(name));
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

void GgufReader::read(const GgufTensor& tensor, uint64_t offset, std::span<std::byte> out) const {
  ORRERY_CHECK(offset <= tensor.data.size() && out.size() <= tensor.data.size() - offset, "{}: bytes {} + {} of {}", tensor.name, offset, out.size(),
               tensor.data.size());
  shards_[static_cast<size_t>(tensor.shard)]->file.read(tensor.file_offset + offset, out);
}

const GgufValue* GgufReader::find(std::string_view key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

void GgufReader::wrong_type(std::string_view key, std::string_view wanted) const {
  throw Error(ErrorCode::kCorruptData, "{}: key \"{}\" must be {}, found value type {}", path_, key, wanted, static_cast<uint32_t>(find(key)->type));
}

std::optional<int64_t> GgufReader::integer(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const auto number = integer_at(value->type, value->raw.data());
  if (!number) wrong_type(key, "an integer");
  return number;
}

std::optional<double> GgufReader::number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const auto result = number_at(value->type, value->raw.data());
  if (!result) wrong_type(key, "a number");
  return result;
}

std::optional<bool> GgufReader::flag(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufType::kBool) wrong_type(key, "a boolean");
  return value->raw[0] != std::byte{0};
}

std::optional<std::string> GgufReader::text(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufType::kString) wrong_type(key, "a string");
  return std::string(reinterpret_cast<const char*>(value->raw.data()), value->raw.size());
}

std::optional<std::vector<std::string>> GgufReader::texts(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufType::kArray || value->element_type != GgufType::kString) wrong_type(key, "an array of strings");
  std::vector<std::string> result;
  result.reserve(value->count);
  Cursor cursor(value->raw, path_);
  for (uint64_t i = 0; i < value->count; ++i) result.emplace_back(cursor.string(key));
  return result;
}

std::optional<std::vector<double>> GgufReader::numbers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const uint64_t width = value->type == GgufType::kArray && value->element_type != GgufType::kBool ? fixed_bytes(value->element_type) : 0;
  if (width == 0) wrong_type(key, "an array of numbers");
  std::vector<double> result(value->count);
  for (uint64_t i = 0; i < value->count; ++i) result[i] = number_at(value->element_type, value->raw.data() + i * width).value_or(0);
  return result;
}

std::optional<std::vector<int64_t>> GgufReader::integers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const bool numeric = value->type == GgufType::kArray && value->element_type != GgufType::kBool && value->element_type != GgufType::kF32 &&
                       value->element_type != GgufType::kF64;
  const uint64_t width = numeric ? fixed_bytes(value->element_type) : 0;
  if (width == 0) wrong_type(key, "an array of integers");
  std::vector<int64_t> result(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto integer = integer_at(value->element_type, value->raw.data() + i * width);
    if (!integer) wrong_type(key, "an array of integers below 2^63");
    result[i] = *integer;
  }
  return result;
}

namespace {

template <typename T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void append_text(std::string& bytes, std::string_view text) {
  append<uint64_t>(bytes, text.size());
  bytes.append(text);
}

}  // namespace

void GgufMetadata::begin(std::string_view key, GgufType type) {
  ORRERY_CHECK(keys_.emplace(key, true).second, "GGUF key {} twice", key);
  append_text(bytes_, key);
  append<uint32_t>(bytes_, static_cast<uint32_t>(type));
  ++count_;
}
void GgufMetadata::add_u32(std::string_view key, uint32_t value) { begin(key, GgufType::kU32), append(bytes_, value); }
void GgufMetadata::add_f32(std::string_view key, float value) { begin(key, GgufType::kF32), append(bytes_, value); }
void GgufMetadata::add_bool(std::string_view key, bool value) { begin(key, GgufType::kBool), append<uint8_t>(bytes_, value ? 1 : 0); }
void GgufMetadata::add_text(std::string_view key, std::string_view value) { begin(key, GgufType::kString), append_text(bytes_, value); }
void GgufMetadata::add_texts(std::string_view key, std::span<const std::string> values) {
  begin(key, GgufType::kArray);
  append<uint32_t>(bytes_, static_cast<uint32_t>(GgufType::kString));
  append<uint64_t>(bytes_, values.size());
  for (const std::string& value : values) append_text(bytes_, value);
}
void GgufMetadata::add_f32s(std::string_view key, std::span<const float> values) {
  begin(key, GgufType::kArray);
  append<uint32_t>(bytes_, static_cast<uint32_t>(GgufType::kF32));
  append<uint64_t>(bytes_, values.size());
  for (const float value : values) append(bytes_, value);
}
void GgufMetadata::add_i32s(std::string_view key, std::span<const int32_t> values) {
  begin(key, GgufType::kArray);
  append<uint32_t>(bytes_, static_cast<uint32_t>(GgufType::kI32));
  append<uint64_t>(bytes_, values.size());
  for (const int32_t value : values) append(bytes_, value);
}

uint64_t GgufSpec::bytes() const {
  return static_cast<uint64_t>(block_bytes(type, std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>())));
}

GgufLayout make_gguf_layout(const GgufMetadata& metadata, const std::vector<GgufSpec>& tensors) {
  GgufLayout layout;
  std::string& header = layout.header;
  header = "GGUF";
  append<uint32_t>(header, 3);
  append<int64_t>(header, static_cast<int64_t>(tensors.size()));
  append<int64_t>(header, static_cast<int64_t>(metadata.count_));
  header += metadata.bytes_;
  uint64_t offset = 0;
  for (const GgufSpec& tensor : tensors) {
    if (tensor.name.size() > kMaxNameBytes) {
      throw Error(ErrorCode::kUnsupported, "the tensor name \"{}\" is longer than GGUF's {} bytes", tensor.name, kMaxNameBytes);
    }
    const int64_t block = block_type_info(tensor.type).block_elements;
    if (tensor.shape.back() % block != 0) {
      throw Error(ErrorCode::kUnsupported, "tensor {}: rows of {} elements are not whole {} blocks of {}; use bf16, f16 or f32", tensor.name,
                  tensor.shape.back(), block_type_name(tensor.type), block);
    }
    append_text(header, tensor.name);
    append<uint32_t>(header, static_cast<uint32_t>(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i > 0; --i) append<int64_t>(header, tensor.shape[i - 1]);
    append<uint32_t>(header, static_cast<uint32_t>(tensor.type));
    append<uint64_t>(header, offset);
    const uint64_t bytes = tensor.bytes();
    layout.padding.push_back((kGgufAlignment - bytes % kGgufAlignment) % kGgufAlignment);
    offset += bytes + layout.padding.back();
  }
  header.append((kGgufAlignment - header.size() % kGgufAlignment) % kGgufAlignment, '\0');
  return layout;
}

}  // namespace orrery
