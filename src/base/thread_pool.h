// The one pool of compute threads of a process. Work is cut by index and never by where a sum is, so that no op's result depends on the
// number of threads (NUMERICS rule 3).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

namespace orrery {

/// FTZ and DAZ on for this thread (NUMERICS rule 1). Every thread that computes calls it once.
void set_floating_point_mode();

/// Memory that comes in equal units and of which worker i of n will read units [i count / n, (i + 1) count / n).
struct ReadAhead {
  const std::byte* data = nullptr;
  int64_t num_units = 0, unit_bytes = 0;
};

/// `num_threads` workers, the caller being worker 0; the others are pinned to cores and spin briefly before they sleep.
/// A pool of one runs everything inline. run() makes no heap allocation.
class ThreadPool {
 public:
  /// pin: bind worker i to the i-th core this process may use.
  explicit ThreadPool(int num_threads, bool pin = true);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  /// Calls body(thread_index, num_threads) once for each index, on its worker or, where that one is late, on the caller. Not reentrant.
  /// Returns when all are done. `body` must not throw: kernels report bugs with ORRERY_CHECK.
  template <typename Body>
  void run(Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_erased([](void* context, int thread_index, int num_threads) { (*static_cast<Plain*>(context))(thread_index, num_threads); },
               const_cast<void*>(static_cast<const void*>(&body)));
  }

  /// What workers read into their caches while they wait for others, each the beginning of its part, from the end of the next run() on:
  /// memory that would be idle is not, and nothing else changes. Between two calls of run(), by their caller. The memory stays until a run()
  /// after the next set_read_ahead() has returned.
  void set_read_ahead(const ReadAhead& next);
  /// Inside a run(): how many bytes of its part of the memory at `data` the worker has read ahead.
  int64_t read_ahead_bytes(int thread_index, const std::byte* data) const;

  /// Cuts [0, count) into one contiguous range per worker, as equal as possible in units of `granule`, and calls
  /// body(begin, end) on each non-empty one.
  template <typename Body>
  void parallel_for(int64_t count, int64_t granule, Body&& body) {
    const int64_t num_units = (count + granule - 1) / granule;
    if (num_units <= 1 || num_threads_ == 1) {
      if (count > 0) body(int64_t{0}, count);
      return;
    }
    run([&](int thread_index, int num_threads) {
      const int64_t begin = num_units * thread_index / num_threads * granule;
      const int64_t end_unit = num_units * (thread_index + 1) / num_threads * granule;
      const int64_t end = end_unit < count ? end_unit : count;
      if (begin < end) body(begin, end);
    });
  }

 private:
  using ErasedBody = void (*)(void* context, int thread_index, int num_threads);
  void run_erased(ErasedBody body, void* context);

  struct State;
  int num_threads_;
  std::unique_ptr<State> state_;
};

}  // namespace orrery
