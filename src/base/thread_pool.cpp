#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <atomic>
#include <thread>
#include <vector>

#include "base/error.h"

namespace orrery {

void set_floating_point_mode() {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);  // flush-to-zero (bit 15) and denormals-are-zero (bit 6)
#endif
}

namespace {

void cpu_relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// The n-th core of the process's affinity mask, or -1 when there are fewer.
int nth_allowed_core(int n) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return -1;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &allowed) && n-- == 0) return core;
  return -1;
}

// Spinning covers the gap between two ops of a step (microseconds); beyond it a futex sleep saves the core.
constexpr int kSpinIterations = 20000;

}  // namespace

struct ThreadPool::State {
  ErasedBody body = nullptr;
  void* context = nullptr;
  alignas(64) std::atomic<uint32_t> generation{0};
  alignas(64) std::atomic<int> num_pending{0};
  std::atomic<bool> stopping{false};
  std::vector<std::thread> workers;
};

ThreadPool::ThreadPool(int num_threads, bool pin) : num_threads_(num_threads), state_(std::make_unique<State>()) {
  ORRERY_CHECK(num_threads >= 1, "num_threads={}", num_threads);
  State* state = state_.get();
  std::vector<int> cores(num_threads, -1);
  if (pin)
    for (int i = 0; i < num_threads; ++i) cores[i] = nth_allowed_core(i);
  for (int thread_index = 1; thread_index < num_threads; ++thread_index) {
    state->workers.emplace_back([state, thread_index, num_threads, core = cores[thread_index]] {
      char name[16];
      fmt::format_to_n(name, sizeof name - 1, "compute{}", thread_index).out[0] = '\0';
      pthread_setname_np(pthread_self(), name);
      if (core >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(core, &set);
        pthread_setaffinity_np(pthread_self(), sizeof set, &set);
      }
      set_floating_point_mode();
      uint32_t seen = 0;
      while (true) {
        int spins = 0;
        while (state->generation.load(std::memory_order_acquire) == seen) {
          if (++spins < kSpinIterations)
            cpu_relax();
          else
            state->generation.wait(seen, std::memory_order_acquire);
        }
        ++seen;
        if (state->stopping.load(std::memory_order_relaxed)) return;
        state->body(state->context, thread_index, num_threads);
        if (state->num_pending.fetch_sub(1, std::memory_order_acq_rel) == 1) state->num_pending.notify_one();
      }
    });
  }
}

ThreadPool::~ThreadPool() {
  state_->stopping.store(true, std::memory_order_relaxed);
  state_->generation.fetch_add(1, std::memory_order_release);
  state_->generation.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

void ThreadPool::run_erased(ErasedBody body, void* context) {
  if (num_threads_ == 1) {
    body(context, 0, 1);
    return;
  }
  State& state = *state_;
  state.body = body;
  state.context = context;
  state.num_pending.store(num_threads_ - 1, std::memory_order_relaxed);
  state.generation.fetch_add(1, std::memory_order_release);
  state.generation.notify_all();
  body(context, 0, num_threads_);
  int spins = 0;
  for (int pending = state.num_pending.load(std::memory_order_acquire); pending != 0;
       pending = state.num_pending.load(std::memory_order_acquire)) {
    if (++spins < kSpinIterations)
      cpu_relax();
    else
      state.num_pending.wait(pending, std::memory_order_acquire);
  }
}

}  // namespace orrery
