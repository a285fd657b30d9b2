// The logical digest of a model (NUMERICS rule 16): one value over (name, shape, dtype, little-endian bytes) of its tensors in name
// order, equal for every layout and file format that holds the same numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ir/dtype.h"

namespace orrery {

/// A running XXH3-128. Detects accidents, not attackers.
class Hash128 {
 public:
  Hash128();
  ~Hash128();
  Hash128(Hash128&&) noexcept;
  Hash128& operator=(Hash128&&) noexcept;
  void reset();
  void update(std::span<const std::byte> data);
  void update(std::string_view text);
  std::string hex() const;  // 32 lower-case digits, most significant first

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct TensorDigest {
  std::string name;
  DType dtype{};
  std::vector<int64_t> shape;
  std::string hash;  // Hash128::hex() of the bytes
};

/// 32 hex digits: the hash of one line "name dtype [d0,d1] hash\n" a tensor, sorted by name, then the lines of `extra` as they are.
std::string combine_digests(std::vector<TensorDigest> tensors, const std::string& extra = {});

}  // namespace orrery
