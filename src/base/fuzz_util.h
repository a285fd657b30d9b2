// A small seeded mutation loop, so that every fuzz target also runs, briefly and reproducibly, in the normal tests. The long
// runs are libFuzzer's (preset fuzz). Header only, for tests.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace orrery {

/// One mutation of `data`: flipped bit, boundary value written over 1 to 8 bytes, cut, duplicated or removed range, or a spliced
/// piece of another seed.
inline void mutate_bytes(std::vector<uint8_t>& data, const std::vector<std::string>& seeds, std::mt19937_64& random) {
  const auto below = [&](size_t limit) { return limit == 0 ? size_t{0} : static_cast<size_t>(random() % limit); };
  static constexpr uint64_t kBoundaries[] = {0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
                                             0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF, 0x1000000000000000};
  const size_t at = below(data.size());
  switch (random() % 7) {
    case 0:
      if (!data.empty()) data[at] ^= static_cast<uint8_t>(1u << (random() % 8));
      break;
    case 1: {
      const uint64_t value = kBoundaries[below(std::size(kBoundaries))];
      const size_t width = size_t{1} << (random() % 4);
      for (size_t i = 0; i < width && at + i < data.size(); ++i) data[at + i] = static_cast<uint8_t>(value >> (8 * i));
      break;
    }
    case 2: data.resize(at); break;
    case 3: {
      const size_t length = std::min(data.size() - at, 1 + below(32));
      const std::vector<uint8_t> piece(data.begin() + static_cast<ptrdiff_t>(at), data.begin() + static_cast<ptrdiff_t>(at + length));
      data.insert(data.begin() + static_cast<ptrdiff_t>(at), piece.begin(), piece.end());
      break;
    }
    case 4: {
      const size_t length = std::min(data.size() - at, 1 + below(16));
      data.erase(data.begin() + static_cast<ptrdiff_t>(at), data.begin() + static_cast<ptrdiff_t>(at + length));
      break;
    }
    case 5: {
      if (seeds.empty()) break;
      const std::string& other = seeds[below(seeds.size())];
      const size_t from = below(other.size());
      const size_t length = std::min(other.size() - from, 1 + below(64));
      data.insert(data.begin() + static_cast<ptrdiff_t>(at), other.begin() + static_cast<ptrdiff_t>(from),
                  other.begin() + static_cast<ptrdiff_t>(from + length));
      break;
    }
    default:
      if (!data.empty()) data[at] = static_cast<uint8_t>(random());
      break;
  }
}

/// Calls target(data, size) on every seed and on `num_runs` inputs made from them by 1 to 6 mutations. The target must accept any
/// bytes: it catches Error itself, and anything else that escapes fails the test.
template <typename Target>
void run_mutations(Target&& target, const std::vector<std::string>& seeds, int num_runs, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (const std::string& text : seeds) target(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  for (int run = 0; run < num_runs; ++run) {
    const std::string& start = seeds[random() % seeds.size()];
    std::vector<uint8_t> data(start.begin(), start.end());
    for (uint64_t count = 1 + random() % 6; count > 0; --count) mutate_bytes(data, seeds, random);
    target(data.data(), data.size());
  }
}

}  // namespace orrery
