// What each operation of the Communicator costs: latency of the small, bandwidth of the large, beside memcpy in the same run. Ranks are
// threads (`comm_bench --ranks 2`) or processes (under mpirun or mpiexec). GB/s counts the payload that each rank receives.
//   comm_bench [--ranks N] [--bytes N] [--segment BYTES]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/discovery.h"
#include "comm/futex.h"

namespace orrery {
namespace {

struct Row {
  const char* name;
  double received_bytes;  // by each rank
  std::function<void()> run;
};

double median_us(Communicator& comm, const std::function<void()>& run, int count) {
  std::vector<double> times;
  for (int i = 0; i < count; ++i) {
    comm.barrier("BAR");
    const int64_t begin = monotonic_ns();
    run();
    comm.barrier("BAR");  // until the slowest is done
    times.push_back(static_cast<double>(monotonic_ns() - begin) * 1e-3);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void measure(Communicator& comm, int64_t bytes) {
  const int n = comm.size(), rank = comm.rank();
  const int64_t count = bytes / 4 / n * n;
  bytes = count * 4;
  std::vector<float> data(static_cast<size_t>(count), 1.0f), other(static_cast<size_t>(count), 1.0f);
  const std::span<std::byte> all = std::as_writable_bytes(std::span(data)), copy = std::as_writable_bytes(std::span(other));
  const size_t part = static_cast<size_t>(bytes / n);
  const ReductionPlan plan = rank_tree_plan(n);
  std::vector<ElementRange> owners(static_cast<size_t>(n));
  equal_ranges(count, 1, owners);
  const double share = static_cast<double>(bytes) * (n - 1) / n;
  const std::byte* piece = all.data();
  std::byte* output = all.data() + owners[static_cast<size_t>(rank)].begin * 4;  // in place, as the ring
  const int next = (rank + 1) % n, previous = (rank - 1 + n) % n;
  const Row rows[] = {
      {"memcpy (no communication)", static_cast<double>(bytes), [&] { std::memcpy(copy.data(), all.data(), all.size()); }},
      {"send to the next, recv", static_cast<double>(bytes),
       [&] {
         Work in = comm.post_recv(copy, previous, 0, "R");
         Work out = comm.post_send(all, next, 0, "S");
         in.wait();
         out.wait();
       }},
      {"send 0 > 1 alone", rank == 1 ? static_cast<double>(bytes) : 0.0,
       [&] {
         if (rank == 0) comm.send(all, 1, 0, "S");
         if (rank == 1) comm.recv(copy, 0, 0, "R");
       }},
      {"all_gather", share, [&] { comm.all_gather(all.subspan(part * static_cast<size_t>(rank), part), all, "AG"); }},
      {"reduce_scatter f32, tree", share, [&] { comm.reduce_scatter(plan, DType::kF32, {&piece, 1}, owners, {&output, 1}, "RS"); }},
      {"reduce_scatter f32, ring", share, [&] { comm.reduce_scatter_fast(all, DType::kF32, owners, "RSF"); }},
      {"all_reduce f32, tree", 2 * share, [&] { comm.all_reduce(all, DType::kF32, "AR"); }},
      {"all_reduce f32, ring", 2 * share, [&] { comm.all_reduce_fast(all, DType::kF32, "ARF"); }},
      {"all_to_all", share, [&] { comm.all_to_all(all, copy, "A2A"); }},
      {"broadcast", static_cast<double>(bytes), [&] { comm.broadcast(all, 0, "BC"); }},
  };
  double barrier_us = 0;
  if (rank == 0) std::printf("%d ranks over %s, %.1f MiB\n", n, std::string(comm.transport_name()).c_str(), static_cast<double>(bytes) / (1 << 20));
  {
    std::vector<double> times;
    for (int i = 0; i < 20; ++i) {
      const int64_t begin = monotonic_ns();
      for (int k = 0; k < 50; ++k) comm.barrier("BAR");
      times.push_back(static_cast<double>(monotonic_ns() - begin) * 1e-3 / 50);
    }
    std::sort(times.begin(), times.end());
    barrier_us = times[10];
    if (rank == 0) std::printf("  %-28s %9.2f us\n", "barrier", barrier_us);
  }
  if (n > 1) {
    double word = 0;
    std::vector<double> times;
    for (int i = 0; i < 20; ++i) {
      const int64_t begin = monotonic_ns();
      for (int k = 0; k < 50; ++k) {
        const auto bytes_of_word = std::as_writable_bytes(std::span(&word, 1));
        if (rank == 0) comm.send(bytes_of_word, 1, 1, "PING"), comm.recv(bytes_of_word, 1, 2, "PONG");
        if (rank == 1) comm.recv(bytes_of_word, 0, 1, "PING"), comm.send(bytes_of_word, 0, 2, "PONG");
      }
      times.push_back(static_cast<double>(monotonic_ns() - begin) * 1e-3 / 100);
    }
    std::sort(times.begin(), times.end());
    if (rank == 0) std::printf("  %-28s %9.2f us one way\n", "send of 8 bytes", times[10]);
  }
  for (const Row& row : rows) {
    if (n == 1 && std::strncmp(row.name, "memcpy", 6) != 0) continue;
    std::fill(data.begin(), data.end(), 1.0f);  // rings add in place: keep the values finite
    const double us = median_us(comm, row.run, 15) - barrier_us;
    if (rank == (std::strncmp(row.name, "send 0", 6) == 0 ? 1 : 0)) std::printf("  %-28s %9.0f us %8.2f GB/s a rank\n", row.name, us, row.received_bytes / us * 1e-3), std::fflush(stdout);
    comm.barrier("BAR");
  }
}

}  // namespace
}  // namespace orrery

int main(int argc, char** argv) {
  using namespace orrery;
  int64_t bytes = 64 << 20;
  int num_ranks = 0;
  CommOptions options;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::string(argv[i]) == "--ranks") num_ranks = std::atoi(argv[i + 1]);
    if (std::string(argv[i]) == "--segment") options.segment_bytes = std::atoll(argv[i + 1]);
    if (std::string(argv[i]) == "--bytes") bytes = std::atoll(argv[i + 1]);
  }
  try {
    const RankEnvironment ranks = discover_ranks(num_ranks);
    if (ranks.kind == RankKind::kThreads) {
      run_local_ranks(ranks.world_size, options, [&](Communicator& comm) { measure(comm, bytes); });
    } else {
      Communicator comm(make_process_transport(ranks), options);
      measure(comm, bytes);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return exit_status(error.code());
  }
  return 0;
}
