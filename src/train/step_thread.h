// A thread that does the same work once a step: one of a rank's streams beside compute.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>

#include "base/thread_pool.h"
#include "base/time_slice.h"

namespace orrery {

class StepThread {
 public:
  /// `body` must not throw.
  explicit StepThread(std::function<void()> body) : body_(std::move(body)), thread_([this] { run(); }) {}
  ~StepThread() {
    stopping_ = true;
    begin();
    thread_.join();
  }
  StepThread(const StepThread&) = delete;
  StepThread& operator=(const StepThread&) = delete;

  void begin() {
    started_.fetch_add(1, std::memory_order_release);
    started_.notify_all();
  }
  void wait() {
    const uint64_t started = started_.load(std::memory_order_relaxed);
    for (uint64_t seen = ended_.load(std::memory_order_acquire); seen != started; seen = ended_.load(std::memory_order_acquire)) ended_.wait(seen, std::memory_order_acquire);
  }

 private:
  void run() {
    set_floating_point_mode();
    // It mostly waits, beside a compute thread on the same core: what it does is short, and late it makes all ranks wait.
    prefer_short_time_slices();
    for (uint64_t seen = 0;;) {
      started_.wait(seen, std::memory_order_acquire);
      ++seen;
      if (stopping_) return;
      body_();
      ended_.store(seen, std::memory_order_release);
      ended_.notify_all();
    }
  }

  std::function<void()> body_;
  std::atomic<uint64_t> started_{0}, ended_{0};
  std::atomic<bool> stopping_{false};
  std::thread thread_;  // last: it uses everything above
};

}  // namespace orrery
