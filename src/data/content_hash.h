// A 128-bit content hash (XXH3): names the inputs, tokenizer and shards of a data set. It guards against mistakes, not
// attackers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace orrery {

struct ContentHash {
  std::array<uint8_t, 16> bytes{};  // big endian, as `xxhsum -H2` prints it
  bool operator==(const ContentHash&) const = default;
  std::string hex() const;
};

/// A streaming sum. Fields of unlike kinds are kept apart by adding their lengths (add_text does).
class ContentHasher {
 public:
  ContentHasher();
  ~ContentHasher();
  ContentHasher(const ContentHasher&) = delete;
  ContentHasher& operator=(const ContentHasher&) = delete;
  void add(const void* data, size_t size);
  void add_number(uint64_t value);
  void add_text(std::string_view text);
  void add_hash(const ContentHash& hash) { add(hash.bytes.data(), hash.bytes.size()); }
  ContentHash finish() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace orrery
