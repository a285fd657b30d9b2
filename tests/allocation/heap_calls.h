// Counts heap calls thread by thread, by standing in front of glibc's malloc in the test's executable: operator new, the C library's own
// calls and every shared library's go through it. Only between start() and stop(), and itself without a heap call.
#pragma once

#include <cstdint>
#include <span>

namespace orrery::heap_calls {

constexpr int kMaxFrames = 24;

struct Thread {
  char name[16] = {};      // as the thread called itself at its first counted call
  int64_t allocations = 0;  // malloc, calloc, realloc, aligned_alloc, ...
  int64_t frees = 0;        // of something
  int64_t bytes = 0;        // asked for, in all
  int64_t live_bytes = 0;   // allocated less freed by this thread since start()
  int64_t peak_bytes = 0;   // the most that was live
  int64_t strict_calls = 0;  // of them, inside a Strict scope
  void* frames[kMaxFrames] = {};  // where the first one came from
  int num_frames = 0;

  int64_t calls() const { return allocations + frees; }
};

/// False under a sanitizer, which has its own malloc: then nothing is counted.
bool available();

/// Counters to zero, counting on. Nothing else may count meanwhile.
void start();
void stop();
/// Every thread that made a call in some window; those of the last window have calls() > 0.
std::span<const Thread> threads();
/// Where a thread's first call came from, to stderr.
void print_origin(const Thread& thread);

/// Calls made by this thread while one lives are counted as strict_calls too.
class Strict {
 public:
  Strict();
  ~Strict();
  Strict(const Strict&) = delete;
  Strict& operator=(const Strict&) = delete;
};

}  // namespace orrery::heap_calls
