#include "comm/local_transport.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "comm/futex.h"

namespace orrery {
namespace {

void cpu_relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// A sleeper looks at the failure flag at least this often, so that poisoning a world needs no list of its sleepers.
constexpr int64_t kSleepSliceNs = 50'000'000;
constexpr int64_t kNoSegments = INT64_MAX / 2;

enum class Phase : uint8_t { kUnmatched, kMatched, kDone, kMismatch, kCancelled };

// One message. It has up to two requests (its sender's and its receiver's) and goes back to its mailbox's free list when both
// are released. Plain fields are written under the mailbox's lock before `phase` becomes kMatched.
struct Transfer {
  const std::byte* source = nullptr;
  std::byte* destination = nullptr;  // null: borrowed
  int64_t tag = 0;
  int64_t send_bytes = 0, recv_bytes = 0;
  int64_t num_segments = 0;
  int num_requests = 0;
  bool borrow = false;
  std::atomic<Phase> phase{Phase::kUnmatched};
  std::atomic<int64_t> next_segment{0};  // the next one to be claimed by a waiter
  std::atomic<int64_t> segments_done{0};
  std::atomic<int> num_copying{0};  // waiters between claim and completion
  Transfer* next = nullptr;
};

// A first-in first-out list of unmatched transfers of one (sender, receiver) pair.
struct Pending {
  Transfer* first = nullptr;
  Transfer** end = &first;

  void push(Transfer* transfer) {
    transfer->next = nullptr;
    *end = transfer;
    end = &transfer->next;
  }
  Transfer* take(int64_t tag) {
    for (Transfer** link = &first; *link != nullptr; link = &(*link)->next)
      if ((*link)->tag == tag) return unlink(link);
    return nullptr;
  }
  bool remove(Transfer* transfer) {
    for (Transfer** link = &first; *link != nullptr; link = &(*link)->next)
      if (*link == transfer) return unlink(link), true;
    return false;
  }

 private:
  Transfer* unlink(Transfer** link) {
    Transfer* transfer = *link;
    *link = transfer->next;
    if (end == &transfer->next) end = link;
    return transfer;
  }
};

constexpr int64_t kTransfersPerBlock = 64;

// What is on its way to one rank.
struct Mailbox {
  std::mutex mutex;
  std::vector<Pending> sends, receives;  // by sender
  std::vector<std::unique_ptr<std::array<Transfer, kTransfersPerBlock>>> blocks;
  Transfer* free = nullptr;

  Transfer* take_free(int64_t tag, std::atomic<int64_t>& num_allocations) {
    if (free == nullptr) {
      blocks.push_back(std::make_unique<std::array<Transfer, kTransfersPerBlock>>());
      num_allocations.fetch_add(1, std::memory_order_relaxed);
      for (Transfer& transfer : *blocks.back()) {
        transfer.next = free;
        free = &transfer;
      }
    }
    Transfer* transfer = free;
    free = transfer->next;
    transfer->tag = tag;
    transfer->source = nullptr;
    transfer->destination = nullptr;
    transfer->num_requests = 0;
    transfer->borrow = false;
    transfer->phase.store(Phase::kUnmatched, std::memory_order_relaxed);
    transfer->next_segment.store(0, std::memory_order_relaxed);
    transfer->segments_done.store(0, std::memory_order_relaxed);
    return transfer;
  }
  void give_back(Transfer* transfer) {
    if (--transfer->num_requests > 0) return;
    transfer->next = free;
    free = transfer;
  }
};

// Counts what happened to a rank; its waiters sleep on it.
struct alignas(64) Event {
  std::atomic<uint32_t> count{0};
  std::atomic<int> num_sleeping{0};

