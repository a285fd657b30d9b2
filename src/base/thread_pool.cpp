#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
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

// Read while a worker waits: half of a small L2 cache, so that what the worker was doing stays too.
constexpr int64_t kReadAheadBytes = 512 << 10;

// Spinning covers the gap between two ops of a step (microseconds); beyond it a futex sleep saves the core.
constexpr int kSpinIterations = 20000;

// One worker's part of a ReadAhead and how far it is.
struct alignas(64) Reader {
  uint32_t hint = 0;
  const std::byte* begin = nullptr;
  int64_t bytes = 0, done = 0;

  void adopt(uint32_t serial, const ReadAhead& next, int thread_index, int num_threads) {
    if (serial == hint) return;
    hint = serial;
    const int64_t first = next.num_units * thread_index / num_threads, last = next.num_units * (thread_index + 1) / num_threads;
    begin = next.data + first * next.unit_bytes;
    bytes = std::min(kReadAheadBytes, (last - first) * next.unit_bytes);
    done = 0;
  }
  // Some nanoseconds' reading, one load for each cache line, or a pause. Loads, because the prefetchers follow them further than requests.
  void step() {
    constexpr int64_t kStep = 1024, kLine = 64;
    if (done >= bytes) return cpu_relax();
    const int64_t end = std::min(bytes, done + kStep);
    for (; done < end; done += kLine) static_cast<void>(*reinterpret_cast<const volatile std::byte*>(begin + done));
    done = end;
  }
};

// Which run's part somebody has begun. On a machine that others use too, a worker may wait for a core longer than its part takes: then the
// caller, done with its own, takes the part, and the worker, when it comes, finds it taken.
struct alignas(64) Claim {
  std::atomic<uint32_t> run{0};
  bool take(uint32_t number) {
    uint32_t before = number - 1;
    return run.compare_exchange_strong(before, number, std::memory_order_acq_rel, std::memory_order_relaxed);
  }
};

// Set while the caller does another worker's part, of whose reading ahead it has nothing.
thread_local bool does_anothers_part = false;

}  // namespace

struct ThreadPool::State {
  ErasedBody body = nullptr;
  void* context = nullptr;
  std::vector<Claim> claims;  // by worker
  bool all_must_come = false;  // a run after set_read_ahead(): afterwards no worker reads the memory of the hint before
  alignas(64) std::atomic<uint32_t> generation{0};
  alignas(64) std::atomic<int> num_pending{0};
  std::atomic<bool> stopping{false};
  ReadAhead next;               // written between runs, read inside them
  uint32_t next_hint = 0;       // counts set_read_ahead()
  std::vector<Reader> readers;  // by worker, each used by its own
  std::vector<std::thread> workers;
  alignas(64) std::atomic<int> num_sleeping{0};

  // A notification costs a third of a microsecond even when nobody sleeps. Whoever goes to sleep counts itself and then looks at the value
  // again; whoever changes the value does so and then looks at the count: one of the two sees the other.
  template <typename T>
  void sleep(std::atomic<T>& value, T seen) {
    num_sleeping.fetch_add(1, std::memory_order_seq_cst);
    value.wait(seen, std::memory_order_seq_cst);
    num_sleeping.fetch_sub(1, std::memory_order_relaxed);
  }
  template <typename T>
  void wake(std::atomic<T>& value) {
    if (num_sleeping.load(std::memory_order_seq_cst) != 0) value.notify_all();
  }
};

ThreadPool::ThreadPool(int num_threads, bool pin) : num_threads_(num_threads), state_(std::make_unique<State>()) {
  ORRERY_CHECK(num_threads >= 1, "num_threads={}", num_threads);
  State* state = state_.get();
  state->claims = std::vector<Claim>(static_cast<size_t>(num_threads));
  state->readers.resize(static_cast<size_t>(num_threads));
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
      uint32_t seen = 0, run = 0;
      Reader& reader = state->readers[static_cast<size_t>(thread_index)];
      while (true) {
        int spins = 0;
        while ((run = state->generation.load(std::memory_order_acquire)) == seen) {
          if (++spins < kSpinIterations)
            reader.step();
          else
            state->sleep(state->generation, seen);
        }
        seen = run;
        if (state->stopping.load(std::memory_order_relaxed)) return;
        if (!state->claims[static_cast<size_t>(thread_index)].take(run)) continue;
        state->body(state->context, thread_index, num_threads);
        reader.adopt(state->next_hint, state->next, thread_index, num_threads);
        if (state->num_pending.fetch_sub(1, std::memory_order_seq_cst) == 1) state->wake(state->num_pending);
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

void ThreadPool::set_read_ahead(const ReadAhead& next) {
  state_->next = next;
  ++state_->next_hint;
  state_->all_must_come = true;
}

int64_t ThreadPool::read_ahead_bytes(int thread_index, const std::byte* data) const {
  if (does_anothers_part) return 0;
  const Reader& reader = state_->readers[static_cast<size_t>(thread_index)];
  return reader.begin == data ? reader.done : 0;
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
  const uint32_t run = state.generation.fetch_add(1, std::memory_order_seq_cst) + 1;
  state.wake(state.generation);
  body(context, 0, num_threads_);
  for (int thread_index = 1; thread_index < num_threads_ && !state.all_must_come; ++thread_index) {
    if (!state.claims[static_cast<size_t>(thread_index)].take(run)) continue;
    does_anothers_part = true;
    body(context, thread_index, num_threads_);
    does_anothers_part = false;
    state.num_pending.fetch_sub(1, std::memory_order_acq_rel);
  }
  state.all_must_come = false;
  Reader& reader = state.readers[0];
  reader.adopt(state.next_hint, state.next, 0, num_threads_);
  int spins = 0;
  for (int pending = state.num_pending.load(std::memory_order_acquire); pending != 0;
       pending = state.num_pending.load(std::memory_order_acquire)) {
    if (++spins < kSpinIterations)
      reader.step();
    else
      state.sleep(state.num_pending, pending);
  }
}

}  // namespace orrery
