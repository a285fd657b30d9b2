#include "checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/error.h"

namespace orrery {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
// The largest real files have some 40,000 tensors. The bound keeps a header of tiny entries from costing many times its size.
constexpr size_t kMaxTensors = 500'000;
constexpr size_t kMaxDims = 8;

struct DTypeName {
  std::string_view name;
  int64_t bytes;
  std::optional<DType> dtype;
};
constexpr DTypeName kDTypes[] = {
    {"F32", 4, DType::kF32},   {"BF16", 2, DType::kBF16}, {"F16", 2, DType::kF16},      {"F64", 8, DType::kF64},
    {"I8", 1, DType::kI8},     {"U8", 1, DType::kU8},     {"I16", 2, DType::kI16},      {"I32", 4, DType::kI32},
    {"I64", 8, DType::kI64},   {"BOOL", 1, std::nullopt}, {"U16", 2, std::nullopt},     {"U32", 4, std::nullopt},
    {"U64", 8, std::nullopt},  {"C64", 8, std::nullopt},  {"F8_E4M3", 1, std::nullopt}, {"F8_E5M2", 1, std::nullopt},
    {"F8_E8M0", 1, std::nullopt},
};

/// Reads the header's JSON as a stream of events, so that no tree is built and a key that stands twice is seen.
class HeaderHandler {
 public:
  HeaderHandler(const std::string& where, SafetensorsHeader& header) : where_(where), header_(header) {}

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool number_float(double, const std::string&) { return unexpected("a fraction"); }
  bool binary(std::vector<uint8_t>&) { return unexpected("binary"); }
  bool number_integer(int64_t) { return unexpected("a negative number"); }  // positive ones arrive as unsigned
  bool number_unsigned(uint64_t value) {
    if (state_ == State::kShape) {
      if (entry_.shape.size() == kMaxDims) fail("more than {} dimensions", kMaxDims);
      if (value > static_cast<uint64_t>(INT64_MAX)) fail("dimension {} is too large", value);
      entry_.shape.push_back(static_cast<int64_t>(value));
    } else if (state_ == State::kOffsets) {
      if (num_offsets_ == 2) fail("data_offsets has more than two numbers");
      offsets_[num_offsets_++] = value;
    } else {
      return unexpected("a number");
    }
    return true;
  }
  bool string(std::string& value) {
    if (state_ == State::kMetadataValue) {
      header_.metadata[key_] = value;
      state_ = State::kMetadata;
    } else if (state_ == State::kDtype) {
      entry_.dtype_name = value;
      state_ = State::kEntry;
    } else {
      return unexpected("a string");
    }
    return true;
  }
  bool start_object(size_t) {
    if (state_ == State::kStart) {
      state_ = State::kTop;
    } else if (state_ == State::kTopValue) {
      const bool metadata = entry_.name == "__metadata__";
      if (metadata && std::exchange(have_metadata_, true)) fail("it stands twice");
      state_ = metadata ? State::kMetadata : State::kEntry;
    } else {
      return unexpected("an object");
    }
    return true;
  }
  bool key(std::string& name) {
    if (state_ == State::kTop) {
      entry_ = {};
      entry_.name = name;
      have_dtype_ = have_shape_ = have_offsets_ = false;
      num_offsets_ = 0;
      state_ = State::kTopValue;
    } else if (state_ == State::kMetadata) {
      if (header_.metadata.contains(name)) fail("metadata key \"{}\" stands twice", name);
      key_ = name;
      state_ = State::kMetadataValue;
    } else {
      bool* have = name == "dtype" ? &have_dtype_ : name == "shape" ? &have_shape_ : name == "data_offsets" ? &have_offsets_ : nullptr;
      if (have == nullptr) fail("unknown key \"{}\"", name);
      if (std::exchange(*have, true)) fail("key \"{}\" stands twice", name);
      state_ = name == "dtype" ? State::kDtype : name == "shape" ? State::kShapeValue : State::kOffsetsValue;
    }
    return true;
  }
  bool end_object() {
    if (state_ == State::kMetadata) {
      state_ = State::kTop;
    } else if (state_ == State::kEntry) {
      finish_entry();
      state_ = State::kTop;
    }
    return true;
  }
  bool start_array(size_t) {
    if (state_ == State::kShapeValue) {
      state_ = State::kShape;
    } else if (state_ == State::kOffsetsValue) {
      state_ = State::kOffsets;
    } else {
      return unexpected("an array");
    }
    return true;
  }
  bool end_array() {
    state_ = State::kEntry;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) {
    throw Error(ErrorCode::kCorruptData, "{}: the header is not valid JSON at byte {} ({})", where_, position, error.what());
  }

 private:
  enum class State { kStart, kTop, kTopValue, kMetadata, kMetadataValue, kEntry, kDtype, kShapeValue, kShape, kOffsetsValue, kOffsets };

  template <typename... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw Error(ErrorCode::kCorruptData, "{}: tensor \"{}\": {}", where_, entry_.name, fmt::format(format, std::forward<Args>(args)...));
  }
  bool unexpected(std::string_view what) const { fail("{} where the format has none", what); }