  void signal() {
    count.fetch_add(1, std::memory_order_seq_cst);
    if (num_sleeping.load(std::memory_order_seq_cst) > 0) futex_wake_all(count);
  }
};

struct World {
  World(int num_ranks, const LocalTransportOptions& options)
      : size(num_ranks), segment_bytes(options.segment_bytes), spin_iterations(options.spin_iterations), mailboxes(num_ranks), events(num_ranks) {
    ORRERY_CHECK(num_ranks >= 1 && segment_bytes >= 1, "num_ranks={} segment_bytes={}", num_ranks, segment_bytes);
    for (Mailbox& mailbox : mailboxes) {
      mailbox.sends = std::vector<Pending>(static_cast<size_t>(num_ranks));
      mailbox.receives = std::vector<Pending>(static_cast<size_t>(num_ranks));
    }
    if (spin_iterations < 0) spin_iterations = static_cast<unsigned>(num_ranks) <= std::thread::hardware_concurrency() ? 100 : 0;
  }

  const int size;
  const int64_t segment_bytes;
  int spin_iterations;
  std::vector<Mailbox> mailboxes;
  std::vector<Event> events;
  CommFailure failure;
  std::atomic<int64_t> num_allocations{0};
};

struct LocalRequest : Transport::Request {
  Mailbox* mailbox = nullptr;
  Transfer* transfer = nullptr;
  int peer = 0;
  bool receives = false;
  LocalRequest* next = nullptr;
};

class LocalTransport final : public Transport {
 public:
  LocalTransport(std::shared_ptr<World> world, int rank) : world_(std::move(world)), rank_(rank) {}

  std::string_view name() const override { return "local"; }
  int rank() const override { return rank_; }
  int size() const override { return world_->size; }
  bool borrows_in_place() const override { return true; }
  int64_t tag_limit() const override { return INT64_MAX; }
  CommFailure& failure() override { return world_->failure; }
  int64_t num_allocations() const override { return world_->num_allocations.load(std::memory_order_relaxed); }

  Request* post_send(std::span<const std::byte> data, int peer, int64_t tag) override {
    Mailbox& mailbox = world_->mailboxes[static_cast<size_t>(peer)];
    Transfer* transfer;
    bool matched;
    {
      std::lock_guard lock(mailbox.mutex);
      transfer = mailbox.receives[static_cast<size_t>(rank_)].take(tag);
      matched = transfer != nullptr;
      if (!matched) transfer = mailbox.take_free(tag, world_->num_allocations);
      ++transfer->num_requests;
      transfer->source = data.data();
      transfer->send_bytes = static_cast<int64_t>(data.size());
      if (matched)
        match(*transfer);
      else
        mailbox.sends[static_cast<size_t>(rank_)].push(transfer);
    }
    if (matched) world_->events[static_cast<size_t>(peer)].signal();
    return new_request(mailbox, transfer, peer, /*receives=*/false);
  }

  Request* post_recv(std::span<std::byte> data, int peer, int64_t tag) override {
    return post_receive(data.data(), static_cast<int64_t>(data.size()), peer, tag, /*borrow=*/false);
  }
  Request* post_borrow(int64_t bytes, std::byte*, int peer, int64_t tag) override { return post_receive(nullptr, bytes, peer, tag, /*borrow=*/true); }

  TransferStatus test(Request* request) override;
  TransferStatus wait(Request* request, int64_t deadline_ns) override;
  const std::byte* borrowed(const Request* request) const override;
  int64_t peer_bytes(const Request* request) const override;
  void release(Request* request) override;

 private:

  // Under the mailbox's lock, both sides known.
  void match(Transfer& transfer) {
    if (transfer.send_bytes != transfer.recv_bytes) {
      transfer.phase.store(Phase::kMismatch, std::memory_order_release);
      return;
    }
    transfer.num_segments = transfer.borrow ? 0 : (transfer.send_bytes + world_->segment_bytes - 1) / world_->segment_bytes;
    const bool done = !transfer.borrow && transfer.num_segments == 0;
    transfer.phase.store(done ? Phase::kDone : Phase::kMatched, std::memory_order_release);
  }

