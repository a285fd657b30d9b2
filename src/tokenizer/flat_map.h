// Two small hash tables for the inner loops: integers to integers, and strings to ids. Insert only; no iteration order exists.
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace orrery {

/// 64 bits of hash over bytes.
uint64_t hash_bytes(std::string_view bytes);
/// 32 hex digits over bytes.
std::string hash_hex(std::string_view bytes);

/// uint64 keys (not ~0) to uint64 values, open addressing, at most half full.
class FlatMap {
 public:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  explicit FlatMap(size_t expected = 0) { reset(expected); }
  void reset(size_t expected) {
    size_ = 0;
    slots_.assign(std::bit_ceil(expected * 2 + 2), Slot{kEmpty, 0});
    shift_ = 64 - std::countr_zero(slots_.size());
  }
  const uint64_t* find(uint64_t key) const {
    for (size_t i = index(key);; i = (i + 1) & (slots_.size() - 1)) {
      if (slots_[i].key == key) return &slots_[i].value;
      if (slots_[i].key == kEmpty) return nullptr;
    }
  }
  /// The value of `key`, `fallback` put there first when it is new.
  uint64_t& get_or_insert(uint64_t key, uint64_t fallback) {
    if ((size_ + 1) * 2 > slots_.size()) grow();
    size_t i = index(key);
    while (slots_[i].key != key && slots_[i].key != kEmpty) i = (i + 1) & (slots_.size() - 1);
    if (slots_[i].key == kEmpty) slots_[i] = {key, fallback}, ++size_;
    return slots_[i].value;
  }
  size_t size() const { return size_; }

 private:
  struct Slot {
    uint64_t key, value;
  };
  size_t index(uint64_t key) const { return ((key ^ (key >> 29)) * 0x9E3779B97F4A7C15ull) >> shift_; }
  void grow() {
    std::vector<Slot> old;
    old.swap(slots_);
    reset(old.size());
    for (const Slot& slot : old) {
      if (slot.key != kEmpty) get_or_insert(slot.key, slot.value);
    }
  }
  std::vector<Slot> slots_;
  size_t size_ = 0;
  int shift_ = 63;
};

/// Strings to ids; the strings are the caller's, by id, and must stay.
class StringIndex {
 public:
  /// Adds nothing for a string that is there already, and says so with false.
  bool insert(const std::vector<std::string>& strings, int32_t id);
  int32_t find(const std::vector<std::string>& strings, std::string_view text) const;

 private:
  void grow(const std::vector<std::string>& strings);
  std::vector<int32_t> slots_ = std::vector<int32_t>(16, -1);
  size_t size_ = 0;
};

/// A trie over bytes: longest and all prefixes of a text among a set of strings.
class ByteTrie {
 public:
  void insert(std::string_view text, int32_t value);
  /// The node after `byte`, -1: none. The root is 0.
  int32_t step(int32_t node, uint8_t byte) const {
    if (node == 0) return root_.empty() ? -1 : root_[byte];
    const uint64_t* next = edges_.find(static_cast<uint64_t>(node) << 8 | byte);
    return next ? static_cast<int32_t>(*next) : -1;
  }
  int32_t value(int32_t node) const { return values_[static_cast<size_t>(node)]; }
  /// The longest string that `text` begins with: its value and length, or {-1, 0}.
  struct Match {
    int32_t value = -1;
    size_t length = 0;
  };
  Match longest(std::string_view text) const;
  bool empty() const { return root_.empty(); }
  bool starts(uint8_t byte) const { return !root_.empty() && root_[byte] >= 0; }

 private:
  FlatMap edges_;
  std::vector<int32_t> root_;
  std::vector<int32_t> values_{-1};
};

}  // namespace orrery
