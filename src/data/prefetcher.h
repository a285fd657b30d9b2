// Fills the next step's batch on its own thread ("data") while the current one is being trained on.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "data/dataset.h"

namespace orrery {

/// Tokens [begin, end) of a sequence.
struct TokenRange {
  int64_t begin = 0, end = 0;
};

/// Fills samples with the tokens of each that a rank has: all, or those of some ranges, one after the other. No heap allocation after the
/// constructor. The data set must outlive it.
class SampleReader {
 public:
  /// ranges: of each sequence, apart; empty: all tokens.
  explicit SampleReader(const Dataset& dataset, std::vector<TokenRange> ranges = {});
  int64_t seq_len() const { return dataset_.seq_len(); }
  int64_t local_tokens() const { return local_tokens_; }
  /// As Dataset::fill_sample, `out` with room for local_tokens(); segments are those of the whole sequence.
  int fill_sample(uint64_t global_sample, const SampleBuffers& out, int32_t token_base, int32_t* segment_starts);

 private:
  const Dataset& dataset_;
  std::vector<TokenRange> ranges_;
  int64_t local_tokens_ = 0;
  std::vector<int32_t> whole_;  // ids, targets and positions of one sequence, where a part of it is kept
};

/// One batch of B sequences of l local tokens, in memory that the caller owns (the arena).
struct BatchBuffers {
  int32_t* ids = nullptr;        // [B * l]
  int32_t* targets = nullptr;    // [B * l]
  int32_t* positions = nullptr;  // [B * l]
  int32_t* segment_starts =
      nullptr;  // [B * max_segments_per_sample + 1]: ascending token indices, then B * seq_len = cu_seqlens
  int32_t* segment_counts = nullptr;  // [B]: segments of each sequence
};

/// Fills one batch: sequences[j] is the sequence index in the global batch of row j.
/// Returns the number of segments, S: segment_starts[0..S] is cu_seqlens of the whole batch.
int fill_batch(SampleReader& reader, uint64_t step, uint64_t global_batch_size, const std::vector<int>& sequences,
               const BatchBuffers& out);

/// No heap allocation after the constructor. The data set must outlive it.
class Prefetcher {
 public:
  struct Options {
    uint64_t first_step = 0;
    uint64_t global_batch_size = 0;
    std::vector<TokenRange> ranges = {};  // as SampleReader
    std::vector<int> sequences;  // which sequences of the global batch this rank reads, in the order of its rows
  };
  /// Batch k is put into buffers[k % n], of which there are at least two.
  Prefetcher(const Dataset& dataset, Options options, std::vector<BatchBuffers> buffers);
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
  /// Waits for the batch behind the one that next() gave last, which stays the caller's: of three buffers or more. Errors as next().
  void wait_ahead();
  /// Nanoseconds that next() has waited in all: the data stall, for the step's report.
  uint64_t stall_ns() const { return stall_ns_; }

 private:
  void run();
  void wait_filled(std::unique_lock<std::mutex>& lock, uint64_t num_batches);
  SampleReader reader_;
  Options options_;
  std::vector<BatchBuffers> buffers_;
  std::vector<int> num_segments_;
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
