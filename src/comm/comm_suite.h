// The tests that every transport passes, as functions of a Communicator: ranks as threads run them in communicator_test.cpp, ranks as
// processes in mpi_suite.cpp. Data are functions of (seed, rank, index), so each rank computes what it must receive.
#pragma once

#include <fmt/format.h>

#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "comm/communicator.h"

namespace orrery::comm_suite {

inline void require(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error("suite: " + what);
}

inline uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t x = a * 0x9E3779B97F4A7C15ull + b + 0x7F4A7C15ull;
  x ^= x >> 31;
  x *= 0xBF58476D1CE4E5B9ull;
  return x ^ (x >> 29);
}
inline std::byte byte_at(uint64_t seed, int rank, size_t i) { return static_cast<std::byte>(mix(mix(seed, static_cast<uint64_t>(rank)), i) >> 40); }
/// Values whose sums depend on the order: mantissas and exponents differ.
inline float float_at(uint64_t seed, int rank, size_t i) {
  const uint64_t bits = mix(mix(seed, static_cast<uint64_t>(rank) + 77), i);
  const float magnitude = static_cast<float>(1 << (bits & 15)) * 1e-3f;
  return (static_cast<float>((bits >> 20) & 0xFFFFF) / 524288.0f - 1.0f) * magnitude;
}

inline std::vector<std::byte> make_bytes(uint64_t seed, int rank, size_t count) {
  std::vector<std::byte> data(count);
  for (size_t i = 0; i < count; ++i) data[i] = byte_at(seed, rank, i);
  return data;
}
inline std::vector<float> make_floats(uint64_t seed, int rank, size_t count) {
  std::vector<float> data(count);
  for (size_t i = 0; i < count; ++i) data[i] = float_at(seed, rank, i);
  return data;
}

/// The lane tree by its definition, recursively: lanes [begin, begin + 2^level), each the sum of one float_at.
inline float tree_by_definition(uint64_t seed, int64_t begin, int level, size_t i) {
  if (level == 0) return float_at(seed, static_cast<int>(begin), i);
  return tree_by_definition(seed, begin, level - 1, i) + tree_by_definition(seed, begin + (int64_t{1} << (level - 1)), level - 1, i);
}
/// The tree over existing ranks only.
inline float rank_tree_by_definition(uint64_t seed, int num_ranks, int begin, int level, size_t i) {
  if (level == 0) return float_at(seed, begin, i);
  const int middle = begin + (1 << (level - 1));
  const float lower = rank_tree_by_definition(seed, num_ranks, begin, level - 1, i);
  return middle < num_ranks ? lower + rank_tree_by_definition(seed, num_ranks, middle, level - 1, i) : lower;
}

/// Sizes that reach each path: nothing, one, odd, a segment, one past it, many.
inline size_t draw_size(std::mt19937_64& random, size_t segment) {
  const size_t sizes[] = {0, 1, 3, 64, segment, segment + 1, 5 * segment + 7, random() % (8 * segment + 1)};
  return sizes[random() % std::size(sizes)];
}

