#include "checkpoint/digest.h"

#include <xxhash.h>

#include <algorithm>
#include <new>

#include "base/error.h"

namespace orrery {

struct Hash128::State {
  XXH3_state_t* state = XXH3_createState();
  State() {
    if (state == nullptr) throw std::bad_alloc();
  }
  ~State() { XXH3_freeState(state); }
};

Hash128::Hash128() : state_(std::make_unique<State>()) { reset(); }
Hash128::~Hash128() = default;
Hash128::Hash128(Hash128&&) noexcept = default;
Hash128& Hash128::operator=(Hash128&&) noexcept = default;

void Hash128::reset() { XXH3_128bits_reset(state_->state); }
void Hash128::update(std::span<const std::byte> data) {
  if (!data.empty()) XXH3_128bits_update(state_->state, data.data(), data.size());
}
void Hash128::update(std::string_view text) { update(std::as_bytes(std::span(text.data(), text.size()))); }

std::string Hash128::hex() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_->state);
  return fmt::format("{:016x}{:016x}", static_cast<uint64_t>(hash.high64), static_cast<uint64_t>(hash.low64));
}

std::string combine_digests(std::vector<TensorDigest> tensors, const std::string& extra) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorDigest& a, const TensorDigest& b) { return a.name < b.name; });
  Hash128 hash;
  for (const TensorDigest& tensor : tensors) {
    std::string dims;
    for (const int64_t dim : tensor.shape) dims += (dims.empty() ? "" : ",") + std::to_string(dim);
    hash.update(fmt::format("{} {} [{}] {}\n", tensor.name, dtype_name(tensor.dtype), dims, tensor.hash));
  }
  hash.update(extra);
  return hash.hex();
}

}  // namespace orrery
