#include "tokenizer/json_util.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace orrery {

using nlohmann::json;

json parse_json(std::string_view text, std::string_view what) {
  constexpr int kDepthMax = 64;
  // A scan of its own: the parser's depth callback would slow every vocabulary down.
  int depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      deepest = std::max(deepest, ++depth);
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  if (deepest > kDepthMax) throw Error(ErrorCode::kCorruptData, "{}: JSON nested deeper than {}", what, kDepthMax);
  try {
    return json::parse(text.begin(), text.end());
  } catch (const json::exception& e) {
    throw Error(ErrorCode::kCorruptData, "{}: not JSON: {}", what, e.what());
  }
}

std::string canonical_json(std::string_view text, std::string_view what) {
  return parse_json(text, what).dump(-1, ' ', false, json::error_handler_t::replace);
}

const json& json_member(const json& node, const char* key, std::string_view where) {
  if (!node.is_object())
    throw Error(ErrorCode::kCorruptData, "{}: wanted an object with '{}', found {}", where, key, node.type_name());
  const auto it = node.find(key);
  if (it == node.end()) throw Error(ErrorCode::kCorruptData, "{}: '{}' is missing", where, key);
  return *it;
}

std::string json_string(const json& node, const char* key, std::string_view where) {
  const json& member = json_member(node, key, where);
  if (!member.is_string())
    throw Error(ErrorCode::kCorruptData, "{}: '{}' is a {}, wanted a string", where, key, member.type_name());
  return member.get<std::string>();
}

std::string json_short_string(const json& node, const char* key, std::string_view where) {
  constexpr size_t kBytesMax = 256;
  std::string text = json_string(node, key, where);
  if (text.size() <= kBytesMax) return text;
  throw Error(ErrorCode::kUnsupported, "{}: '{}' has {} bytes; at most {} are supported", where, key, text.size(), kBytesMax);
}

const json& json_array(const json& node, const char* key, std::string_view where) {
  const json& member = json_member(node, key, where);
  if (!member.is_array())
    throw Error(ErrorCode::kCorruptData, "{}: '{}' is a {}, wanted an array", where, key, member.type_name());
  return member;
}

bool json_bool(const json& node, const char* key, bool fallback) {
  const auto it = node.find(key);
  if (it == node.end() || it->is_null()) return fallback;
  if (!it->is_boolean())
    throw Error(ErrorCode::kCorruptData, "tokenizer.json: '{}' is a {}, wanted true or false", key, it->type_name());
  return it->get<bool>();
}

std::pair<std::string, bool> json_pattern(const json& node, std::string_view where) {
  const json& pattern = json_member(node, "pattern", where);
  if (pattern.is_string()) return {pattern.get<std::string>(), false};
  if (pattern.is_object() && pattern.contains("String")) return {json_string(pattern, "String", where), false};
  return {json_string(pattern, "Regex", where), true};
}

std::string base64_decode(std::string_view text) {
  static const std::array<int8_t, 256> table = [] {
    std::array<int8_t, 256> values;
    values.fill(-1);
    constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < kDigits.size(); ++i) values[static_cast<uint8_t>(kDigits[i])] = static_cast<int8_t>(i);
    return values;
  }();
  while (text.ends_with('=')) text.remove_suffix(1);
  std::string out;
  out.reserve(text.size() * 3 / 4);
  uint32_t bits = 0;
  int num_bits = 0;
  for (const char c : text) {
    const int8_t value = table[static_cast<uint8_t>(c)];
    if (value < 0) throw Error(ErrorCode::kCorruptData, "tokenizer: byte 0x{:02x} is not base64", static_cast<uint8_t>(c));
    bits = bits << 6 | static_cast<uint32_t>(value);
    num_bits += 6;
    if (num_bits >= 8) {
      num_bits -= 8;
      out.push_back(static_cast<char>(bits >> num_bits & 0xFF));
    }
  }
  if (num_bits >= 6) throw Error(ErrorCode::kCorruptData, "tokenizer: base64 of {} digits is cut short", text.size());
  return out;
}

std::string base64_encode(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const auto byte = [&](size_t k) { return i + k < bytes.size() ? static_cast<uint8_t>(bytes[i + k]) : 0u; };
    const uint32_t group = byte(0) << 16 | byte(1) << 8 | byte(2);
    for (int k = 0; k < 4; ++k) {
      out.push_back(i + static_cast<size_t>(k) > bytes.size() ? '=' : kDigits[group >> (18 - 6 * k) & 63]);
    }
  }
  return out;
}

std::string read_file_bytes(const std::string& path, size_t bytes_max) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw_io_error(errno, fmt::format("cannot open {}", path));
  struct Closer {
    int fd;
    ~Closer() { close(fd); }
  } closer{fd};
  struct stat status {};
  if (fstat(fd, &status) != 0) throw_io_error(errno, fmt::format("cannot stat {}", path));
  if (!S_ISREG(status.st_mode)) throw Error(ErrorCode::kIo, "{} is not a regular file", path);
  if (static_cast<uint64_t>(status.st_size) > bytes_max) {
    throw Error(ErrorCode::kIo, "{} has {} bytes; a tokenizer file has at most {}", path, status.st_size, bytes_max);
  }
  std::string bytes(static_cast<size_t>(status.st_size), '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = read(fd, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_io_error(errno, fmt::format("cannot read {}", path));
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  bytes.resize(done);
  return bytes;
}

void write_file_bytes(const std::string& path, std::string_view bytes) {
  const std::string temporary = path + ".tmp";
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) throw_io_error(errno, fmt::format("cannot create {}", temporary));
  int error = 0;
  while (!bytes.empty() && error == 0) {
    const ssize_t n = write(fd, bytes.data(), bytes.size());
    if (n < 0) {
      if (errno != EINTR) error = errno;
    } else {
      bytes.remove_prefix(static_cast<size_t>(n));
    }
  }
  if (error == 0 && fsync(fd) != 0) error = errno;
  if (close(fd) != 0 && error == 0) error = errno;
  if (error == 0 && std::rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error != 0) {
    unlink(temporary.c_str());
    throw_io_error(error, fmt::format("cannot write {}", path));
  }
}

}  // namespace orrery
