// The collectives, written once over posted sends and receives. Every exchange is planned as ranges first; each contract with its
// steps and bytes stands in communicator.h.
#include "base/cpu_features.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "comm/comm_call.h"
#include "comm/tree_sum.h"

namespace orrery {
namespace {

template <typename Byte>
std::span<Byte> part(std::span<Byte> all, const ElementRange& range) {
  return all.subspan(static_cast<size_t>(range.begin), static_cast<size_t>(range.size()));
}

// How many segments a rank of a sum sends ahead of what its peers have added.
constexpr int64_t kSendWindows = 4;

}  // namespace

void Communicator::barrier(const CommLabel& label) {
  Call call(*this, CommOp::kBarrier, 0, label);
  for (int distance = 1; distance < size(); distance *= 2) {
    call.recv({}, (rank_ - distance + size()) % size());
    call.send({}, (rank_ + distance) % size());
    call.wait_all();
  }
  call.finish();
}

void Communicator::broadcast(std::span<std::byte> data, int root, const CommLabel& label) {
  Call call(*this, CommOp::kBroadcast, static_cast<int64_t>(data.size()), label);
  // Ranks counted from the root: r hears from r without its lowest set bit, and tells r + every lower bit.
  const int relative = (rank_ - root + size()) % size();
  int bit = 1;
  while (bit < size() && (relative & bit) == 0) bit *= 2;
  if (relative != 0) {
    call.recv(data, (relative - bit + root) % size());
    call.wait_all();
  }
  for (bit /= 2; bit >= 1; bit /= 2)
    if (relative + bit < size()) call.send(data, (relative + bit + root) % size());
  call.finish();
}

void Communicator::exchange(Call& call, std::span<const std::byte> out, std::span<const ElementRange> out_ranges, std::span<std::byte> in,
                            std::span<const ElementRange> in_ranges) {
  // Each rank starts with its successor, so that no rank is everybody's first.
  for (int distance = 1; distance < size(); ++distance) {
    const int from = (rank_ - distance + size()) % size();
    const ElementRange& range = in_ranges[static_cast<size_t>(from)];
    if (range.size() > 0) call.recv(part(in, range), from);
  }
  for (int distance = 1; distance < size(); ++distance) {
    const int to = (rank_ + distance) % size();
    const ElementRange& range = out_ranges[static_cast<size_t>(to)];
    if (range.size() > 0) call.send(part(out, range), to);
  }
  call.wait_all();
}

void Communicator::all_gather_ranges(std::span<std::byte> all, std::span<const ElementRange> ranges, const CommLabel& label) {
  ORRERY_CHECK(ranges.size() == members_.size(), "{} ranges, {} ranks", ranges.size(), size());
  Call call(*this, CommOp::kAllGather, static_cast<int64_t>(all.size()), label);
  std::fill(byte_ranges_.begin(), byte_ranges_.end(), ranges[static_cast<size_t>(rank_)]);
  exchange(call, all, byte_ranges_, all, ranges);
  call.finish();
}

void Communicator::all_gather(std::span<const std::byte> mine, std::span<std::byte> all, const CommLabel& label) {
  ORRERY_CHECK(mine.size() * members_.size() == all.size(), "{} bytes of each of {} ranks, {} bytes in all", mine.size(), size(), all.size());
  const auto bytes = static_cast<int64_t>(mine.size());
  for (int rank = 0; rank < size(); ++rank) ranges_[static_cast<size_t>(rank)] = {rank * bytes, (rank + 1) * bytes};
  std::byte* place = all.data() + rank_ * bytes;
  if (place != mine.data() && bytes > 0) std::memcpy(place, mine.data(), mine.size());
  all_gather_ranges(all, ranges_, label);
}

void Communicator::all_to_all_ranges(std::span<const std::byte> out, std::span<const ElementRange> out_ranges, std::span<std::byte> in,
                                     std::span<const ElementRange> in_ranges, const CommLabel& label) {
  ORRERY_CHECK(out_ranges.size() == members_.size() && in_ranges.size() == members_.size(), "ranges of {} ranks", size());
  // Ranks name different totals here, so the record has none: the report compares them.
  Call call(*this, CommOp::kAllToAll, 0, label);
  const ElementRange &own_out = out_ranges[static_cast<size_t>(rank_)], &own_in = in_ranges[static_cast<size_t>(rank_)];
  ORRERY_CHECK(own_out.size() == own_in.size(), "rank {} sends {} bytes to itself and wants {}", rank_, own_out.size(), own_in.size());
  if (own_out.size() > 0) std::memcpy(in.data() + own_in.begin, out.data() + own_out.begin, static_cast<size_t>(own_out.size()));
  exchange(call, out, out_ranges, in, in_ranges);
  call.finish();
}

void Communicator::all_to_all(std::span<const std::byte> out, std::span<std::byte> in, const CommLabel& label) {
  ORRERY_CHECK(out.size() == in.size() && out.size() % members_.size() == 0, "{} bytes out, {} in, {} ranks", out.size(), in.size(), size());
  const auto bytes = static_cast<int64_t>(out.size()) / size();
  for (int rank = 0; rank < size(); ++rank) ranges_[static_cast<size_t>(rank)] = {rank * bytes, (rank + 1) * bytes};
  all_to_all_ranges(out, ranges_, in, ranges_, label);
}

std::span<std::byte> Communicator::scratch() {
  if (shared_->transport->borrows_in_place()) return {};
  if (scratch_.empty()) scratch_.resize(static_cast<size_t>(shared_->options.scratch_bytes));
  return scratch_;
}

void Communicator::reduce(Call& call, const ReductionPlan& plan, DType dtype, std::span<const std::byte* const> pieces,
                          std::span<const ElementRange> owners, std::span<std::byte* const> outputs, std::span<const std::byte* const> carried) {
  ORRERY_CHECK(carried.size() == plan.carried.size(), "{} sums carried, {} given", plan.carried.size(), carried.size());
  ORRERY_CHECK(plan.num_ranks() == size() && owners.size() == members_.size() && outputs.size() == plan.outputs.size() &&
                   pieces.size() == plan.pieces[static_cast<size_t>(rank_)].size(),
               "plan of {} ranks and {} outputs for {} ranks, {} pieces, {} outputs", plan.num_ranks(), plan.outputs.size(), size(), pieces.size(), outputs.size());
  set_floating_point_mode();
  const VectorIsa isa = cpu_features().best_isa();
  const int64_t element_bytes = dtype_bytes(dtype);
  const auto num_sources = static_cast<int64_t>(plan.sources.size());
  // Two segments of every source are in flight: one arrives while the other is added. All ranks come to the same length.
  const std::span<std::byte> room = scratch();
  int64_t segment_bytes = shared_->options.segment_bytes;
  if (!room.empty()) segment_bytes = std::min(segment_bytes, static_cast<int64_t>(room.size()) / (2 * num_sources));
  const int64_t segment = std::max<int64_t>(1, segment_bytes / element_bytes);
  ORRERY_CHECK(room.empty() || segment * element_bytes * 2 * num_sources <= static_cast<int64_t>(room.size()), "scratch of {} bytes for {} sources", room.size(), num_sources);
  int64_t longest = 0;
  for (const ElementRange& range : owners) longest = std::max(longest, range.size());
  const int64_t num_segments = (longest + segment - 1) / segment;
  const ElementRange& own = owners[static_cast<size_t>(rank_)];

  // pending_ holds a slot for each source that this rank reads, in two windows, and for each transfer that it sends, in kSendWindows: a
  // send waits in its slot until its place is wanted again, so a rank may be that many segments behind before another one waits for it.
  const auto num_sends = static_cast<int64_t>(pieces.size()) * size();
  const auto receive_slot = [&](int64_t index) { return static_cast<size_t>(index % 2 * num_sources); };
  const auto send_slot = [&](int64_t index) { return static_cast<size_t>(2 * num_sources + index % kSendWindows * num_sends); };
  pending_.assign(static_cast<size_t>(2 * num_sources + kSendWindows * num_sends), {});
  const auto move_to_slot = [&](size_t slot, size_t posted) {
    pending_[slot] = pending_[posted];
    pending_.pop_back();
  };
  const auto post_receives = [&](int64_t index) {
    const int64_t count = std::min(segment, own.size() - index * segment);
    if (count <= 0) return;
    for (int64_t i = 0; i < num_sources; ++i) {
      const int from = plan.sources[static_cast<size_t>(i)].rank;
      if (from == rank_ || from == ReductionPlan::Source::kCarried) continue;
      std::byte* place = room.empty() ? nullptr : room.data() + (index % 2 * num_sources + i) * segment * element_bytes;
      move_to_slot(receive_slot(index) + static_cast<size_t>(i), call.borrow(count * element_bytes, place, from));
    }
  };
  const auto finish_sends = [&](int64_t index) {
    for (size_t slot = send_slot(index), end = slot + static_cast<size_t>(num_sends); slot < end; ++slot)
      if (pending_[slot].request != nullptr) {
        call.wait(slot);
        call.release(slot);
      }
  };
  const auto post_sends = [&](int64_t index) {
    finish_sends(index);
    // A rank's pieces travel in order of their number, which is the order of its sources by first lane.
    for (int distance = 1; distance < size(); ++distance) {
      const int to = (rank_ + distance) % size();
      const ElementRange& range = owners[static_cast<size_t>(to)];
      const int64_t count = std::min(segment, range.size() - index * segment);
      if (count <= 0) continue;
      for (size_t piece = 0; piece < pieces.size(); ++piece) {
        const std::byte* data = pieces[piece] + (range.begin + index * segment) * element_bytes;
        move_to_slot(send_slot(index) + piece * members_.size() + static_cast<size_t>(to), call.send({data, static_cast<size_t>(count * element_bytes)}, to));
      }
    }
  };
  const auto sum_segment = [&](int64_t index) {
    const int64_t count = std::min(segment, own.size() - index * segment);
    if (count <= 0) return;
    sum_sources_.resize(static_cast<size_t>(num_sources));
    for (int64_t i = 0; i < num_sources; ++i) {
      const ReductionPlan::Source& source = plan.sources[static_cast<size_t>(i)];
      const size_t slot = receive_slot(index) + static_cast<size_t>(i);
      if (source.rank == ReductionPlan::Source::kCarried) {
        sum_sources_[static_cast<size_t>(i)] = carried[static_cast<size_t>(source.piece)] + index * segment * element_bytes;
      } else if (source.rank == rank_) {
        sum_sources_[static_cast<size_t>(i)] = pieces[static_cast<size_t>(source.piece)] + (own.begin + index * segment) * element_bytes;
      } else {
        call.wait(slot);
        sum_sources_[static_cast<size_t>(i)] = call.borrowed(slot);
      }
    }
    for (size_t output = 0; output < outputs.size(); ++output)
      tree_sum(isa, dtype, plan.programs[output], sum_sources_, outputs[output] + index * segment * element_bytes, count);
    for (size_t slot = receive_slot(index), end = slot + static_cast<size_t>(num_sources); slot < end; ++slot)
      if (pending_[slot].request != nullptr) call.release(slot);
  };
  for (int64_t index = 0; index < std::min(kSendWindows, num_segments); ++index) post_sends(index);
  post_receives(0);
  for (int64_t index = 0; index < num_segments; ++index) {
    if (index + 1 < num_segments) post_receives(index + 1);
    sum_segment(index);
    if (index + kSendWindows < num_segments) post_sends(index + kSendWindows);
  }
  for (int64_t index = std::max<int64_t>(0, num_segments - kSendWindows); index < num_segments; ++index) finish_sends(index);
  pending_.clear();
}

void Communicator::reduce_scatter(const ReductionPlan& plan, DType dtype, std::span<const std::byte* const> pieces, std::span<const ElementRange> owners,
                                  std::span<std::byte* const> outputs, const CommLabel& label, std::span<const std::byte* const> carried) {
  Call call(*this, CommOp::kReduceScatter, owners.empty() ? 0 : owners.back().end * dtype_bytes(dtype), label);
  reduce(call, plan, dtype, pieces, owners, outputs, carried);
  call.finish();
}

void Communicator::all_reduce(std::span<std::byte> data, DType dtype, const CommLabel& label) {
  Call call(*this, CommOp::kAllReduce, static_cast<int64_t>(data.size()), label);
  if (size() > 1) {
    const int64_t element_bytes = dtype_bytes(dtype);
    equal_ranges(static_cast<int64_t>(data.size()) / element_bytes, 1, ranges_);
    const std::byte* piece = data.data();
    std::byte* output = data.data() + ranges_[static_cast<size_t>(rank_)].begin * element_bytes;
    reduce(call, rank_tree_, dtype, {&piece, 1}, ranges_, {&output, 1}, {});
    for (ElementRange& range : ranges_) range = {range.begin * element_bytes, range.end * element_bytes};
    std::fill(byte_ranges_.begin(), byte_ranges_.end(), ranges_[static_cast<size_t>(rank_)]);
    exchange(call, data, byte_ranges_, data, ranges_);
  }
  call.finish();
}

void Communicator::ring_reduce(Call& call, std::span<std::byte> data, DType dtype, std::span<const ElementRange> owners) {
  set_floating_point_mode();
  const VectorIsa isa = cpu_features().best_isa();
  const int64_t element_bytes = dtype_bytes(dtype);
  const int n = size(), next = (rank_ + 1) % n, previous = (rank_ - 1 + n) % n;
  const std::span<std::byte> room = scratch();
  int64_t segment = std::max<int64_t>(1, shared_->options.segment_bytes / element_bytes);
  if (!room.empty()) segment = std::min(segment, static_cast<int64_t>(room.size()) / element_bytes / 2);
  for (int step = 0; step < n - 1; ++step) {
    // In n - 1 steps a chunk passes every rank and ends at its owner.
    const ElementRange& out = owners[static_cast<size_t>((rank_ - 1 - step + n) % n)];
    const ElementRange& in = owners[static_cast<size_t>((rank_ - 2 - step + 2 * n) % n)];
    for (int64_t begin = out.begin; begin < out.end; begin += segment)
      call.send({data.data() + begin * element_bytes, static_cast<size_t>(std::min(segment, out.end - begin) * element_bytes)}, next);
    const auto borrow = [&](int64_t begin, int64_t parity) {
      return call.borrow(std::min(segment, in.end - begin) * element_bytes, room.empty() ? nullptr : room.data() + parity * segment * element_bytes, previous);
    };
    int64_t parity = 0;
    size_t arriving = in.size() > 0 ? borrow(in.begin, parity) : 0;
    for (int64_t begin = in.begin; begin < in.end; begin += segment) {
      const size_t current = arriving;
      parity ^= 1;
      if (begin + segment < in.end) arriving = borrow(begin + segment, parity);
      call.wait(current);
      add_into(isa, dtype, data.data() + begin * element_bytes, call.borrowed(current), std::min(segment, in.end - begin));
      call.release(current);
    }
    call.wait_all();
  }
}

void Communicator::ring_gather(Call& call, std::span<std::byte> data, int64_t element_bytes, std::span<const ElementRange> owners) {
  const int n = size(), next = (rank_ + 1) % n, previous = (rank_ - 1 + n) % n;
  for (int step = 0; step < n - 1; ++step) {
    const ElementRange& out = owners[static_cast<size_t>((rank_ - step + n) % n)];
    const ElementRange& in = owners[static_cast<size_t>((rank_ - 1 - step + n) % n)];
    if (in.size() > 0) call.recv(data.subspan(static_cast<size_t>(in.begin * element_bytes), static_cast<size_t>(in.size() * element_bytes)), previous);
    if (out.size() > 0) call.send(data.subspan(static_cast<size_t>(out.begin * element_bytes), static_cast<size_t>(out.size() * element_bytes)), next);
    call.wait_all();
  }
}

void Communicator::reduce_scatter_fast(std::span<std::byte> data, DType dtype, std::span<const ElementRange> owners, const CommLabel& label) {
  Call call(*this, CommOp::kReduceScatter, static_cast<int64_t>(data.size()), label);
  ring_reduce(call, data, dtype, owners);
  call.finish();
}

void Communicator::all_reduce_fast(std::span<std::byte> data, DType dtype, const CommLabel& label) {
  Call call(*this, CommOp::kAllReduce, static_cast<int64_t>(data.size()), label);
  equal_ranges(static_cast<int64_t>(data.size()) / dtype_bytes(dtype), 1, ranges_);
  ring_reduce(call, data, dtype, ranges_);
  ring_gather(call, data, dtype_bytes(dtype), ranges_);
  call.finish();
}

}  // namespace orrery
