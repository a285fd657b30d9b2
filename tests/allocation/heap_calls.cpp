#include "heap_calls.h"

#include <errno.h>
#include <execinfo.h>
#include <malloc.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "base/error.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ORRERY_COUNT_HEAP_CALLS 0
#else
#define ORRERY_COUNT_HEAP_CALLS 1
#endif

namespace orrery::heap_calls {
namespace {

constexpr int kMaxThreads = 256;

// A thread writes only its own entry, and the others read after the window: what the step synchronises orders them.
Thread table[kMaxThreads];
std::atomic<int> num_threads{0};
std::atomic<bool> counting{false};
thread_local Thread* own = nullptr;
thread_local bool recording = false;  // backtrace() may allocate
thread_local int strict_depth = 0;

#if ORRERY_COUNT_HEAP_CALLS
Thread& own_entry() {
  if (own == nullptr) {
    const int index = num_threads.fetch_add(1);
    if (index >= kMaxThreads) {
      constexpr char message[] = "heap_calls: too many threads\n";
      (void)!write(2, message, sizeof message - 1);
      _exit(3);
    }
    own = &table[index];
  }
  return *own;
}

void count(int64_t asked, int64_t live_change, bool is_free) {
  if (!counting.load(std::memory_order_relaxed) || recording) return;
  recording = true;
  Thread& thread = own_entry();
  if (thread.calls() == 0) {
    prctl(PR_GET_NAME, thread.name);
    thread.num_frames = backtrace(thread.frames, kMaxFrames);
  }
  ++(is_free ? thread.frees : thread.allocations);
  if (strict_depth > 0) ++thread.strict_calls;
  thread.bytes += asked;
  thread.live_bytes += live_change;
  thread.peak_bytes = std::max(thread.peak_bytes, thread.live_bytes);
  recording = false;
}
#endif

}  // namespace

bool available() { return ORRERY_COUNT_HEAP_CALLS != 0; }

void start() {
  void* frame[1];
  (void)backtrace(frame, 1);  // its first call loads libgcc, on the heap
  for (Thread& thread : table) thread = {};
  counting.store(true);
}

void stop() { counting.store(false); }

std::span<const Thread> threads() { return {table, static_cast<size_t>(std::min(num_threads.load(), kMaxThreads))}; }

void print_origin(const Thread& thread) { backtrace_symbols_fd(thread.frames, thread.num_frames, 2); }

Strict::Strict() { ++strict_depth; }
Strict::~Strict() { --strict_depth; }

}  // namespace orrery::heap_calls

#if ORRERY_COUNT_HEAP_CALLS
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);

static void* counted(void* pointer, size_t asked) {
  orrery::heap_calls::count(static_cast<int64_t>(asked), static_cast<int64_t>(malloc_usable_size(pointer)), false);
  return pointer;
}

void* malloc(size_t bytes) { return counted(__libc_malloc(bytes), bytes); }
void* calloc(size_t count, size_t bytes) { return counted(__libc_calloc(count, bytes), count * bytes); }
void* memalign(size_t alignment, size_t bytes) { return counted(__libc_memalign(alignment, bytes), bytes); }
void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }
void* valloc(size_t bytes) { return memalign(static_cast<size_t>(sysconf(_SC_PAGESIZE)), bytes); }
int posix_memalign(void** out, size_t alignment, size_t bytes) {
  *out = memalign(alignment, bytes);
  return *out == nullptr ? ENOMEM : 0;
}
void* realloc(void* old, size_t bytes) {
  const auto before = static_cast<int64_t>(malloc_usable_size(old));
  void* pointer = __libc_realloc(old, bytes);
  orrery::heap_calls::count(static_cast<int64_t>(bytes), static_cast<int64_t>(malloc_usable_size(pointer)) - before, false);
  return pointer;
}
void free(void* pointer) {
  if (pointer == nullptr) return;
  orrery::heap_calls::count(0, -static_cast<int64_t>(malloc_usable_size(pointer)), true);
  __libc_free(pointer);
}
}
#endif