  Request* post_receive(std::byte* data, int64_t bytes, int peer, int64_t tag, bool borrow) {
    Mailbox& mailbox = world_->mailboxes[static_cast<size_t>(rank_)];
    Transfer* transfer;
    bool matched;
    {
      std::lock_guard lock(mailbox.mutex);
      transfer = mailbox.sends[static_cast<size_t>(peer)].take(tag);
      matched = transfer != nullptr;
      if (!matched) transfer = mailbox.take_free(tag, world_->num_allocations);
      ++transfer->num_requests;
      transfer->destination = data;
      transfer->recv_bytes = bytes;
      transfer->borrow = borrow;
      if (matched)
        match(*transfer);
      else
        mailbox.receives[static_cast<size_t>(peer)].push(transfer);
    }
    if (matched) world_->events[static_cast<size_t>(peer)].signal();
    return new_request(mailbox, transfer, peer, /*receives=*/true);
  }

  // Copies one segment if one is left to claim.
  bool copy_segment(Transfer& transfer, int peer);
  TransferStatus status(const LocalRequest& request) const;
  Request* new_request(Mailbox& mailbox, Transfer* transfer, int peer, bool receives);

  std::shared_ptr<World> world_;
  const int rank_;
  std::mutex requests_mutex_;
  std::vector<std::unique_ptr<std::array<LocalRequest, kTransfersPerBlock>>> request_blocks_;
  LocalRequest* free_requests_ = nullptr;
};

Transport::Request* LocalTransport::new_request(Mailbox& mailbox, Transfer* transfer, int peer, bool receives) {
  std::lock_guard lock(requests_mutex_);
  if (free_requests_ == nullptr) {
    request_blocks_.push_back(std::make_unique<std::array<LocalRequest, kTransfersPerBlock>>());
    world_->num_allocations.fetch_add(1, std::memory_order_relaxed);
    for (LocalRequest& request : *request_blocks_.back()) {
      request.next = free_requests_;
      free_requests_ = &request;
    }
  }
  LocalRequest* request = free_requests_;
  free_requests_ = request->next;
  request->mailbox = &mailbox;
  request->transfer = transfer;
  request->peer = peer;
  request->receives = receives;
  return request;
}

bool LocalTransport::copy_segment(Transfer& transfer, int peer) {
  // Announced before the claim: a cancelling side that sees no copier after closing the claims knows that none will come.
  transfer.num_copying.fetch_add(1, std::memory_order_seq_cst);
  const int64_t segment = transfer.next_segment.load(std::memory_order_relaxed) < transfer.num_segments
                              ? transfer.next_segment.fetch_add(1, std::memory_order_seq_cst)
                              : kNoSegments;
  const bool claimed = segment < transfer.num_segments;
  bool last = false;
  if (claimed) {
    const int64_t begin = segment * world_->segment_bytes;
    const int64_t bytes = std::min(world_->segment_bytes, transfer.send_bytes - begin);
    std::memcpy(transfer.destination + begin, transfer.source + begin, static_cast<size_t>(bytes));
    last = transfer.segments_done.fetch_add(1, std::memory_order_acq_rel) + 1 == transfer.num_segments;
    if (last) transfer.phase.store(Phase::kDone, std::memory_order_release);
  }
  transfer.num_copying.fetch_sub(1, std::memory_order_seq_cst);
  if (last) world_->events[static_cast<size_t>(peer)].signal();
  return claimed;
}

TransferStatus LocalTransport::status(const LocalRequest& request) const {
  switch (request.transfer->phase.load(std::memory_order_acquire)) {
    case Phase::kUnmatched: break;
    case Phase::kMatched:
      if (request.receives && request.transfer->borrow) return TransferStatus::kDone;
      break;
    case Phase::kDone: return TransferStatus::kDone;
    case Phase::kMismatch: return TransferStatus::kMismatch;
    case Phase::kCancelled: return TransferStatus::kFailed;
  }
  return world_->failure.failed() ? TransferStatus::kFailed : TransferStatus::kPending;
}

TransferStatus LocalTransport::test(Request* opaque) {
  auto* request = static_cast<LocalRequest*>(opaque);
  const TransferStatus before = status(*request);
  if (before != TransferStatus::kPending || request->transfer->phase.load(std::memory_order_acquire) != Phase::kMatched ||
      request->transfer->borrow)
    return before;
  copy_segment(*request->transfer, request->peer);
  return status(*request);
}

TransferStatus LocalTransport::wait(Request* opaque, int64_t deadline_ns) {
  auto* request = static_cast<LocalRequest*>(opaque);
  Transfer& transfer = *request->transfer;
  Event& event = world_->events[static_cast<size_t>(rank_)];
  for (int spins = 0;;) {
    const uint32_t seen = event.count.load(std::memory_order_seq_cst);
    const TransferStatus now_status = status(*request);
    if (now_status != TransferStatus::kPending) return now_status;
    if (transfer.phase.load(std::memory_order_acquire) == Phase::kMatched && !transfer.borrow && copy_segment(transfer, request->peer)) continue;
    if (spins++ < world_->spin_iterations) {
      cpu_relax();
      continue;
    }
    const int64_t now = monotonic_ns();
    if (now >= deadline_ns) return TransferStatus::kPending;
    event.num_sleeping.fetch_add(1, std::memory_order_seq_cst);
    if (event.count.load(std::memory_order_seq_cst) == seen) futex_wait_until(event.count, seen, std::min(deadline_ns, now + kSleepSliceNs));
    event.num_sleeping.fetch_sub(1, std::memory_order_seq_cst);
  }
}

const std::byte* LocalTransport::borrowed(const Request* request) const { return static_cast<const LocalRequest*>(request)->transfer->source; }

int64_t LocalTransport::peer_bytes(const Request* opaque) const {
  const auto* request = static_cast<const LocalRequest*>(opaque);
  return request->receives ? request->transfer->send_bytes : request->transfer->recv_bytes;
}

void LocalTransport::release(Request* opaque) {
  auto* request = static_cast<LocalRequest*>(opaque);
  Transfer& transfer = *request->transfer;
  Mailbox& mailbox = *request->mailbox;
  bool signal_peer = false;
  {
    std::unique_lock lock(mailbox.mutex);
    const Phase phase = transfer.phase.load(std::memory_order_acquire);
    if (phase == Phase::kUnmatched) {
      Pending& pending = request->receives ? mailbox.receives[static_cast<size_t>(request->peer)] : mailbox.sends[static_cast<size_t>(rank_)];
      ORRERY_CHECK(pending.remove(&transfer), "an unmatched transfer is in no list");
    } else if (phase == Phase::kMatched && transfer.borrow && request->receives) {
      transfer.phase.store(Phase::kDone, std::memory_order_release);
      signal_peer = true;
    } else if (phase == Phase::kMatched && transfer.borrow) {
      // The borrower still reads this rank's buffer. It is inside an addition, which ends.
      lock.unlock();
      while (transfer.phase.load(std::memory_order_acquire) == Phase::kMatched) std::this_thread::yield();
      lock.lock();
    } else if (phase == Phase::kMatched) {
      transfer.next_segment.store(kNoSegments, std::memory_order_seq_cst);
      while (transfer.num_copying.load(std::memory_order_seq_cst) > 0) std::this_thread::yield();
      if (transfer.phase.load(std::memory_order_acquire) == Phase::kMatched) transfer.phase.store(Phase::kCancelled, std::memory_order_release);
      signal_peer = true;
    }
    mailbox.give_back(&transfer);
  }
  if (signal_peer) world_->events[static_cast<size_t>(request->peer)].signal();
  std::lock_guard lock(requests_mutex_);
  request->next = free_requests_;
  free_requests_ = request;
}

}  // namespace

std::vector<std::unique_ptr<Transport>> make_local_world(int num_ranks, const LocalTransportOptions& options) {
  auto world = std::make_shared<World>(num_ranks, options);
  std::vector<std::unique_ptr<Transport>> endpoints;
  for (int rank = 0; rank < num_ranks; ++rank) endpoints.push_back(std::make_unique<LocalTransport>(world, rank));
  return endpoints;
}

}  // namespace orrery
