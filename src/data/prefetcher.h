// Fills the next step's batch on its own thread ("data") while the current one is being trained on.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "data/dataset.h"

namespace orrery {

/// One batch of B sequences, in memory that the caller owns (the arena).
struct BatchBuffers {
  int32_t* ids = nullptr;        // [B * seq_len]
  int32_t* targets = nullptr;    // [B * seq_len]
  int32_t* positions = nullptr;  // [B * seq_len]
  int32_t* segment_starts =
      nullptr;  // [B * max_segments_per_sample + 1]: ascending token indices, then B * seq_len = cu_seqlens
  int32_t* segment_counts = nullptr;  // [B]: segments of each sequence
};

/// Fills one batch: sequences[j] is the sequence index in the global batch of row j.
/// Returns the number of segments, S: segment_starts[0..S] is cu_seqlens of the whole batch.
int fill_batch(const Dataset& dataset, uint64_t step, uint64_t global_batch_size, const std::vector<int>& sequences,
               const BatchBuffers& out);

/// No heap allocation after the constructor. The data set must outlive it.
class Prefetcher {
 public:
  struct Options {
    uint64_t first_step = 0;
    uint64_t global_batch_size = 0;
    std::vector<int> sequences;  // which sequences of the global batch this rank reads, in the order of its rows
  };
  Prefetcher(const Dataset& dataset, Options options, std::array<BatchBuffers, 2> buffers);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  struct Batch {
    uint64_t step = 0;
    int num_segments = 0;
    const BatchBuffers* buffers = nullptr;
  };
  /// The batch of the next step, from first_step on; waits for it if it must. Gives the previous batch's buffers back to the
  /// thread. Errors  whatever filling it threw; every later call throws it again.
  Batch next();
  /// Nanoseconds that next() has waited in all: the data stall, for the step's report.
  uint64_t stall_ns() const { return stall_ns_; }

 private:
  void run();
  const Dataset& dataset_;
  Options options_;
  std::array<BatchBuffers, 2> buffers_;
  std::array<int, 2> num_segments_{};
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t num_filled_ = 0;    // batches the thread has finished
  uint64_t num_released_ = 0;  // batches the caller has given back
  uint64_t num_taken_ = 0;
  uint64_t stall_ns_ = 0;
  bool stopping_ = false;
  std::exception_ptr error_;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace orrery
