#include "base/stop_signals.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>

#include "base/error.h"

namespace orrery {
namespace {

constexpr int kInterruptedStatus = 130;

std::atomic<int> first_signal{0}, num_urgent{0};  // urgent: all but SIGUSR1
std::atomic<bool> installed{false};
std::string_view answer_text;  // written before the handlers are there, read by them
struct sigaction previous_interrupt, previous_terminate, previous_user, previous_pipe;

/// Only async-signal-safe calls here.
void on_stop_signal(int signal_number) {
  const int saved_errno = errno;
  if (signal_number != SIGUSR1 && num_urgent.fetch_add(1) > 0) ::_exit(kInterruptedStatus);
  int expected = 0;
  if (first_signal.compare_exchange_strong(expected, signal_number) && !answer_text.empty()) {
    [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, answer_text.data(), answer_text.size());
  }
  errno = saved_errno;
}

}  // namespace

StopSignals::StopSignals(std::string_view answer) {
  ORRERY_CHECK(!installed.exchange(true));
  static_assert(std::atomic<int>::is_always_lock_free);
  first_signal = 0;
  num_urgent = 0;
  answer_text = answer;
  struct sigaction action = {};
  action.sa_handler = on_stop_signal;
  // Interrupted reads and writes go on by themselves: a save must not fail because somebody wants one.
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, &previous_interrupt);
  ::sigaction(SIGTERM, &action, &previous_terminate);
  ::sigaction(SIGUSR1, &action, &previous_user);
  action.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &action, &previous_pipe);
}

StopSignals::~StopSignals() {
  ::sigaction(SIGINT, &previous_interrupt, nullptr);
  ::sigaction(SIGTERM, &previous_terminate, nullptr);
  ::sigaction(SIGUSR1, &previous_user, nullptr);
  ::sigaction(SIGPIPE, &previous_pipe, nullptr);
  installed = false;
}

int StopSignals::requested() const { return first_signal.load(std::memory_order_relaxed); }

void throw_if_stopped(const StopRequested& stop_requested, std::string_view outcome) {
  if (stop_requested && stop_requested()) throw Error(ErrorCode::kCancelled, "interrupted; {}", outcome);
}

}  // namespace orrery