inline void random_operation(Communicator& comm, std::mt19937_64& random, size_t segment) {
  const int n = comm.size(), rank = comm.rank();
  const uint64_t seed = random();
  const size_t size = draw_size(random, segment);
  const int root = static_cast<int>(random() % static_cast<uint64_t>(n));
  const uint64_t kind = random() % 11;
  const std::string what = fmt::format("kind {} size {} ranks {} rank {}", kind, size, n, rank);
  switch (kind) {
    case 0: comm.barrier("BAR"); break;
    case 1: {
      auto data = rank == root ? make_bytes(seed, root, size) : std::vector<std::byte>(size);
      comm.broadcast(data, root, "BC");
      require(data == make_bytes(seed, root, size), what);
      break;
    }
    case 2: {
      std::vector<std::byte> all(size * static_cast<size_t>(n));
      comm.all_gather(make_bytes(seed, rank, size), all, "AG");
      for (int peer = 0; peer < n; ++peer)
        require(std::vector<std::byte>(all.begin() + static_cast<long>(size) * peer, all.begin() + static_cast<long>(size) * (peer + 1)) == make_bytes(seed, peer, size), what);
      break;
    }
    case 3: {  // parts of different sizes, some empty
      std::vector<ElementRange> ranges;
      int64_t end = 0;
      for (int peer = 0; peer < n; ++peer) {
        const auto part = static_cast<int64_t>(draw_size(random, segment));
        ranges.push_back({end, end + part});
        end += part;
      }
      std::vector<std::byte> all(static_cast<size_t>(end));
      const auto mine = make_bytes(seed, rank, static_cast<size_t>(ranges[static_cast<size_t>(rank)].size()));
      std::copy(mine.begin(), mine.end(), all.begin() + ranges[static_cast<size_t>(rank)].begin);
      comm.all_gather_ranges(all, ranges, "AGV");
      for (int peer = 0; peer < n; ++peer) {
        const auto theirs = make_bytes(seed, peer, static_cast<size_t>(ranges[static_cast<size_t>(peer)].size()));
        require(std::equal(theirs.begin(), theirs.end(), all.begin() + ranges[static_cast<size_t>(peer)].begin), what);
      }
      break;
    }
    case 4: {
      std::vector<std::byte> out, in(size * static_cast<size_t>(n)), want;
      for (int peer = 0; peer < n; ++peer) {
        const auto to = make_bytes(mix(seed, static_cast<uint64_t>(peer)), rank, size), from = make_bytes(mix(seed, static_cast<uint64_t>(rank)), peer, size);
        out.insert(out.end(), to.begin(), to.end());
        want.insert(want.end(), from.begin(), from.end());
      }
      comm.all_to_all(out, in, "A2A");
      require(in == want, what);
      break;
    }
    case 5: {
      auto data = make_floats(seed, rank, size);
      comm.all_reduce(std::as_writable_bytes(std::span(data)), DType::kF32, "AR");
      int level = 0;
      while ((1 << level) < n) ++level;
      for (size_t i = 0; i < size; ++i) require(data[i] == rank_tree_by_definition(seed, n, 0, level, i), what);
      break;
    }
    case 6: {  // lanes held by few ranks, in subtrees of different sizes
      const int64_t lanes = 8;
      const ReductionPlan plan = contiguous_lanes_plan(n, lanes);
      std::vector<std::vector<float>> pieces;
      std::vector<const std::byte*> addresses;
      for (const LaneNode& node : plan.pieces[static_cast<size_t>(rank)]) {
        pieces.emplace_back(size);
        for (size_t i = 0; i < size; ++i) pieces.back()[i] = tree_by_definition(seed, node.first_lane, node.level, i);
      }
      for (const auto& piece : pieces) addresses.push_back(reinterpret_cast<const std::byte*>(piece.data()));
      std::vector<ElementRange> owners(static_cast<size_t>(n));
      equal_ranges(static_cast<int64_t>(size), 5, owners);
      const ElementRange own = owners[static_cast<size_t>(rank)];
      std::vector<float> result(static_cast<size_t>(own.size()));
      auto* output = reinterpret_cast<std::byte*>(result.data());
      comm.reduce_scatter(plan, DType::kF32, addresses, owners, {&output, 1}, "RS");
      for (size_t i = 0; i < result.size(); ++i) require(result[i] == tree_by_definition(seed, 0, 3, static_cast<size_t>(own.begin) + i), what);
      break;
    }
    case 7: {  // small integers, so that any order gives the sum
      std::vector<float> data(size);
      for (size_t i = 0; i < size; ++i) data[i] = static_cast<float>((static_cast<size_t>(rank) + 1) * (i % 1000));
      comm.all_reduce_fast(std::as_writable_bytes(std::span(data)), DType::kF32, "ARF");
      for (size_t i = 0; i < size; ++i) require(data[i] == static_cast<float>(static_cast<size_t>(n * (n + 1) / 2) * (i % 1000)), what);
      break;
    }
    case 8: {  // several receives in flight, sends in another order of tags
      const int next = (rank + 1) % n, previous = (rank - 1 + n) % n;
      std::vector<std::byte> in[3] = {std::vector<std::byte>(size), std::vector<std::byte>(size), std::vector<std::byte>(size)};
      Work works[6];
      for (int tag = 0; tag < 3; ++tag) works[tag] = comm.post_recv(in[tag], previous, tag, "R");
      std::vector<std::byte> out[3];
      for (int tag = 2; tag >= 0; --tag) {
        out[tag] = make_bytes(seed + static_cast<uint64_t>(tag), rank, size);
        works[3 + tag] = comm.post_send(out[tag], next, tag, "S");
      }
      while (!works[1].test()) {
      }
      for (Work& work : works) work.wait();
      for (int tag = 0; tag < 3; ++tag) require(in[tag] == make_bytes(seed + static_cast<uint64_t>(tag), previous, size), what);
      break;
    }
    case 9: {
      double sums[2] = {1.0 / (rank + 1), static_cast<double>(rank)};
      comm.all_reduce(std::as_writable_bytes(std::span(sums)), DType::kF64, "AR64");
      require(sums[1] == n * (n - 1) / 2.0, what);
      break;
    }
    case 10: {
      std::vector<uint16_t> data(size);
      for (size_t i = 0; i < size; ++i) data[i] = static_cast<uint16_t>(0x3F80);  // 1.0
      comm.all_reduce(std::as_writable_bytes(std::span(data)), DType::kBF16, "ARB");
      uint32_t bits;
      const auto sum = static_cast<float>(n);
      std::memcpy(&bits, &sum, 4);
      for (size_t i = 0; i < size; ++i) require(data[i] == bits >> 16, what);
      break;
    }
  }
}

