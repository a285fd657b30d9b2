// Proves, on ranks as threads: random operations of random sizes give what their definitions say, for 1 to 8 ranks on any number of
// cores and with segments so small that each path is reached; the sum's order is the lane tree's; counted bytes are planned bytes; a
// rank that is late, differs, or leaves is named within the deadline, and later calls fail at once.
#include "comm/communicator.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "comm/comm_suite.h"
#include "comm/futex.h"
#include "comm/local_transport.h"

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

}  // namespace
}  // namespace orrery
