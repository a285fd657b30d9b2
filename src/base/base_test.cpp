// The base folder: known answers for Philox, exact round trips for the 16-bit floats, and a pool that visits each index once.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "base/bfloat16.h"
#include "base/error.h"
#include "base/philox.h"
#include "base/portable_math.h"
#include "base/stop_signals.h"
#include "base/thread_pool.h"
#include "base/time_slice.h"

namespace orrery {
namespace {

// The three vectors published with Random123 (kat_vectors, philox4x32 10).
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// Every bf16 and f16 value survives the way to f32 and back; halves of an f32 master join to the same bits.
TEST(HalfFloats, RoundTrips) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float wide = bf16_to_f32(static_cast<uint16_t>(bits));
    if (!std::isnan(wide)) {
      EXPECT_EQ(f32_to_bf16(wide), bits);
    }
    const float half = f16_to_f32(static_cast<uint16_t>(bits));
    if (!std::isnan(half)) {
      EXPECT_EQ(f32_to_f16(half), bits);
    }
  }
  for (uint32_t i = 0; i < 200000; ++i) {
    const uint32_t bits = philox4x32({i, 0, 0, 0}, {1, 2})[0];
    const float value = std::bit_cast<float>(bits);
    if (!std::isfinite(value) || std::abs(value) > 3.3e38f) continue;
    EXPECT_EQ(std::bit_cast<uint32_t>(join_master(master_high(value), master_low(value))), bits);
  }
}

// f32_to_f16 rounds to the nearest neighbour, ties to even: compared with a search over all halves.
TEST(HalfFloats, F16RoundsToNearest) {
  for (uint32_t i = 0; i < 2000; ++i) {
    const float value = (static_cast<float>(philox4x32({i, 1, 0, 0}, {3, 4})[0]) * 0x1p-32f - 0.5f) * std::exp2(static_cast<float>(i % 40) - 26);
    const uint16_t got = f32_to_f16(value);
    const float error = std::abs(f16_to_f32(got) - value);
    for (int delta : {-1, 1}) {
      const uint16_t neighbour = static_cast<uint16_t>(got + delta);
      if (((neighbour ^ got) & 0x8000) || std::isnan(f16_to_f32(neighbour))) continue;
      const float other = std::abs(f16_to_f32(neighbour) - value);
      EXPECT_TRUE(error < other || (error == other && !(got & 1))) << value;
    }
  }
}

// The portable functions agree with the C library's to the errors that their contracts state.
TEST(PortableMath, AgreesWithTheLibrary) {
  for (uint32_t i = 0; i < 100000; ++i) {
    const double u = philox4x32({i, 5, 0, 0}, {1, 1})[0] * 0x1p-32;
    const double positive = std::exp2(u * 80 - 40), exponent = u * 200 - 100, angle = (u - 0.5) * 2e6;
    EXPECT_NEAR(portable_log(positive), std::log(positive), 1e-15 * std::max(1.0, std::abs(std::log(positive))));
    EXPECT_NEAR(portable_exp(exponent) / std::exp(exponent), 1.0, 1e-14);
    EXPECT_NEAR(portable_sincos(angle).sin, std::sin(angle), 1e-11);
    EXPECT_NEAR(portable_sincos(angle).cos, std::cos(angle), 1e-11);
  }
}

// Each index of parallel_for is visited exactly once, for ragged counts and repeated runs.
TEST(ThreadPool, VisitsEachIndexOnce) {
  for (int num_threads : {1, 2, 3}) {
    ThreadPool pool(num_threads, false);
    for (int64_t count : {0, 1, 7, 64, 1001}) {
      std::vector<std::atomic<int>> visits(count);
      for (int repeat = 0; repeat < 20; ++repeat)
        pool.parallel_for(count, 16, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) visits[i].fetch_add(1);
        });
      for (auto& visit : visits) EXPECT_EQ(visit.load(), 20);
    }
  }
}

