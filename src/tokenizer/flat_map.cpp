#include "tokenizer/flat_map.h"

#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <xxhash.h>

namespace orrery {

uint64_t hash_bytes(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string hash_hex(std::string_view bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

bool StringIndex::insert(const std::vector<std::string>& strings, int32_t id) {
  if ((size_ + 1) * 2 > slots_.size()) grow(strings);
  const std::string& text = strings[static_cast<size_t>(id)];
  const size_t mask = slots_.size() - 1;
  size_t i = hash_bytes(text) & mask;
  for (; slots_[i] >= 0; i = (i + 1) & mask) {
    if (strings[static_cast<size_t>(slots_[i])] == text) return false;
  }
  slots_[i] = id;
  ++size_;
  return true;
}

int32_t StringIndex::find(const std::vector<std::string>& strings, std::string_view text) const {
  const size_t mask = slots_.size() - 1;
  for (size_t i = hash_bytes(text) & mask; slots_[i] >= 0; i = (i + 1) & mask) {
    if (strings[static_cast<size_t>(slots_[i])] == text) return slots_[i];
  }
  return -1;
}

void StringIndex::grow(const std::vector<std::string>& strings) {
  std::vector<int32_t> old(slots_.size() * 2, -1);
  old.swap(slots_);
  size_ = 0;
  for (const int32_t id : old) {
    if (id >= 0) insert(strings, id);
  }
}

void ByteTrie::insert(std::string_view text, int32_t value) {
  if (root_.empty()) root_.assign(256, -1);
  int32_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    int32_t next = step(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(values_.size());
      values_.push_back(-1);
      if (node == 0) {
        root_[byte] = next;
      } else {
        edges_.get_or_insert(static_cast<uint64_t>(node) << 8 | byte, static_cast<uint64_t>(next));
      }
    }
    node = next;
  }
  values_[static_cast<size_t>(node)] = value;
}

ByteTrie::Match ByteTrie::longest(std::string_view text) const {
  Match match;
  int32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    node = step(node, static_cast<uint8_t>(text[i]));
    if (node < 0) break;
    if (value(node) >= 0) match = {value(node), i + 1};
  }
  return match;
}

}  // namespace orrery
