// One blocking operation of a Communicator: its deadline, its flight record, the transfers that it has posted. Internal to the
// communicator's two source files.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/thread_pool.h"
#include "comm/communicator.h"
#include "comm/futex.h"
#include "comm/hang_report.h"

namespace orrery {

struct Communicator::Shared {
  ~Shared();
  RankStory story_of(int world_rank) const;
  /// In the ring: this rank leaves, once the record is closed as kDone, or has given up with a report (kFailed).
  int64_t enter_leave();
  /// What CommOptions::on_stuck gets. On the watchdog's thread, while any other may be inside the transport: reads what does not change, and the rings.
  std::string stuck_report();

  std::unique_ptr<Transport> transport;
  CommOptions options;
  int rank = 0;
  std::vector<int64_t> process_ids;  // by world rank
  std::shared_ptr<FlightRecorder> recorder;
  FlightRing ring{nullptr};
  std::atomic<int32_t> next_group{1};
};

/// A destroyed call takes back what has not finished, so that after an exception nobody touches the buffers.
class Communicator::Call {
 public:
  Call(Communicator& communicator, CommOp op, int64_t bytes, const CommLabel& label, int peer = -1, int tag = -1)
      : communicator_(communicator),
        transport_(*communicator.shared_->transport),
        label_(label),
        timeout_ms_(label.timeout_ms > 0 ? label.timeout_ms : communicator.shared_->options.timeout_ms),
        enter_ns_(monotonic_ns()),
        deadline_ns_(enter_ns_ + timeout_ms_ * 1'000'000),
        tag_(communicator.make_tag(op, tag)) {
    if (transport_.failure().failed()) transport_.failure().raise();
    const bool collective = op != CommOp::kSend && op != CommOp::kRecv;
    const std::string_view file = label.where.file_name();
    flight_index_ = communicator.shared_->ring.enter({.op = op,
                                                      .label = label.action,
                                                      .file = file.substr(file.rfind('/') + 1),
                                                      .line = static_cast<int32_t>(label.where.line()),
                                                      .bytes = bytes,
                                                      .step = communicator.step_,
                                                      .group = communicator.group_,
                                                      .group_sequence = collective ? communicator.sequence_ : -1,
                                                      .peer = peer < 0 ? -1 : communicator.members_[static_cast<size_t>(peer)],
                                                      .tag = tag});
    if (collective) ++communicator.sequence_;
    communicator.pending_.clear();
  }

  ~Call() {
    for (Pending& pending : communicator_.pending_)
      if (pending.request != nullptr) transport_.release(pending.request);
    communicator_.pending_.clear();
    CommLabelCounter& counter = communicator_.counter(label_.action);
    ++counter.num_calls;
    counter.time_ns += monotonic_ns() - enter_ns_;
    communicator_.shared_->ring.exit(flight_index_, finished_ ? FlightState::kDone : FlightState::kFailed);
  }

  size_t send(std::span<const std::byte> data, int member) {
    return add(transport_.post_send(data, communicator_.members_[static_cast<size_t>(member)], tag_), member, data.size(), /*receives=*/false);
  }
  size_t recv(std::span<std::byte> data, int member) {
    return add(transport_.post_recv(data, communicator_.members_[static_cast<size_t>(member)], tag_), member, data.size(), /*receives=*/true);
  }
  size_t borrow(int64_t bytes, std::byte* room, int member) {
    return add(transport_.post_borrow(bytes, room, communicator_.members_[static_cast<size_t>(member)], tag_), member, static_cast<size_t>(bytes), /*receives=*/true);
  }

  void wait(size_t index) {
    const Pending& pending = communicator_.pending_[index];
    const TransferStatus status = communicator_.wait(pending.request, deadline_ns_, timeout_ms_);
    if (status != TransferStatus::kDone)
      communicator_.fail(status, label_.action, pending.member, pending.bytes, transport_.peer_bytes(pending.request), timeout_ms_);
  }
  const std::byte* borrowed(size_t index) const { return transport_.borrowed(communicator_.pending_[index].request); }
  /// Of a transfer that is done: counts it and gives it back.
  void release(size_t index) {
    Pending& pending = communicator_.pending_[index];
    transport_.release(pending.request);
    pending.request = nullptr;
    communicator_.count(label_.action, pending.member, pending.bytes, pending.receives);
  }
  /// Waits for everything posted and forgets it.
  void wait_all() {
    for (size_t i = 0; i < communicator_.pending_.size(); ++i)
      if (communicator_.pending_[i].request != nullptr) {
        wait(i);
        release(i);
      }
    communicator_.pending_.clear();
  }
  void finish() {
    wait_all();
    finished_ = true;
  }

 private:
  size_t add(Transport::Request* request, int member, size_t bytes, bool receives) {
    communicator_.pending_.push_back({request, member, static_cast<int64_t>(bytes), receives});
    return communicator_.pending_.size() - 1;
  }

  Communicator& communicator_;
  Transport& transport_;
  const CommLabel& label_;
  int64_t timeout_ms_;
  const int64_t enter_ns_, deadline_ns_, tag_;
  int64_t flight_index_ = 0;
  bool finished_ = false;
};

}  // namespace orrery