inline void random_operations(Communicator& world, uint64_t seed, int count, size_t segment) {
  std::mt19937_64 random(seed);
  for (int i = 0; i < count; ++i) random_operation(world, random, segment);
  if (world.size() < 2) return;
  // Two groups at once, then a group of one.
  const auto half = world.split(world.rank() % 2, -world.rank(), "SPLIT");
  require(half->size() == (world.size() + (world.rank() % 2 == 0 ? 1 : 0)) / 2, "size of a half");
  require(half->world_rank(half->rank()) == world.rank(), "rank in a half");
  std::mt19937_64 half_random(seed + 1 + static_cast<uint64_t>(world.rank() % 2));
  for (int i = 0; i < count / 2; ++i) random_operation(*half, half_random, segment);
  const auto alone = world.split(world.rank(), 0, "SPLIT");
  std::mt19937_64 alone_random(seed + 3);
  for (int i = 0; i < 10; ++i) random_operation(*alone, alone_random, segment);
  require(world.split(-1, 0, "SPLIT") == nullptr, "no color, no group");
  world.barrier("END");
}

/// The bytes that were counted on each link are the plan's.
inline void counted_bytes(Communicator& comm, size_t count) {
  const int n = comm.size(), rank = comm.rank();
  const ReductionPlan plan = contiguous_lanes_plan(n, 8);
  std::vector<std::vector<float>> pieces(plan.pieces[static_cast<size_t>(rank)].size(), std::vector<float>(count));
  std::vector<const std::byte*> addresses;
  for (const auto& piece : pieces) addresses.push_back(reinterpret_cast<const std::byte*>(piece.data()));
  std::vector<ElementRange> owners(static_cast<size_t>(n));
  equal_ranges(static_cast<int64_t>(count), 4096, owners);
  std::vector<float> result(static_cast<size_t>(owners[static_cast<size_t>(rank)].size()));
  auto* output = reinterpret_cast<std::byte*>(result.data());
  comm.reset_counters();
  comm.reduce_scatter(plan, DType::kF32, addresses, owners, {&output, 1}, "RS0");
  for (int peer = 0; peer < n; ++peer) {
    require(comm.bytes_sent(peer) == 4 * plan.elements_sent(rank, peer, owners), "planned bytes sent");
    require(comm.bytes_received(peer) == 4 * plan.elements_sent(peer, rank, owners), "planned bytes received");
  }
}

}  // namespace orrery::comm_suite
