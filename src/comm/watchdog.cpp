#include "comm/watchdog.h"

#include <pthread.h>

#include <algorithm>

#include "base/error.h"
#include "comm/futex.h"

namespace orrery {

Watchdog::Watchdog(int64_t look_ms, std::function<void()> on_stuck)
    : look_ns_(look_ms * 1'000'000), on_stuck_(std::move(on_stuck)), thread_([this] {
        pthread_setname_np(pthread_self(), "watchdog");
        look();
      }) {}

Watchdog::~Watchdog() {
  stop_.store(1, std::memory_order_release);
  futex_wake_all(stop_);
  thread_.join();
}

void Watchdog::look() {
  std::array<int64_t, kMostCalls> overdue{};  // at the look before: the deadline that was missed, 0 for none
  for (int64_t next_look = monotonic_ns() + look_ns_;;) {
    if (stop_.load(std::memory_order_acquire) != 0) return;
    const int64_t now = monotonic_ns();
    if (now < next_look) {
      futex_wait_until(stop_, 0, next_look);
      continue;
    }
    next_look = now + look_ns_;
    for (size_t i = 0; i < kMostCalls; ++i) {
      const int64_t until = until_ns_[i].load(std::memory_order_acquire);
      if (until != 0 && until == overdue[i]) return on_stuck_();
      overdue[i] = now > until ? until : 0;
    }
  }
}

Watchdog::Guard::Guard(Watchdog& watchdog, int64_t until_ns) : slot_(nullptr) {
  for (std::atomic<int64_t>& slot : watchdog.until_ns_) {
    int64_t free = 0;
    if (slot.load(std::memory_order_relaxed) != 0 || !slot.compare_exchange_strong(free, until_ns, std::memory_order_acq_rel)) continue;
    slot_ = &slot;
    return;
  }
  ORRERY_CHECK(slot_ != nullptr, "more than {} threads of a rank communicate at the same time", kMostCalls);
}

namespace {

class WatchedTransport final : public ForwardingTransport {
 public:
  WatchedTransport(std::unique_ptr<Transport> inner, int64_t timeout_ms, std::function<void()> on_stuck)
      : ForwardingTransport(std::move(inner)), timeout_ns_(timeout_ms * 1'000'000), watchdog_(std::clamp<int64_t>(timeout_ms / 4, 1, 1000), std::move(on_stuck)) {}
  // The library's own end waits for the other ranks, without a deadline.
  ~WatchedTransport() override {
    const Watchdog::Guard guard(watchdog_, soon());
    inner_.reset();
  }

  Request* post_send(std::span<const std::byte> data, int peer, int64_t tag) override {
    const Watchdog::Guard guard(watchdog_, soon());
    return inner_->post_send(data, peer, tag);
  }
  Request* post_recv(std::span<std::byte> data, int peer, int64_t tag) override {
    const Watchdog::Guard guard(watchdog_, soon());
    return inner_->post_recv(data, peer, tag);
  }
  Request* post_borrow(int64_t bytes, std::byte* scratch, int peer, int64_t tag) override {
    const Watchdog::Guard guard(watchdog_, soon());
    return inner_->post_borrow(bytes, scratch, peer, tag);
  }
  TransferStatus test(Request* request) override {
    const Watchdog::Guard guard(watchdog_, soon());
    return inner_->test(request);
  }
  TransferStatus wait(Request* request, int64_t deadline_ns) override {
    const Watchdog::Guard guard(watchdog_, deadline_ns);
    return inner_->wait(request, deadline_ns);
  }
  void release(Request* request) override {
    const Watchdog::Guard guard(watchdog_, soon());
    inner_->release(request);
  }

 private:
  int64_t soon() const { return monotonic_ns() + timeout_ns_; }
  const int64_t timeout_ns_;
  Watchdog watchdog_;
};

}  // namespace

std::unique_ptr<Transport> watch_transport(std::unique_ptr<Transport> inner, int64_t timeout_ms, std::function<void()> on_stuck) {
  return std::make_unique<WatchedTransport>(std::move(inner), timeout_ms, std::move(on_stuck));
}

}  // namespace orrery
