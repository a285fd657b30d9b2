// How bytes get from one rank to another: posted sends and receives, matched by (peer, tag) in the order of their posts, and
// nothing else. Groups, collectives, labels, deadlines' messages and counters are the Communicator's (communicator.h).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace orrery {

/// The first failure of a world, after which every call on it fails with the same report.
class CommFailure {
 public:
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  /// The first caller's error stays.
  void set(ErrorCode code, const std::string& message);
  /// Throws the stored error.
  [[noreturn]] void raise() const;

 private:
  std::atomic<bool> failed_{false};
  mutable std::mutex mutex_;
  ErrorCode code_ = ErrorCode::kPeerLost;
  std::string message_;
};

enum class TransferStatus : uint8_t {
  kPending,
  kDone,
  kMismatch,  // the two sides named different sizes; nothing was copied
  kFailed,    // the world has failed (CommFailure), or the library said no
};

/// One rank's endpoint of a world. Thread-safe; a request is used by the thread that posted it. Ranks are world ranks.
/// A post never blocks and never copies more than a segment. The buffers of a transfer belong to it until its request is released.
class Transport {
 public:
  /// Owned by the transport, which derives its own from it.
  struct Request {};

  virtual ~Transport() = default;
  virtual std::string_view name() const = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Whether post_borrow gives the sender's own memory and needs no scratch.
  virtual bool borrows_in_place() const = 0;
  /// Tags are below this.
  virtual int64_t tag_limit() const = 0;

  virtual Request* post_send(std::span<const std::byte> data, int peer, int64_t tag) = 0;
  virtual Request* post_recv(std::span<std::byte> data, int peer, int64_t tag) = 0;
  /// A receive of `bytes` that may only be read, at borrowed(request), until it is released: the sender's own buffer, or
  /// `scratch`, which has room for `bytes` unless borrows_in_place().
  virtual Request* post_borrow(int64_t bytes, std::byte* scratch, int peer, int64_t tag) = 0;

  /// Makes progress without waiting.
  virtual TransferStatus test(Request* request) = 0;
  /// Returns kPending when the monotonic clock reaches `deadline_ns`.
  virtual TransferStatus wait(Request* request, int64_t deadline_ns) = 0;
  virtual const std::byte* borrowed(const Request* request) const = 0;
  /// What the other side named, when the status is kMismatch; -1 when the library does not say.
  virtual int64_t peer_bytes(const Request* request) const = 0;
  /// Gives the request back. A transfer that is not done is cancelled where the transport can (local: always; MPI cannot take
  /// back what has been matched); after the return neither side touches the buffers any more, except after a failure over MPI.
  virtual void release(Request* request) = 0;

  virtual CommFailure& failure() = 0;
  /// Of a rank that is another process of this host; -1 for a thread of this process and for another host.
  virtual int64_t process_id(int rank) const { return static_cast<void>(rank), -1; }
  /// Heap calls by the transport since it was made: bracketed apart from a step's own, which makes none.
  virtual int64_t num_allocations() const = 0;
};

}  // namespace orrery
