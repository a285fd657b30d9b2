#include "data/prefetcher.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>

#include "base/error.h"

namespace orrery {

SampleReader::SampleReader(const Dataset& dataset, std::vector<TokenRange> ranges) : dataset_(dataset), ranges_(std::move(ranges)) {
  for (const TokenRange& range : ranges_) {
    ORRERY_CHECK(range.begin >= 0 && range.begin <= range.end && range.end <= dataset.seq_len(), "tokens {} to {} of {}", range.begin, range.end, dataset.seq_len());
    local_tokens_ += range.end - range.begin;
  }
  if (ranges_.empty())
    local_tokens_ = dataset.seq_len();
  else
    whole_.resize(3 * static_cast<size_t>(dataset.seq_len()));
}

int SampleReader::fill_sample(uint64_t global_sample, const SampleBuffers& out, int32_t token_base, int32_t* segment_starts) {
  if (ranges_.empty()) return dataset_.fill_sample(global_sample, out, token_base, segment_starts);
  int32_t* const whole = whole_.data();
  const int64_t length = seq_len();
  const int num_segments = dataset_.fill_sample(global_sample, {whole, whole + length, whole + 2 * length}, token_base, segment_starts);
  int64_t at = 0;
  for (const TokenRange& range : ranges_) {
    std::copy(whole + range.begin, whole + range.end, out.ids + at);
    std::copy(whole + length + range.begin, whole + length + range.end, out.targets + at);
    std::copy(whole + 2 * length + range.begin, whole + 2 * length + range.end, out.positions + at);
    at += range.end - range.begin;
  }
  return num_segments;
}

int fill_batch(SampleReader& reader, uint64_t step, uint64_t global_batch_size, const std::vector<int>& sequences, const BatchBuffers& out) {
  const int64_t length = reader.seq_len();
  int num_segments = 0;
  for (size_t row = 0; row < sequences.size(); ++row) {
    const int64_t base = static_cast<int64_t>(row) * reader.local_tokens();
    const SampleBuffers sample{out.ids + base, out.targets + base, out.positions + base};
    out.segment_counts[row] = reader.fill_sample(step * global_batch_size + static_cast<uint64_t>(sequences[row]), sample,
                                                 static_cast<int32_t>(static_cast<int64_t>(row) * length), out.segment_starts + num_segments);
    num_segments += out.segment_counts[row];
  }
  out.segment_starts[num_segments] = static_cast<int32_t>(static_cast<int64_t>(sequences.size()) * length);
  return num_segments;
}

Prefetcher::Prefetcher(const Dataset& dataset, Options options, std::vector<BatchBuffers> buffers)
    : reader_(dataset, options.ranges), options_(std::move(options)), buffers_(std::move(buffers)), num_segments_(buffers_.size(), 0) {
  ORRERY_CHECK(buffers_.size() >= 2, "{} buffers", buffers_.size());
  for (int sequence : options_.sequences)
    ORRERY_CHECK(sequence >= 0 && static_cast<uint64_t>(sequence) < options_.global_batch_size, "sequence {} of {}", sequence,
                 options_.global_batch_size);
  thread_ = std::thread([this] { run(); });
}

Prefetcher::~Prefetcher() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Prefetcher::run() {
  pthread_setname_np(pthread_self(), "data");
  try {
    for (uint64_t batch = 0;; ++batch) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stopping_ || batch < num_released_ + buffers_.size(); });
        if (stopping_) return;
      }
      const int count = fill_batch(reader_, options_.first_step + batch, options_.global_batch_size, options_.sequences,
                                   buffers_[batch % buffers_.size()]);
      {
        std::lock_guard lock(mutex_);
        num_segments_[batch % buffers_.size()] = count;
        num_filled_ = batch + 1;
      }
      changed_.notify_all();
    }
  } catch (...) {
    {
      std::lock_guard lock(mutex_);
      error_ = std::current_exception();
    }
    changed_.notify_all();
  }
}

void Prefetcher::wait_filled(std::unique_lock<std::mutex>& lock, uint64_t num_batches) {
  if (num_filled_ < num_batches && !error_) {
    const auto begin = std::chrono::steady_clock::now();
    changed_.wait(lock, [&] { return num_filled_ >= num_batches || error_; });
    const auto waited = std::chrono::steady_clock::now() - begin;
    stall_ns_ += static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(waited).count());
  }
  // Batches that were filled before the error are still good.
  if (num_filled_ < num_batches) std::rethrow_exception(error_);
}

void Prefetcher::wait_ahead() {
  ORRERY_CHECK(buffers_.size() >= 3, "{} buffers", buffers_.size());
  std::unique_lock lock(mutex_);
  wait_filled(lock, num_taken_ + 1);
}

Prefetcher::Batch Prefetcher::next() {
  std::unique_lock lock(mutex_);
  num_released_ = num_taken_;
  changed_.notify_all();
  wait_filled(lock, num_taken_ + 1);
  const uint64_t batch = num_taken_++;
  return {options_.first_step + batch, num_segments_[batch % buffers_.size()], &buffers_[batch % buffers_.size()]};
}

}  // namespace orrery
