// Sleeping on a 32-bit word with an absolute deadline on the monotonic clock, which std::atomic::wait does not offer. Linux only.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>

namespace orrery {

/// CLOCK_MONOTONIC in nanoseconds: the clock of every deadline, the same for all processes of a host.
inline int64_t monotonic_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

/// Returns when `word` may have changed from `expected`, or `until_ns` has come, or for no reason at all.
inline void futex_wait_until(std::atomic<uint32_t>& word, uint32_t expected, int64_t until_ns) {
  timespec until;
  until.tv_sec = until_ns / 1'000'000'000LL;
  until.tv_nsec = until_ns % 1'000'000'000LL;
  syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, expected, &until, nullptr, FUTEX_BITSET_MATCH_ANY);
}

inline void futex_wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace orrery
