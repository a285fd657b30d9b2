// What ranks say to each other: a group of ranks with the field's collectives over any Transport, a deadline and a label on each
// call, counters of every byte, and the flight recorder. The same code runs over threads and over MPI; only send and receive differ.
// Not here: who is in the world (discovery.h) and how bytes move (transport.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <source_location>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/flight_recorder.h"
#include "comm/reduction_plan.h"
#include "comm/transport.h"
#include "ir/dtype.h"

namespace orrery {

/// Names a call for the flight recorder, the counters and the messages: the action's text ("RS3"), and the call site by itself.
struct CommLabel {
  CommLabel(const char* text, std::source_location site = std::source_location::current()) : action(text), where(site) {}
  CommLabel(std::string_view text, std::source_location site = std::source_location::current()) : action(text), where(site) {}
  std::string_view action;
  std::source_location where;
  int64_t timeout_ms = 0;  // 0: the communicator's. A longer one, beside a save, holds while all ranks of the group run: one that is stopped ends it at the usual deadline
};

struct CommOptions {
  int64_t timeout_ms = 60'000;        // deadline of each call
  int64_t scratch_bytes = 8 << 20;    // a group's buffer for sums, only where the transport does not borrow in place
  int64_t segment_bytes = 1 << 20;    // the largest piece of a sum in flight there; tests make it small
  std::string flight_path;            // the recorder's file, "-RANK" added where ranks are processes; empty: memory that only this one sees
  bool keep_flight_file = false;      // false: deleted at a clean end; after a failure it stays
  /// Takes the report of a rank whose thread is inside the transport and does not come back, and ends the process: nothing else can. On a thread of its own.
  /// Null: nobody watches, as a transport needs that makes its waits itself (local).
  std::function<void(std::string_view report)> on_stuck;
};

/// Bytes of payload and calls, by label. Bytes count what this rank sent to and received from others.
struct CommLabelCounter {
  char label[24] = {};
  int64_t num_calls = 0, bytes_sent = 0, bytes_received = 0, time_ns = 0;
};

class Communicator;

/// A posted transfer. Finish it with wait(); one that is destroyed unfinished is cancelled. Its buffer belongs to it until then.
class Work {
 public:
  Work() = default;
  Work(Work&& other) noexcept { *this = std::move(other); }
  Work& operator=(Work&& other) noexcept;
  ~Work() { cancel(); }
  /// Whether it is done; makes progress, never waits. Errors as wait().
  [[nodiscard]] bool test();
  /// Errors: kTimeout at the deadline, counted from this call; kPeerLost when the world has failed.
  void wait();
  /// For a caller that has waited by test() as long as it will: throws kTimeout, with the report, unless it is done.
  void expire();
  bool active() const { return request_ != nullptr; }

 private:
  friend class Communicator;
  bool finish(TransferStatus status);
  void cancel();
  Communicator* communicator_ = nullptr;
  Transport::Request* request_ = nullptr;
  int64_t flight_index_ = 0, bytes_ = 0, timeout_ms_ = 0;
  int peer_ = 0;
  bool receives_ = false;
  char label_[24] = {};
};

/// One rank's view of a group. Calls come from one thread at a time; different groups of a rank may be used by different threads.
/// Every member makes the same collective calls in the same order. Nothing is allocated after the first call of a kind. After a
/// failure every later call of every group throws the first failure's report at once.
class Communicator {
 public:
  /// The world. Collective over all endpoints only in the sense that each makes its own; nothing is sent.
  Communicator(std::unique_ptr<Transport> transport, const CommOptions& options);
  /// As above with a ring in a recorder that is shared by the ranks of this process; it outlives the communicator.
  Communicator(std::unique_ptr<Transport> transport, const CommOptions& options, std::shared_ptr<FlightRecorder> recorder, int ring_index);
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(members_.size()); }
  int world_rank(int member) const { return members_[static_cast<size_t>(member)]; }
  std::string_view transport_name() const;
  int64_t timeout_ms() const;  // deadline of a call whose label names none

  /// Groups by color, ordered by (key, rank). A negative color gets null. Collective.
  std::unique_ptr<Communicator> split(int color, int key, const CommLabel& label);

  // Point to point. Tags 0 to 32767. A send and its receive name the same size, which may be 0. post_* returns at once.
  void send(std::span<const std::byte> data, int peer, int tag, const CommLabel& label);
  void recv(std::span<std::byte> data, int peer, int tag, const CommLabel& label);
  Work post_send(std::span<const std::byte> data, int peer, int tag, const CommLabel& label);
  Work post_recv(std::span<std::byte> data, int peer, int tag, const CommLabel& label);

  // Collectives, for n ranks and S bytes in the whole buffer. "Direct" is one step in which every pair exchanges.

