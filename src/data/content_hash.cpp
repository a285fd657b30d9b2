#include "data/content_hash.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <new>

namespace orrery {

std::string ContentHash::hex() const {
  std::string text;
  for (uint8_t byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

struct ContentHasher::State {
  XXH3_state_t* xxh = XXH3_createState();
  ~State() { XXH3_freeState(xxh); }
};

ContentHasher::ContentHasher() : state_(std::make_unique<State>()) {
  if (state_->xxh == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(state_->xxh);
}
ContentHasher::~ContentHasher() = default;

void ContentHasher::add(const void* data, size_t size) {
  if (size > 0) XXH3_128bits_update(state_->xxh, data, size);
}

void ContentHasher::add_number(uint64_t value) {
  std::array<uint8_t, 8> bytes;
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<uint8_t>(value >> (8 * i));
  add(bytes.data(), bytes.size());
}

void ContentHasher::add_text(std::string_view text) {
  add_number(text.size());
  add(text.data(), text.size());
}

ContentHash ContentHasher::finish() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_->xxh));
  ContentHash hash;
  std::copy_n(canonical.digest, 16, hash.bytes.begin());
  return hash;
}

}  // namespace orrery