// A hint to read ahead changes nothing but time: workers read their parts while others work, say how far they are, for memory of which a
// worker has no part too, and let go of it at the first run after the next hint.
TEST(ThreadPool, ReadsAhead) {
  for (int num_threads : {1, 2, 3}) {
    ThreadPool pool(num_threads, false);
    for (int64_t num_units : {0, 1, 2, 40}) {
      auto memory = std::make_unique<std::vector<std::byte>>(static_cast<size_t>(num_units * 1000 + 64));
      pool.set_read_ahead({memory->data(), num_units, 1000});
      std::atomic<int> visits = 0;
      for (int repeat = 0; repeat < 20; ++repeat)
        pool.run([&](int thread_index, int) {
          const std::byte* part = memory->data() + num_units * thread_index / num_threads * 1000;
          EXPECT_LE(pool.read_ahead_bytes(thread_index, part), num_units * 1000);
          EXPECT_EQ(pool.read_ahead_bytes(thread_index, memory->data() + num_units * 1000 + 1), 0);
          if (thread_index == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
          ++visits;
        });
      EXPECT_EQ(visits, 20 * num_threads);
      pool.set_read_ahead({});
      pool.run([](int, int) {});
      memory.reset();
      pool.run([](int, int) {});
    }
  }
}

// Empty runs end before their workers have begun, so the caller takes parts and workers come late: every index is still visited exactly once a run.
TEST(ThreadPool, LateWorkersFindTheirPartDone) {
  ThreadPool pool(3, false);
  std::vector<std::atomic<int>> visits(3);
  for (int run = 0; run < 20000; ++run) {
    pool.run([&](int thread_index, int num_threads) {
      EXPECT_EQ(num_threads, 3);
      visits[static_cast<size_t>(thread_index)].fetch_add(1, std::memory_order_relaxed);
    });
    for (const auto& count : visits) ASSERT_EQ(count.load(std::memory_order_relaxed), run + 1);
  }
}

// A thread that asks for short turns has them, and short sleeps; its policy and its nice value stay.
TEST(TimeSlice, IsShortForTheThreadThatAsks) {
  std::thread([] {
    prefer_short_time_slices();
    EXPECT_EQ(::prctl(PR_GET_TIMERSLACK), 1000);
    EXPECT_EQ(::sched_getscheduler(0), SCHED_OTHER);
    EXPECT_EQ(::getpriority(PRIO_PROCESS, 0), ::getpriority(PRIO_PROCESS, static_cast<id_t>(::getpid())));
  }).join();
}

// An error carries its code, and each code has the exit status that the documentation promises.
TEST(Error, ExitStatus) {
  EXPECT_EQ(exit_status(ErrorCode::kInvalidConfig), 2);
  EXPECT_EQ(exit_status(ErrorCode::kIo), 3);
  EXPECT_EQ(exit_status(ErrorCode::kCorruptData), 4);
  EXPECT_EQ(exit_status(ErrorCode::kPeerLost), 5);
  EXPECT_EQ(exit_status(ErrorCode::kCancelled), 130);
  const Error error(ErrorCode::kIo, "cannot write {}", "x");
  EXPECT_STREQ(error.what(), "cannot write x");
}

// The first signal is a request that work meets between two pieces; the second does not wait for that.
TEST(StopSignals, TheFirstAsksAndTheSecondExits) {
  {
    const StopSignals signals;
    EXPECT_EQ(signals.requested(), 0);
    const StopRequested stop = [&] { return signals.requested() != 0; };
    throw_if_stopped({}, "never");
    throw_if_stopped(stop, "not yet");
    std::raise(SIGTERM);
    try {
      throw_if_stopped(stop, "nothing was written at x");
      ADD_FAILURE() << "it went on";
    } catch (const Error& error) {
      EXPECT_EQ(exit_status(error.code()), 130);
      EXPECT_STREQ(error.what(), "interrupted; nothing was written at x");
    }
    EXPECT_EQ(signals.requested(), SIGTERM);
    EXPECT_EXIT(std::raise(SIGINT), testing::ExitedWithCode(130), "");
  }
  const StopSignals again;
  EXPECT_EQ(again.requested(), 0);
}

}  // namespace
}  // namespace orrery