  /// 2-way dissemination, ceil(log2 n) steps, no payload.
  void barrier(const CommLabel& label);
  /// Binomial tree: ceil(log2 n) steps; S bytes over each of n - 1 links.
  void broadcast(std::span<std::byte> data, int root, const CommLabel& label);
  /// Direct; each rank sends its part to every other: S (n - 1) / n. `mine` may be its own place in `all`.
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all, const CommLabel& label);
  /// Rank r's part is ranges[r] of `all`, in bytes; its own part is already there.
  void all_gather_ranges(std::span<std::byte> all, std::span<const ElementRange> ranges, const CommLabel& label);
  /// Direct: part p of `out` goes to rank p, part p of `in` comes from it; ranges in bytes.
  void all_to_all(std::span<const std::byte> out, std::span<std::byte> in, const CommLabel& label);
  void all_to_all_ranges(std::span<const std::byte> out, std::span<const ElementRange> out_ranges, std::span<std::byte> in,
                         std::span<const ElementRange> in_ranges, const CommLabel& label);

  /// The reproducible sum (NUMERICS rule 5). pieces[k]: this rank's k-th piece, the whole tensor. owners[r]: the elements that rank r
  /// ends with. outputs[i]: where this rank's part of plan.outputs[i] goes (its own range only); may be its place in a piece of its
  /// own. carried[i]: this rank's part of plan.carried[i], which an output may replace when no later output reads it. Direct, 1 step; bytes as
  /// the plan says. dtype f32, bf16, f64 or i64 (tree_sum.h).
  void reduce_scatter(const ReductionPlan& plan, DType dtype, std::span<const std::byte* const> pieces, std::span<const ElementRange> owners,
                      std::span<std::byte* const> outputs, const CommLabel& label, std::span<const std::byte* const> carried = {});
  /// In place, in the tree over the rank index: reduce_scatter of equal ranges, then all_gather: 2 steps, 2 S (n - 1) / n bytes.
  void all_reduce(std::span<std::byte> data, DType dtype, const CommLabel& label);
  /// In place, around a ring, no order promised (reduction = "fast"): 2 (n - 1) steps, 2 S (n - 1) / n bytes.
  void all_reduce_fast(std::span<std::byte> data, DType dtype, const CommLabel& label);
  /// The first half of that ring: this rank ends with the sum in owners[rank]; the rest of `data` is spent.
  void reduce_scatter_fast(std::span<std::byte> data, DType dtype, std::span<const ElementRange> owners, const CommLabel& label);

  /// The step that labels belong to, and what the rank computes between calls.
  void set_step(int64_t step) { step_ = step; }
  void set_activity(std::string_view action);

  /// By member of the group.
  int64_t bytes_sent(int member) const { return bytes_sent_[static_cast<size_t>(member)]; }
  int64_t bytes_received(int member) const { return bytes_received_[static_cast<size_t>(member)]; }
  std::span<const CommLabelCounter> label_counters() const { return {label_counters_.data(), num_labels_}; }
  void reset_counters();
  int64_t num_transport_allocations() const;

  /// Poisons the world: peers' calls fail with this message. For a rank that leaves because of its own error.
  void abort(ErrorCode code, std::string_view reason);
  /// Deletes this rank's CommOptions::flight_path now, for an end that leaves no time for it later. Where the recorder is this rank's alone.
  void drop_flight_file();

 private:
  friend class Work;
  struct Shared;  // what a rank's groups have in common
  class Call;     // one blocking operation
  Communicator(std::shared_ptr<Shared> shared, std::vector<int> members, int rank, int32_t group);
  void allocate();

  Work post(std::span<const std::byte> out, std::span<std::byte> in, int peer, int tag, const CommLabel& label);
  CommLabelCounter& counter(std::string_view label);
  void count(std::string_view label, int member, int64_t bytes, bool receives);
  std::string describe(TransferStatus status, std::string_view label, int peer, int64_t bytes, int64_t peer_bytes, int64_t timeout_ms) const;
  TransferStatus wait(Transport::Request* request, int64_t deadline_ns, int64_t& timeout_ms);
  [[noreturn]] void fail(TransferStatus status, std::string_view label, int peer, int64_t bytes, int64_t peer_bytes, int64_t timeout_ms);
  int64_t make_tag(CommOp op, int tag) const;
  void exchange(Call& call, std::span<const std::byte> out, std::span<const ElementRange> out_ranges, std::span<std::byte> in,
                std::span<const ElementRange> in_ranges);
  void reduce(Call& call, const ReductionPlan& plan, DType dtype, std::span<const std::byte* const> pieces, std::span<const ElementRange> owners,
              std::span<std::byte* const> outputs, std::span<const std::byte* const> carried);
  void ring_reduce(Call& call, std::span<std::byte> data, DType dtype, std::span<const ElementRange> owners);
  void ring_gather(Call& call, std::span<std::byte> data, int64_t element_bytes, std::span<const ElementRange> owners);
  std::span<std::byte> scratch();

  std::shared_ptr<Shared> shared_;
  std::vector<int> members_;  // world ranks
  int rank_ = 0;
  int32_t group_ = 0;
  int32_t sequence_ = 0;  // collectives so far
  int64_t step_ = -1;
  std::vector<int64_t> bytes_sent_, bytes_received_;
  std::vector<CommLabelCounter> label_counters_;
  size_t num_labels_ = 0;
  ReductionPlan rank_tree_;
  struct Pending {
    Transport::Request* request = nullptr;
    int member = 0;
    int64_t bytes = 0;
    bool receives = false;
  };
  std::vector<Pending> pending_;                 // of the call in progress
  std::vector<const std::byte*> sum_sources_;    // of the sum in progress
  std::vector<ElementRange> ranges_, byte_ranges_;
  std::vector<std::byte> scratch_;
};

/// The report of a world of processes that has ended without one, from the files at CommOptions::flight_path: where the launcher kills
/// the survivors of a death before they can speak (MPICH's does). Errors: kIo when no rank left a file.
std::string post_mortem_report(const std::string& flight_path);

/// A local world with one flight recorder, so that a report sees every rank; index = rank.
std::vector<std::unique_ptr<Communicator>> make_local_communicators(int num_ranks, const CommOptions& options = {});

/// Runs `body(communicator)` on `num_ranks` threads over a local world and joins them. The first rank's error is thrown again; a
/// rank that throws poisons the world, so that no other waits for it.
void run_local_ranks(int num_ranks, const CommOptions& options, const std::function<void(Communicator&)>& body);
/// As above over endpoints that the caller made.
void run_ranks(std::vector<std::unique_ptr<Transport>> endpoints, const CommOptions& options, const std::function<void(Communicator&)>& body);

}  // namespace orrery
