// What the benches of products share: cases timed in rounds that go through all of them in turn, by wall or processor time; memory in huge
// pages, as the arena of a run has it; arguments written --name=value.
#pragma once

#include <fmt/core.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

namespace orrery::bench {

/// Not cleared; freed with std::free.
inline std::byte* allocate_huge(int64_t bytes) {
  constexpr int64_t kPage = int64_t{2} << 20;
  const auto size = static_cast<size_t>((bytes + 2 * kPage - 1) / kPage * kPage);
  void* const p = std::aligned_alloc(kPage, size);
  madvise(p, size, MADV_HUGEPAGE);
  return static_cast<std::byte*>(p);
}

/// Seconds; processor time is the process's, divided by its threads.
struct BenchClock {
  bool processor_time = false;
  int threads = 1;
  double now() const {
    timespec time{};
    clock_gettime(processor_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &time);
    return (static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec)) / (processor_time ? threads : 1);
  }
};

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Runs each case's `run` once without counting it, then once a round, and appends to its `seconds`.
template <typename Case>
void run_rounds(std::vector<Case>& cases, int rounds, const BenchClock& clock) {
  for (int round = -1; round < rounds; ++round)
    for (Case& one : cases) {
      const double begin = clock.now();
      one.run();
      if (round >= 0) one.seconds.push_back(clock.now() - begin);
    }
}

/// Whether `argument` is --name=..., and then its value.
inline bool take(const std::string& argument, const char* name, std::string& value) {
  const std::string prefix = fmt::format("--{}=", name);
  if (argument.rfind(prefix, 0) != 0) return false;
  value = argument.substr(prefix.size());
  return true;
}

}  // namespace orrery::bench
