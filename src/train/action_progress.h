// How far a rank's step is: a counter an action, through which its streams wait for each other, and the first error of any of them.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

#include "ir/schedule.h"

namespace orrery {

class ActionProgress {
 public:
  explicit ActionProgress(const Schedule& schedule) : schedule_(schedule), done_(schedule.actions.size()) {}

  /// Before a step: nothing is done; but what is not of the next step, before work of that alone.
  void begin_step(bool next_step_alone = false);

  /// Ops of an action that are done: whoever runs it raises this by one an op, and notifies.
  std::atomic<int64_t>& counter(size_t action) { return done_[action]; }
  void mark_done(size_t action);
  /// The ops before `op` of an action that runs none.
  void mark_ops(size_t action, int32_t op);

  /// Sleeps until what op `before_op` of the action waits for is done. False: a stream has failed, and nothing may run any more.
  [[nodiscard]] bool wait_for(const Action& action, int32_t before_op = 0);
  [[nodiscard]] bool is_ready(const Action& action) const;

  /// The first error stays. Whoever waits goes on, and finds that it may not.
  void fail(std::exception_ptr error);
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  void rethrow();

  /// For a stream that watches more than one action at a time: sleeps until some action is done after `seen` was read, at most until the
  /// monotonic clock reaches `until_ns`.
  uint32_t num_events() const { return events_.load(std::memory_order_seq_cst); }
  void sleep(uint32_t seen, int64_t until_ns);

 private:
  static constexpr int64_t kDone = int64_t{1} << 62;
  static int64_t needed(const Wait& wait) { return wait.after_op == Wait::kWhole ? kDone : wait.after_op + 1; }

  const Schedule& schedule_;
  std::vector<std::atomic<int64_t>> done_;  // by action: ops done, kDone once it is whole
  std::atomic<uint32_t> events_{0};
  std::atomic<int> num_sleeping_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace orrery
