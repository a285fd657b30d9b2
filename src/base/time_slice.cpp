#include "base/time_slice.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace orrery {
namespace {

constexpr uint64_t kSliceNs = 100'000;        // the least that Linux takes
constexpr unsigned long kTimerSlackNs = 1'000;  // a sleep ends up to 50 us late otherwise

// sched_setattr(2) has no declaration in the C library of Debian 12.
struct SchedulingAttributes {
  uint32_t size = sizeof(SchedulingAttributes);
  uint32_t policy = SCHED_OTHER;
  uint64_t flags = 0;
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime_ns = 0, deadline_ns = 0, period_ns = 0;
};

}  // namespace

void prefer_short_time_slices() {
  ::prctl(PR_SET_TIMERSLACK, kTimerSlackNs);
  SchedulingAttributes attributes;
  // A policy or a nice value that somebody gave the process stays.
  if (::syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0 || attributes.policy != SCHED_OTHER) return;
  attributes.runtime_ns = kSliceNs;
  ::syscall(SYS_sched_setattr, 0, &attributes, 0);
}

}  // namespace orrery
