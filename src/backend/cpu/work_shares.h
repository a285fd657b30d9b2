// Pieces of a loop that threads take from their own share first and then from the others': for threads that do not begin together or
// do not run equally fast. Which thread does a piece depends on timing, so a piece's result must not depend on who computes it.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

namespace orrery {

/// [0, count) in num_shares contiguous shares, share i being [i count / n, (i + 1) count / n). count < 2^32, num_shares <= kMaxShares.
class WorkShares {
 public:
  static constexpr int kMaxShares = 64;
  struct Piece {
    int64_t begin = 0, end = 0;
    explicit operator bool() const { return begin < end; }
  };

  WorkShares(int64_t count, int num_shares) : num_shares_(num_shares) {
    for (int i = 0; i < num_shares; ++i) shares_[i].range.store(range_of(count * i / num_shares, count * (i + 1) / num_shares), std::memory_order_relaxed);
  }

  /// The next piece for the owner of a share: a quarter of what is left from the front of its own, or `least`, so that it goes through memory in
  /// order; then a quarter from the back of another's. Empty: nothing is left.
  Piece take(int owner, int64_t least = 1) {
    for (int i = 0; i < num_shares_; ++i) {
      const bool own = i == 0;
      std::atomic<uint64_t>& range = shares_[(owner + i) % num_shares_].range;
      uint64_t seen = range.load(std::memory_order_relaxed);
      while (begin_of(seen) < end_of(seen)) {
        const int64_t begin = begin_of(seen), end = end_of(seen), size = std::min(end - begin, std::max(own ? least : 1, (end - begin) / 4));
        if (range.compare_exchange_weak(seen, own ? range_of(begin + size, end) : range_of(begin, end - size), std::memory_order_relaxed))
          return own ? Piece{begin, begin + size} : Piece{end - size, end};
      }
    }
    return {};
  }

 private:
  struct alignas(64) Share {
    std::atomic<uint64_t> range;
  };
  static uint64_t range_of(int64_t begin, int64_t end) { return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end); }
  static int64_t begin_of(uint64_t range) { return static_cast<int64_t>(range >> 32); }
  static int64_t end_of(uint64_t range) { return static_cast<int64_t>(range & 0xffffffff); }

  int num_shares_;
  std::array<Share, kMaxShares> shares_;
};

}  // namespace orrery
