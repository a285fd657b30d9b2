// Proves, over a transport whose calls block until the test ends them: a rank that is inside such a call is reported once, soon after the call's
// deadline and not before it, with the peer that it waits for by name, whichever call it is; calls that come back are never reported, from any number of threads.
#include "comm/watchdog.h"

#include <gtest/gtest.h>

#include <chrono>
#include <latch>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/communicator.h"
#include "comm/futex.h"
#include "comm/local_transport.h"

namespace orrery {
namespace {

enum class Stuck { kPost, kTest, kWait, kEnd };

// A library that stops coming back, until `let_go`.
class StuckTransport final : public ForwardingTransport {
 public:
  StuckTransport(std::unique_ptr<Transport> inner, Stuck where, std::latch& let_go) : ForwardingTransport(std::move(inner)), where_(where), let_go_(let_go) {}
  ~StuckTransport() override { block_if(Stuck::kEnd); }
  Request* post_send(std::span<const std::byte> data, int peer, int64_t tag) override { return block_if(Stuck::kPost), inner_->post_send(data, peer, tag); }
  TransferStatus test(Request* request) override { return block_if(Stuck::kTest), inner_->test(request); }
  TransferStatus wait(Request* request, int64_t deadline_ns) override { return block_if(Stuck::kWait), inner_->wait(request, deadline_ns); }

 private:
  void block_if(Stuck here) const {
    if (here == where_) let_go_.wait();
  }
  const Stuck where_;
  std::latch& let_go_;
};

struct Reported {
  std::string report;
  int64_t after_ns = 0;
  int times = 0;
};

constexpr int64_t kTimeoutMs = 200;

// Rank 0 makes one call to rank 1, which computes; what the watchdog reports of it.
Reported report_of(Stuck where) {
  Reported reported;
  std::latch let_go(1);
  const auto recorder = std::make_shared<FlightRecorder>(FlightRecorder::create("", 2));
  std::vector<std::unique_ptr<Transport>> endpoints = make_local_world(2);
  Communicator late(std::move(endpoints[1]), {}, recorder, 1);
  late.set_step(7);
  late.set_activity("B1");
  const int64_t begin_ns = monotonic_ns();
  CommOptions options{.timeout_ms = kTimeoutMs};
  options.on_stuck = [&](std::string_view report) {
    reported = {std::string(report), monotonic_ns() - begin_ns, reported.times + 1};
    let_go.count_down();  // where a run's process ends
  };
  {
    Communicator stuck(std::make_unique<StuckTransport>(std::move(endpoints[0]), where, let_go), options, recorder, 0);
    stuck.set_step(7);
    const std::byte data[16] = {};
    std::byte room[16];
    switch (where) {
      case Stuck::kPost: static_cast<void>(stuck.post_send(data, 1, 3, "S0>1")); break;
      case Stuck::kTest: {
        Work work = stuck.post_recv(room, 1, 3, "R0<1");
        EXPECT_FALSE(work.test());
        break;
      }
      case Stuck::kWait: EXPECT_THROW(stuck.recv(room, 1, 3, "R0<1"), Error); break;
      case Stuck::kEnd: break;
    }
  }
  return reported;
}

TEST(Watchdog, ACallThatDoesNotComeBackIsReported) {
  for (const auto& [where, head] : {std::pair{Stuck::kPost, "rank 0 step 7 op S0>1 bytes 16 peer 1: "}, {Stuck::kTest, "rank 0 step 7 op R0<1 bytes 16 peer 1: "},
                                    {Stuck::kWait, "rank 0 step 7 op R0<1 bytes 16 peer 1: "}, {Stuck::kEnd, "rank 0 step -1 op END bytes 0 peer -1: "}}) {
    const Reported reported = report_of(where);
    EXPECT_EQ(reported.times, 1);
    EXPECT_TRUE(reported.report.starts_with(head)) << reported.report;
    EXPECT_NE(reported.report.find("does not come back; rank 1 is late"), std::string::npos) << reported.report;
    EXPECT_NE(reported.report.find("computes B1 of step 7"), std::string::npos) << reported.report;
    EXPECT_GE(reported.after_ns, kTimeoutMs * 1'000'000);
    EXPECT_LT(reported.after_ns, 10'000'000'000);
  }
}

// The deadline's own message comes first where the thread can speak for itself.
TEST(Watchdog, ACallThatComesBackAtItsDeadlineIsNot) {
  int num_reports = 0;
  CommOptions options{.timeout_ms = 1000};
  options.on_stuck = [&](std::string_view) { ++num_reports; };
  std::vector<std::unique_ptr<Transport>> endpoints = make_local_world(2);
  {
    Communicator comm(std::move(endpoints[0]), options);
    std::byte room[16];
    try {
      comm.recv(room, 1, 3, "R0<1");
      ADD_FAILURE() << "received";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kTimeout);
    }
  }
  EXPECT_EQ(num_reports, 0);
}

TEST(Watchdog, CallsOfManyThreads) {
  std::atomic<int> num_reports{0};
  std::latch reported(1);
  Watchdog watchdog(1, [&] {
    ++num_reports;
    reported.count_down();
  });
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 8; ++thread)
    threads.emplace_back([&] {
      for (int i = 0; i < 20'000; ++i) const Watchdog::Guard guard(watchdog, monotonic_ns() + 60'000'000'000);
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_reports, 0);
  const Watchdog::Guard guard(watchdog, monotonic_ns());
  reported.wait();
  EXPECT_EQ(num_reports, 1);
}

}  // namespace
}  // namespace orrery