  void finish_entry() {
    if (!have_dtype_ || !have_shape_ || !have_offsets_ || num_offsets_ != 2) fail("wanted dtype, shape and two data_offsets");
    const DTypeName* type = nullptr;
    for (const DTypeName& candidate : kDTypes) {
      if (candidate.name == entry_.dtype_name) type = &candidate;
    }
    if (type == nullptr) {
      throw Error(ErrorCode::kUnsupported, "{}: tensor \"{}\": dtype \"{}\" is not known", where_, entry_.name, entry_.dtype_name);
    }
    entry_.dtype = type->dtype;
    uint64_t bytes = static_cast<uint64_t>(type->bytes);
    for (const int64_t dim : entry_.shape) {
      if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes)) fail("its shape is larger than 2^64 bytes");
    }
    if (offsets_[1] < offsets_[0] || offsets_[1] - offsets_[0] != bytes) {
      fail("data_offsets [{}, {}] do not span the {} bytes of its shape", offsets_[0], offsets_[1], bytes);
    }
    entry_.begin = offsets_[0];
    entry_.bytes = bytes;
    if (header_.tensors.size() == kMaxTensors) fail("more than {} tensors in one file", kMaxTensors);
    header_.tensors.push_back(std::move(entry_));
    entry_ = {};
  }

  const std::string& where_;
  SafetensorsHeader& header_;
  State state_ = State::kStart;
  SafetensorsEntry entry_;
  std::string key_;
  uint64_t offsets_[2] = {};
  int num_offsets_ = 0;
  bool have_dtype_ = false, have_shape_ = false, have_offsets_ = false, have_metadata_ = false;
};

/// Sorts by place and checks that the tensors cover [0, data_bytes) without gap or overlap.
void check_cover(const std::string& where, std::vector<SafetensorsEntry>& tensors, uint64_t data_bytes) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::pair(a.begin, a.begin + a.bytes) < std::pair(b.begin, b.begin + b.bytes);
  });
  uint64_t next = 0;
  for (const SafetensorsEntry& tensor : tensors) {
    if (tensor.begin != next) {
      throw Error(ErrorCode::kCorruptData, "{}: tensor \"{}\" starts at data byte {}, but the one before it ends at {} ({})", where, tensor.name,
                  tensor.begin, next, tensor.begin < next ? "they overlap" : "there is a hole");
    }
    next += tensor.bytes;
    if (next > data_bytes) {
      throw Error(ErrorCode::kCorruptData, "{}: tensor \"{}\" ends at data byte {}, but the file has {}; it is truncated", where, tensor.name, next,
                  data_bytes);
    }
  }
  if (next != data_bytes) {
    throw Error(ErrorCode::kCorruptData, "{}: {} bytes follow the last tensor, which belong to none", where, data_bytes - next);
  }
}

}  // namespace

int64_t SafetensorsEntry::num_elements() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

std::string_view safetensors_dtype_name(DType dtype) {
  for (const DTypeName& candidate : kDTypes) {
    if (candidate.dtype == dtype) return candidate.name;
  }
  ORRERY_CHECK(false, "dtype {}", static_cast<int>(dtype));
  return {};
}

const SafetensorsEntry* SafetensorsHeader::find(std::string_view name) const {
  const auto it = index_.find(std::string(name));
  return it == index_.end() ? nullptr : &tensors[it->second];
}

SafetensorsHeader read_safetensors_header(const ByteSource& file) {
  const std::string& where = file.name();
  if (file.size() < 8) throw Error(ErrorCode::kCorruptData, "{}: {} bytes is too short for a safetensors file", where, file.size());
  uint64_t length = 0;
  file.read(0, std::as_writable_bytes(std::span(&length, 1)));
  if (length > kMaxHeaderBytes) {
    throw Error(ErrorCode::kCorruptData, "{}: a header of {} bytes, but safetensors allows {}; probably another format", where, length, kMaxHeaderBytes);
  }
  if (length > file.size() - 8) {
    throw Error(ErrorCode::kCorruptData, "{}: a header of {} bytes in a file of {}; it is truncated", where, length, file.size());
  }
  std::string text(length, '\0');
  file.read(8, std::as_writable_bytes(std::span(text.data(), text.size())));
  if (text.empty() || text[0] != '{') throw Error(ErrorCode::kCorruptData, "{}: the header does not start with '{{'", where);

  SafetensorsHeader header;
  HeaderHandler handler(where, header);
  nlohmann::json::sax_parse(text, &handler);
  header.data_begin = 8 + length;
  check_cover(where, header.tensors, file.size() - header.data_begin);
  header.index_.reserve(header.tensors.size());
  for (size_t i = 0; i < header.tensors.size(); ++i) {
    SafetensorsEntry& tensor = header.tensors[i];
    tensor.begin += header.data_begin;
    if (!header.index_.emplace(tensor.name, i).second) {
      throw Error(ErrorCode::kCorruptData, "{}: tensor \"{}\" stands twice", where, tensor.name);
    }
  }
  return header;
}

uint64_t SafetensorsSpec::bytes() const {
  uint64_t count = static_cast<uint64_t>(dtype_bytes(dtype));
  for (const int64_t dim : shape) count *= static_cast<uint64_t>(dim);
  return count;
}

std::string make_safetensors_header(const std::vector<SafetensorsSpec>& tensors, const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  uint64_t next = 0;
  // ordered_json looks keys up linearly, so entries are appended without a search; names are unique by contract.
  auto& object = json.get_ref<nlohmann::ordered_json::object_t&>();
  for (const SafetensorsSpec& tensor : tensors) {
    const uint64_t end = next + tensor.bytes();
    nlohmann::ordered_json entry;
    entry["dtype"] = safetensors_dtype_name(tensor.dtype);
    entry["shape"] = tensor.shape;
    entry["data_offsets"] = {next, end};
    object.std::vector<std::pair<const std::string, nlohmann::ordered_json>>::emplace_back(tensor.name, std::move(entry));
    next = end;
  }
  std::string text = json.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kMaxHeaderBytes) {
    throw Error(ErrorCode::kUnsupported, "a safetensors header of {} bytes, but the format allows {}; use smaller shards", text.size(), kMaxHeaderBytes);
  }
  const uint64_t length = text.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + text;
}

}  // namespace orrery
