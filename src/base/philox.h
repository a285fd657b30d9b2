// Counter-based random numbers: every draw is a function of (seed, purpose, op id, step, element), so that no layout,
// restart or thread count can change it (NUMERICS rule 10). There is no generator state to save.
#pragma once

#include <array>
#include <cstdint>

namespace orrery {

/// Philox4x32-10: 128-bit counter, 64-bit key, 128 random bits.
/// Source  Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC'11. Checked against the Random123 known answers.
constexpr std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

/// What a draw is for; appended to, never renumbered: checkpoints and tests depend on the values.
enum class RandomPurpose : uint32_t { kInit = 1, kDataOrder = 2, kSample = 3, kHoldout = 4, kStochasticRounding = 5 };

/// A random stream named by (seed, purpose, op id, step); `bits(element)` is its element-th 32-bit word.
class PhiloxStream {
 public:
  constexpr PhiloxStream(uint64_t seed, RandomPurpose purpose, uint32_t op_id, uint32_t step)
      : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32) ^ (static_cast<uint32_t>(purpose) * 0x85EBCA6Bu)},
        op_id_(op_id),
        step_(step) {}

  constexpr const std::array<uint32_t, 2>& key() const { return key_; }
  /// 128 bits for elements 4 * group .. 4 * group + 3.
  constexpr std::array<uint32_t, 4> group(uint64_t group_index) const {
    return philox4x32({static_cast<uint32_t>(group_index), static_cast<uint32_t>(group_index >> 32), op_id_, step_}, key_);
  }
  constexpr uint32_t bits(uint64_t element) const { return group(element >> 2)[element & 3]; }
  /// Uniform in [0, 1), 24 bits.
  constexpr float uniform(uint64_t element) const { return static_cast<float>(bits(element) >> 8) * 0x1p-24f; }

 private:
  std::array<uint32_t, 2> key_;
  uint32_t op_id_;
  uint32_t step_;
};

}  // namespace orrery
