// How fast this processor is at one kind of instruction, where two ways lead to the same bits and neither its name nor its features say
// which is the faster one.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace orrery {

/// Seconds of the fastest of a few short runs of loop(steps): some microseconds each, so only a factor should be decided by it.
inline double loop_seconds(void (*loop)(int64_t steps)) {
  double best = 1;
  for (int round = 0; round < 8; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    loop(500);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

}  // namespace orrery
