// One rank of mpi_test.py: `mpi_suite openmpi|mpich MODE [FLIGHT_PATH]`. Mode `suite` runs the tests of every transport; the others make
// rank 1 misbehave in step 3 of a loop of collectives, or behind it, and the survivors end with their report on stderr and exit status 5.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

#include "base/error.h"
#include "comm/comm_suite.h"
#include "comm/communicator.h"
#include "comm/discovery.h"

namespace orrery {
namespace {

void misbehave(const std::string& mode, std::vector<std::byte>& all) {
  if (mode == "kill") ::kill(::getpid(), SIGKILL);
  if (mode == "stop") ::kill(::getpid(), SIGSTOP);
  if (mode == "slow") std::this_thread::sleep_for(std::chrono::seconds(6));
  if (mode == "size") all.resize(all.size() / 2);
}

void steps(Communicator& comm, const std::string& mode) {
  for (int64_t step = 0; step < 6; ++step) {
    std::vector<std::byte> all(4000 * static_cast<size_t>(comm.size()));
    comm.set_step(step);
    comm.set_activity("B1");
    if (comm.rank() == 1 && step == 3) misbehave(mode, all);
    const size_t part = all.size() / static_cast<size_t>(comm.size());
    comm.all_gather(std::span(all).subspan(0, part), all, "AG3");
    std::vector<float> data(5000, 1.0f);
    comm.all_reduce(std::as_writable_bytes(std::span(data)), DType::kF32, "AR1");
  }
}

int run(const std::string& library, const std::string& mode, const std::string& flight_path) {
  const RankEnvironment ranks = discover_ranks(/*ranks_option=*/0);
  if (!ranks.mpi || mpi_library_name(*ranks.mpi) != library) throw Error(ErrorCode::kInvalidConfig, "found {} where {} was to be", ranks.source, library);
  auto transport = make_process_transport(ranks);
  CommOptions options{.timeout_ms = mode == "suite" ? 60'000 : 2'000, .flight_path = flight_path};
  options.on_stuck = [](std::string_view report) {
    std::fprintf(stderr, "error: %s\n", std::string(report).c_str());
    ::_exit(exit_status(ErrorCode::kTimeout));
  };
  if (mode == "suite") {
    options.scratch_bytes = 1 << 20;
    options.segment_bytes = 4096;
  }
  Communicator comm(std::move(transport), options);
  try {
    if (mode == "suite") {
      comm_suite::random_operations(comm, 5, 80, 4096);
      comm_suite::counted_bytes(comm, 100'003);
    } else {
      steps(comm, mode);
      if (mode == "leave" && comm.rank() == 1) ::kill(::getpid(), SIGSTOP);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return exit_status(error.code());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    comm.abort(ErrorCode::kPeerLost, error.what());
    return 1;
  }
  if (comm.rank() == 0) std::printf("ok %d ranks over %s\n", comm.size(), std::string(comm.transport_name()).c_str());
  return 0;
}

}  // namespace
}  // namespace orrery

int main(int argc, char** argv) {
  try {
    if (argc == 3 && std::string(argv[1]) == "report") {
      std::printf("%s\n", orrery::post_mortem_report(argv[2]).c_str());
      return 0;
    }
    if (argc >= 3) return orrery::run(argv[1], argv[2], argc > 3 ? argv[3] : "");
  } catch (const orrery::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return orrery::exit_status(error.code());
  }
  std::fprintf(stderr, "usage: mpi_suite openmpi|mpich suite|none|kill|stop|slow|size|leave [FLIGHT_PATH] | mpi_suite report FLIGHT_PATH\n");
  return 2;
}
