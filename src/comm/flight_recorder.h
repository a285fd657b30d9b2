// The last operations of each rank, in memory that outlives it: a ring per rank in a file mapped MAP_SHARED (or anonymous memory
// when no file is asked for), readable while its rank runs, hangs, is stopped or is dead. Writing costs some 20 relaxed stores.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace orrery {

enum class CommOp : uint8_t { kNone, kSend, kRecv, kAllGather, kReduceScatter, kAllReduce, kAllToAll, kBroadcast, kBarrier, kSplit, kLeave };
std::string_view comm_op_name(CommOp op);

/// kPosted: under way, but nobody waits for it yet.
enum class FlightState : uint8_t { kRunning, kDone, kFailed, kPosted };

/// One operation of one rank. Text longer than its field is cut.
struct FlightRecord {
  static constexpr int kLabelChars = 23, kFileChars = 31;
  CommOp op = CommOp::kNone;
  FlightState state = FlightState::kRunning;
  int64_t enter_ns = 0, exit_ns = 0;  // CLOCK_MONOTONIC; exit 0 while running
  int64_t bytes = 0;
  int64_t step = -1;
  int32_t group = 0;            // 0 is the world
  int32_t group_sequence = -1;  // how many collectives of the group came before; -1 for send and recv
  int32_t peer = -1;            // world rank; -1 for collectives
  int32_t tag = -1;
  int32_t line = 0;
  std::string label, file;  // the action's text; the call site
};

/// One rank's ring. Any thread of the rank may write; readers of any process may look at any time and skip entries that are
/// being written.
class FlightRing {
 public:
  static constexpr int64_t kNumEntries = 128;
  struct Memory;  // in the mapping

  explicit FlightRing(Memory* memory) : memory_(memory) {}

  struct Entry {
    CommOp op;
    std::string_view label, file;
    int32_t line;
    int64_t bytes, step;
    int32_t group, group_sequence, peer, tag;
    bool posted = false;
  };
  /// Allocates nothing. The index is for exit() and wait_begins().
  int64_t enter(const Entry& entry);
  /// Of a posted operation.
  void wait_begins(int64_t index);
  void exit(int64_t index, FlightState state);
  /// What the rank does when it is in no call: the action that it computes.
  void set_activity(std::string_view text, int64_t step);

  /// Oldest first, at most `max_entries`.
  std::vector<FlightRecord> last(int64_t max_entries) const;
  struct Activity {
    std::string text;
    int64_t step = -1, since_ns = 0;
  };
  Activity activity() const;
  int64_t process_id() const;
  void set_process_id(int64_t process_id);

 private:
  Memory* memory_;
};

/// `num_ranks` rings in one mapping.
class FlightRecorder {
 public:
  /// Makes `path` new, or anonymous shared memory when it is empty. Errors: kIo.
  static FlightRecorder create(const std::string& path, int num_ranks);
  /// Reads what another process wrote, alive or not. Errors: kIo; kCorruptData when it is not such a file.
  static FlightRecorder open(const std::string& path);
  FlightRecorder(FlightRecorder&& other) noexcept;
  ~FlightRecorder();

  int num_rings() const { return num_rings_; }
  FlightRing ring(int index) const;
  /// The file that create() made is deleted with the recorder, at a clean end; after this call it stays. Any thread.
  void keep_file() { keep_file_.store(true, std::memory_order_relaxed); }
  /// Deletes the file now; the rings stay usable. Not beside another call of it.
  void drop_file();

 private:
  FlightRecorder() = default;
  std::string path_;
  void* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  int num_rings_ = 0;
  std::atomic<bool> keep_file_{false};
};

}  // namespace orrery
