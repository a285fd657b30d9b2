#include "train/action_progress.h"

#include <utility>

#include "comm/futex.h"

namespace orrery {

void ActionProgress::begin_step(bool next_step_alone) {
  for (size_t i = 0; i < done_.size(); ++i) done_[i].store(next_step_alone && !schedule_.actions[i].next_step ? kDone : 0, std::memory_order_relaxed);
}

void ActionProgress::mark_done(size_t action) {
  done_[action].store(kDone, std::memory_order_release);
  done_[action].notify_all();
  events_.fetch_add(1, std::memory_order_seq_cst);
  if (num_sleeping_.load(std::memory_order_seq_cst) > 0) futex_wake_all(events_);
}

void ActionProgress::mark_ops(size_t action, int32_t op) {
  done_[action].store(op, std::memory_order_release);
  done_[action].notify_all();
}

bool ActionProgress::wait_for(const Action& action, int32_t before_op) {
  for (const Wait& wait : action.waits) {
    if (wait.before_op != before_op) continue;
    std::atomic<int64_t>& done = done_[static_cast<size_t>(wait.action)];
    for (int64_t seen = done.load(std::memory_order_acquire); seen < needed(wait); seen = done.load(std::memory_order_acquire)) done.wait(seen, std::memory_order_acquire);
  }
  return !failed();
}

bool ActionProgress::is_ready(const Action& action) const {
  for (const Wait& wait : action.waits)
    if (done_[static_cast<size_t>(wait.action)].load(std::memory_order_acquire) < needed(wait)) return false;
  return true;
}

void ActionProgress::fail(std::exception_ptr error) {
  {
    std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
  }
  failed_.store(true, std::memory_order_release);
  for (size_t i = 0; i < done_.size(); ++i) mark_done(i);
}

void ActionProgress::rethrow() {
  std::lock_guard lock(mutex_);
  if (error_) std::rethrow_exception(error_);
}

void ActionProgress::sleep(uint32_t seen, int64_t until_ns) {
  num_sleeping_.fetch_add(1, std::memory_order_seq_cst);
  if (events_.load(std::memory_order_seq_cst) == seen) futex_wait_until(events_, seen, until_ns);
  num_sleeping_.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace orrery
