// Proves, on ranks as threads: random operations of random sizes give what their definitions say, for 1 to 8 ranks on any number of
// cores and with segments so small that each path is reached; the sum's order is the lane tree's; counted bytes are planned bytes; a
// rank that is late, differs, or leaves is named within the deadline, and later calls fail at once.
#include "comm/communicator.h"

#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "comm/comm_suite.h"
#include "comm/futex.h"
#include "comm/local_transport.h"
#include "comm/watchdog.h"

namespace orrery {
namespace {

TEST(Communicator, RandomOperations) {
  for (const size_t segment : {size_t{16}, size_t{1000}, size_t{20000}})
    for (int num_ranks = 1; num_ranks <= 8; ++num_ranks) {
      const CommOptions options{.segment_bytes = static_cast<int64_t>(segment)};
      SCOPED_TRACE(fmt::format("segment {} ranks {}", segment, num_ranks));
      run_ranks(make_local_world(num_ranks, {.segment_bytes = static_cast<int64_t>(segment)}), options,
                [&](Communicator& comm) { comm_suite::random_operations(comm, segment + static_cast<size_t>(num_ranks), 60, segment); });
    }
}

TEST(Communicator, CountedBytesArePlanned) {
  for (const int num_ranks : {1, 2, 3, 5, 8}) run_local_ranks(num_ranks, {}, [](Communicator& comm) { comm_suite::counted_bytes(comm, 100'003); });
}

std::string failure_of(int num_ranks, const CommOptions& options, const std::function<void(Communicator&)>& body, ErrorCode code) {
  try {
    run_local_ranks(num_ranks, options, body);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no failure";
  return {};
}

TEST(Communicator, NamesTheLateRank) {
  const int64_t begin = monotonic_ns();
  const std::string message = failure_of(
      4, {.timeout_ms = 200},
      [](Communicator& comm) {
        comm.set_step(7);
        comm.barrier("BAR");
        if (comm.rank() == 2) {
          comm.set_activity("B1");
          std::this_thread::sleep_for(std::chrono::milliseconds(900));
        }
        std::vector<std::byte> all(400);
        comm.all_gather(std::span(all).subspan(0, 100), all, "AG3");
      },
      ErrorCode::kTimeout);
  EXPECT_NE(message.find("rank 2 is late"), std::string::npos) << message;
  EXPECT_NE(message.find("computes B1 of step 7"), std::string::npos) << message;
  EXPECT_NE(message.find("AG3 all_gather"), std::string::npos) << message;
  EXPECT_NE(message.find("communicator_test.cpp"), std::string::npos) << message;
  EXPECT_LT(monotonic_ns() - begin, 5'000'000'000);
}

TEST(Communicator, NamesTheRankThatDiffersInSize) {
  const std::string message = failure_of(
      4, {.timeout_ms = 2000},
      [](Communicator& comm) {
        std::vector<std::byte> all(comm.rank() == 1 ? 800 : 400);
        comm.all_gather(std::span(all).subspan(0, all.size() / 4), all, "AG3");
      },
      ErrorCode::kPeerLost);
  EXPECT_NE(message.find("rank 1"), std::string::npos) << message;
  EXPECT_NE(message.find("rank 1 names 200"), std::string::npos) << message;  // whichever end found it
}

TEST(Communicator, NamesTheRankInAnotherOperation) {
  const std::string message = failure_of(
      4, {.timeout_ms = 300},
      [](Communicator& comm) {
        std::vector<float> data(100);
        if (comm.rank() == 3)
          comm.barrier("BAR");
        else
          comm.all_reduce(std::as_writable_bytes(std::span(data)), DType::kF32, "AR1");
      },
      ErrorCode::kTimeout);
  EXPECT_NE(message.find("rank 3 differs from rank 0"), std::string::npos) << message;
}

TEST(Communicator, APostedReceiveDoesNotHideALateRank) {
  const std::string message = failure_of(
      2, {.timeout_ms = 200},
      [](Communicator& comm) {
        std::byte in[8], out[8] = {};
        Work early = comm.post_recv(in, 1 - comm.rank(), 5, "R1<0");
        if (comm.rank() == 1) {
          comm.set_activity("F3");
          std::this_thread::sleep_for(std::chrono::milliseconds(700));
        }
        comm.send(out, 1 - comm.rank(), 6, "S0>1");
      },
      ErrorCode::kTimeout);
  EXPECT_NE(message.find("rank 1 is late"), std::string::npos) << message;
  EXPECT_NE(message.find("computes F3"), std::string::npos) << message;
}

TEST(Communicator, ARankThatLeavesFailsTheOthersAtOnce) {
  const int64_t begin = monotonic_ns();
  std::atomic<int> num_failed{0};
  const std::string message = failure_of(
      3, {.timeout_ms = 60'000},
      [&](Communicator& comm) {
        comm.barrier("BAR");
        if (comm.rank() == 1) throw Error(ErrorCode::kIo, "disk full");
        try {
          comm.barrier("BAR");
        } catch (const Error&) {
          ++num_failed;
          EXPECT_THROW(comm.barrier("BAR"), Error);  // poisoned
        }
      },
      ErrorCode::kIo);
  EXPECT_EQ(message, "disk full");
  EXPECT_EQ(num_failed, 2);
  EXPECT_LT(monotonic_ns() - begin, 10'000'000'000);
}

TEST(Communicator, NothingIsAllocatedAfterTheFirstRound) {
  run_local_ranks(4, {}, [](Communicator& comm) {
    std::vector<float> data(50'000);
    const auto round = [&] {
      comm.all_reduce(std::as_writable_bytes(std::span(data)), DType::kF32, "AR");
      comm.barrier("BAR");
    };
    round();
    const int64_t before = comm.num_transport_allocations();
    comm.barrier("BAR");
    for (int i = 0; i < 50; ++i) round();
    comm.barrier("BAR");
    EXPECT_EQ(comm.num_transport_allocations(), before);
  });
}

// Where a launcher kills who is still leaving: the file goes first, for good, and the rings serve on.
TEST(FlightRecorder, CanGoBeforeItsRank) {
  const std::string path = testing::TempDir() + fmt::format("flight-dropped-{}.bin", getpid());
  {
    FlightRecorder recorder = FlightRecorder::create(path, 1);
    recorder.drop_file();
    EXPECT_NE(::access(path.c_str(), F_OK), 0);
    recorder.keep_file();
    recorder.ring(0).enter({CommOp::kSend, "S2>1", "engine.cpp", 12, 1, 7, 0, -1, 1, 5});
    EXPECT_EQ(recorder.ring(0).last(9).size(), 1u);
    const FlightRecorder next = FlightRecorder::create(path, 1);  // of the run that comes after
    recorder.drop_file();
    EXPECT_EQ(::access(path.c_str(), F_OK), 0);
  }
  EXPECT_NE(::access(path.c_str(), F_OK), 0);
}

TEST(FlightRecorder, OutlivesTheProcessAndIsRemovedAtACleanEnd) {
  const std::string path = testing::TempDir() + fmt::format("flight-{}.bin", getpid());
  {
    FlightRecorder recorder = FlightRecorder::create(path, 2);
    recorder.keep_file();  // as a killed process would
    FlightRing ring = recorder.ring(1);
    for (int i = 0; i < 300; ++i) ring.exit(ring.enter({CommOp::kSend, "S2>1", "engine.cpp", 12, i, 7, 0, -1, 1, 5}), FlightState::kDone);
    ring.enter({CommOp::kAllGather, "a label longer than its field", "a/path/to/some/source/file/engine.cpp", 12, 1, 7, 3, 9, -1, -1});
  }
  const FlightRecorder reader = FlightRecorder::open(path);
  const auto records = reader.ring(1).last(1000);
  ASSERT_EQ(records.size(), static_cast<size_t>(FlightRing::kNumEntries));
  EXPECT_EQ(records.back().label, "a label longer than its");
  EXPECT_EQ(records.back().state, FlightState::kRunning);
  EXPECT_EQ(records.back().group_sequence, 9);
  EXPECT_EQ(records[0].bytes, 300 - (FlightRing::kNumEntries - 1));
  EXPECT_EQ(records[0].peer, 1);
  ::unlink(path.c_str());
  run_local_ranks(2, {.flight_path = path}, [&](Communicator& comm) {
    comm.barrier("BAR");
    EXPECT_EQ(::access(path.c_str(), F_OK), 0);
    comm.barrier("BAR");
  });
  EXPECT_NE(::access(path.c_str(), F_OK), 0);
  EXPECT_THROW(run_local_ranks(2, {.flight_path = path}, [&](Communicator&) { throw Error(ErrorCode::kIo, "no"); }), Error);
  EXPECT_EQ(::access(path.c_str(), F_OK), 0);  // evidence
  ::unlink(path.c_str());
}

// A transport whose other rank is another process.
class ProcessTransport final : public ForwardingTransport {
 public:
  ProcessTransport(std::unique_ptr<Transport> inner, pid_t other) : ForwardingTransport(std::move(inner)), other_(other) {}
  int64_t process_id(int rank) const override { return rank == this->rank() ? ::getpid() : other_; }

 private:
  const pid_t other_;
};

// Beside a save ranks wait long for one that writes, but not for one that is stopped.
TEST(Communicator, ALongDeadlineEndsWhereARankIsStopped) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // where this test is ended from outside
    while (true) ::pause();
  }
  std::vector<std::unique_ptr<Transport>> endpoints = make_local_world(2);
  Communicator comm(std::make_unique<ProcessTransport>(std::move(endpoints[0]), child), {.timeout_ms = 50});
  std::byte room[16];
  CommLabel label("EDGE");
  const auto failure_after_ms = [&](Communicator& group) {
    const int64_t begin_ns = monotonic_ns();
    try {
      group.recv(room, 1, 3, label);
      ADD_FAILURE() << "received";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kTimeout);
      return std::pair((monotonic_ns() - begin_ns) / 1'000'000, std::string(error.what()));
    }
    return std::pair(int64_t{0}, std::string());
  };
  ::kill(child, SIGSTOP);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  label.timeout_ms = 20'000;
  const auto [stopped_ms, stopped] = failure_after_ms(comm);
  EXPECT_GE(stopped_ms, 50);
  EXPECT_NE(stopped.find("not done within 50 ms; rank 1 is lost"), std::string::npos) << stopped;
  EXPECT_NE(stopped.find("stopped"), std::string::npos) << stopped;
  ::kill(child, SIGCONT);
  ASSERT_EQ(::waitpid(child, &status, WCONTINUED), child);
  // One that runs has all of its time.
  label.timeout_ms = 400;
  std::vector<std::unique_ptr<Transport>> others = make_local_world(2);
  Communicator running(std::make_unique<ProcessTransport>(std::move(others[0]), child), {.timeout_ms = 50});
  const auto [running_ms, ran] = failure_after_ms(running);
  EXPECT_GE(running_ms, 400);
  EXPECT_NE(ran.find("not done within 400 ms"), std::string::npos) << ran;
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
}

}  // namespace
}  // namespace orrery
