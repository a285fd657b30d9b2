// Notices a call that does not come back. An operation's deadline is looked at by the thread that waits, which is no help once that thread is inside a
// library's call that blocks for ever: a peer stopped where the library spins for it, a socket that takes no more. Then a thread of its own has to speak.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "comm/transport.h"

namespace orrery {

class Watchdog {
 public:
  /// Looks every `look_ms`. `on_stuck` runs on the watchdog's thread, once, at the second look in a row that finds the same call overdue: a process that was
  /// itself stopped and goes on finds every deadline passed, and its calls need a moment to come back. Nothing is watched after it.
  Watchdog(int64_t look_ms, std::function<void()> on_stuck);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// The calling thread is inside a call that has to come back before `until_ns` of the monotonic clock. Allocates nothing, waits for nobody.
  class Guard {
   public:
    Guard(Watchdog& watchdog, int64_t until_ns);
    ~Guard() { slot_->store(0, std::memory_order_release); }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    std::atomic<int64_t>* slot_;
  };

 private:
  static constexpr size_t kMostCalls = 16;  // threads of one rank that communicate at the same time, with room to spare
  void look();

  const int64_t look_ns_;
  const std::function<void()> on_stuck_;
  std::array<std::atomic<int64_t>, kMostCalls> until_ns_{};  // 0: free
  std::atomic<uint32_t> stop_{0};
  std::thread thread_;  // last: it uses all of the above
};

/// A transport that hands every call on to another one.
class ForwardingTransport : public Transport {
 public:
  explicit ForwardingTransport(std::unique_ptr<Transport> inner) : inner_(std::move(inner)) {}
  std::string_view name() const override { return inner_->name(); }
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  bool borrows_in_place() const override { return inner_->borrows_in_place(); }
  int64_t tag_limit() const override { return inner_->tag_limit(); }
  Request* post_send(std::span<const std::byte> data, int peer, int64_t tag) override { return inner_->post_send(data, peer, tag); }
  Request* post_recv(std::span<std::byte> data, int peer, int64_t tag) override { return inner_->post_recv(data, peer, tag); }
  Request* post_borrow(int64_t bytes, std::byte* scratch, int peer, int64_t tag) override { return inner_->post_borrow(bytes, scratch, peer, tag); }
  TransferStatus test(Request* request) override { return inner_->test(request); }
  TransferStatus wait(Request* request, int64_t deadline_ns) override { return inner_->wait(request, deadline_ns); }
  const std::byte* borrowed(const Request* request) const override { return inner_->borrowed(request); }
  int64_t peer_bytes(const Request* request) const override { return inner_->peer_bytes(request); }
  void release(Request* request) override { inner_->release(request); }
  CommFailure& failure() override { return inner_->failure(); }
  int64_t process_id(int rank) const override { return inner_->process_id(rank); }
  int64_t num_allocations() const override { return inner_->num_allocations(); }

 protected:
  std::unique_ptr<Transport> inner_;
};

/// `inner`, each of whose calls has to come back: a wait before its deadline, every other one, which never waits, and the transport's end within
/// `timeout_ms`. Else `on_stuck` runs as Watchdog says, one or two looks (a fourth of `timeout_ms` each, a second at most) later.
std::unique_ptr<Transport> watch_transport(std::unique_ptr<Transport> inner, int64_t timeout_ms, std::function<void()> on_stuck);

}  // namespace orrery
