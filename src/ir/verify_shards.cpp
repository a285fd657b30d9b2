#include "ir/verify_shards.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <set>

#include "ir/gradient_sums.h"
#include "ir/memory_map.h"

namespace orrery {
namespace {

class ShardVerifier {
 public:
  ShardVerifier(const std::vector<Schedule>& ranks, const ScheduleContext& context, const ScheduleGraph& graph, int32_t rank)
      : ranks_(ranks), context_(context), graph_(graph), rank_(rank), mine_(ranks[static_cast<size_t>(rank)]), uses_(context.unit_uses[static_cast<size_t>(rank)]) {}

  std::vector<std::string> run() {
    if (!mine_.rounds.empty()) {
      check_round_sums();
      check_reductions();
    }
    check_gathers();
    return std::move(problems_);
  }

 private:
  template <typename... Args>
  void problem(fmt::format_string<Args...> format, Args&&... args) {
    problems_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  const Action& action(int32_t index) const { return mine_.actions[static_cast<size_t>(index)]; }
  std::string name(int32_t index) const { return graph_.name({rank_, index}); }
  bool ordered(int32_t first, int32_t second) const { return graph_.before(graph_.end({rank_, first}), graph_.start({rank_, second})); }
  LaneRange lanes(int32_t rank) const { return context_.lanes.empty() ? LaneRange{0, ranks_[static_cast<size_t>(rank)].lanes} : context_.lanes[static_cast<size_t>(rank)]; }
  static bool computes_batch(ActionKind kind) {
    return kind == ActionKind::kForward || kind == ActionKind::kBackward || kind == ActionKind::kBackwardInput || kind == ActionKind::kBackwardWeight;
  }

  const std::vector<UnitUse>& uses_of(const Action& one) const {
    static const std::vector<UnitUse> kNone;
    const auto phase = phase_of_action(one.kind);
    return phase ? uses_.blocks[Stage::block_index(*phase, one.chunk)] : kNone;
  }
  std::vector<int32_t> group_of(const Action& one) const {
    if (context_.group) return context_.group(rank_, one);
    std::vector<int32_t> all(ranks_.size());
    std::iota(all.begin(), all.end(), 0);
    return all;
  }

  // What a slot of unit gradients holds: from the first op that writes a unit's sum of a round to the RS that sends it away.
  struct GradientSlot {
    int32_t unit = -1, round = -1;
    std::optional<uint64_t> sum;       // nothing: of no sequences
    int32_t writer = -1, last_op = 0;  // wrote last; -1: nothing is in the slot
    std::vector<int32_t> reductions;   // all of them, in order
    size_t num_reduced = 0;
  };

  void check_round_sums() {
    std::map<int32_t, GradientSlot> slots;
    for (int32_t index = 0; index < static_cast<int32_t>(mine_.actions.size()); ++index)
      if (action(index).kind == ActionKind::kReduceScatterGradients) slots[uses_.gradient_slot[static_cast<size_t>(action(index).unit)]].reductions.push_back(index);
    for (int32_t index = 0; index < static_cast<int32_t>(mine_.actions.size()); ++index) {
      const Action& one = action(index);
      if (!computes_batch(one.kind)) continue;
      for (const UnitUse& use : uses_of(one))
        if (use.writes && !write_unit(index, use, slots[uses_.gradient_slot[static_cast<size_t>(use.unit)]])) return;
    }
    for (auto& [number, slot] : slots)
      if (slot.writer >= 0 && !send_away(slot)) return;
    for (const auto& [number, slot] : slots)
      if (slot.num_reduced < slot.reductions.size()) return problem("{} finds no gradients", name(slot.reductions[slot.num_reduced]));
  }

  bool write_unit(int32_t index, const UnitUse& use, GradientSlot& slot) {
    const Action& one = action(index);
    const MicroBatch& batch = mine_.micro_batches[static_cast<size_t>(one.micro_batch)];
    const bool goes_on = slot.writer >= 0 && slot.writer != index && slot.unit == use.unit && slot.round == batch.round;
    if (!goes_on) {
      if (slot.writer >= 0 && !send_away(slot)) return false;
      if (slot.num_reduced > 0) {
        const int32_t before = slot.reductions[slot.num_reduced - 1];
        if (!graph_.before(graph_.end({rank_, before}), graph_.before_op({rank_, index}, use.first_op))) {
          problem("{} does not wait for {}, whose place it takes", name(index), name(before));
          return false;
        }
      }
      slot.sum.reset();
    }
    if (batch.num_sequences > 0) {
      if (one.add_to_destination != slot.sum.has_value()) {
        problem("{} {}", name(index), one.add_to_destination ? "adds to gradients that are not there" : "overwrites gradients that were not reduced");
        return false;
      }
      std::vector<uint64_t> addends;
      for (int64_t i = 0; i < batch.num_sequences; ++i) addends.push_back(sequence_hash(batch.batch_sequence + i));
      slot.sum = folded_sum(one, slot.sum.value_or(0), addends);
      if (!slot.sum) {
        problem("{} does not fold its {} sequences into one sum", name(index), batch.num_sequences);
        return false;
      }
    }
    slot.unit = use.unit, slot.round = batch.round, slot.writer = index, slot.last_op = use.last_op;
    return true;
  }

  // The next RS of the slot is of what is there, comes behind it, and finds the node that this rank brings.
  bool send_away(GradientSlot& slot) {
    if (slot.num_reduced == slot.reductions.size()) {
      problem("{} writes gradients of unit {} that are not reduced", name(slot.writer), slot.unit);
      return false;
    }
    const int32_t index = slot.reductions[slot.num_reduced++];
    const Action& one = action(index);
    const std::vector<int32_t> group = group_of(one);
    const auto member = static_cast<size_t>(std::find(group.begin(), group.end(), rank_) - group.begin());
    const ReductionRound& round = mine_.rounds[static_cast<size_t>(one.round)];
    const LaneRange piece = member < round.pieces.size() ? round.pieces[member] : LaneRange{};
    std::optional<uint64_t> wanted;
    if (piece.count > 0) wanted = lane_tree_hash(piece.first, piece.count, mine_.sequences_per_lane);
    const bool right = one.unit == slot.unit && one.round == slot.round && round.pieces.size() == group.size() && slot.sum == wanted;
    const bool behind = graph_.before(graph_.behind_op({rank_, slot.writer}, slot.last_op), graph_.start({rank_, index}));
    if (!right) problem("{} does not find the sum over lanes [{}, {}) in its slot", name(index), piece.first, piece.first + piece.count);
    else if (!behind) problem("{} does not wait for {}", name(index), name(slot.writer));
    slot.writer = -1;
    return right && behind;
  }

  static bool are_halves(const LaneRange& lower, const LaneRange& upper) {
    return lower.count == upper.count && lower.first % (2 * lower.count) == 0 && lower.first + lower.count == upper.first;
  }

  // What owners keep: each unit is reduced once a round, in order; a round's sums are those of the round before and its pieces, halves of nodes
  // joined; at the end they are the lanes of the group, and where shards have replicas AR joins those. All this before the norm is taken.
  void check_reductions() {
    std::map<int32_t, std::vector<int32_t>> rounds;  // by unit: its reductions
    std::map<int32_t, int32_t> replicas;             // by unit: its AR
    int32_t update = -1;
    for (int32_t index = 0; index < static_cast<int32_t>(mine_.actions.size()); ++index) {
      const Action& one = action(index);
      if (one.kind == ActionKind::kReduceScatterGradients) rounds[one.unit].push_back(index);
      if (one.kind == ActionKind::kAllReduceGradients && !replicas.try_emplace(one.unit, index).second) problem("{} comes twice", name(index));
      if (update < 0 && (one.kind == ActionKind::kNorm || one.kind == ActionKind::kOptimizer)) update = index;
    }
    std::vector<ShardSum> sums;
    for (size_t j = 0; j < mine_.rounds.size(); ++j) {
      if (mine_.rounds[j].before != sums) return problem("rank {} round {} begins with other sums than the round before leaves", rank_, j);
      std::vector<LaneRange> nodes;
      for (const ShardSum& sum : sums) nodes.push_back(sum.lanes);
      for (const LaneRange& piece : mine_.rounds[j].pieces)
        if (piece.count > 0) nodes.push_back(piece);
      for (size_t i = 0; i + 1 < nodes.size();)
        if (are_halves(nodes[i], nodes[i + 1])) {
          nodes[i].count *= 2;
          nodes.erase(nodes.begin() + static_cast<ptrdiff_t>(i) + 1);
          i -= i > 0;
        } else {
          ++i;
        }
      sums = mine_.rounds[j].after;
      std::set<int32_t> buffers;
      bool right = sums.size() == nodes.size();
      for (size_t i = 0; right && i < sums.size(); ++i) right = sums[i].lanes == nodes[i] && sums[i].buffer >= 0 && sums[i].buffer < mine_.num_shard_sums && buffers.insert(sums[i].buffer).second;
      // A sum that only stays, or that pieces join, stays where it is.
      for (const ShardSum& kept : mine_.rounds[j].before)
        for (const ShardSum& sum : sums) right = right && (kept.lanes.first != sum.lanes.first || kept.buffer == sum.buffer);
      if (!right) return problem("rank {} round {} does not end with the largest nodes of the lane tree that it completes", rank_, j);
    }
    const LaneRange held = lanes(rank_);
    int64_t lane = held.first;
    for (const ShardSum& sum : sums) lane = sum.lanes.first == lane ? lane + sum.lanes.count : -1;
    if (sums.empty() || sums.front().buffer != 0 || lane != held.first + held.count)
      return problem("rank {}: the sums in its shards are not those of lanes [{}, {})", rank_, held.first, held.first + held.count);
    const auto num_units = static_cast<int32_t>(uses_.gradient_slot.size());
    for (int32_t unit = 0; unit < num_units; ++unit) {
      const std::vector<int32_t>& reductions = rounds[unit];
      bool right = reductions.size() == mine_.rounds.size();
      for (size_t j = 0; right && j < reductions.size(); ++j) right = action(reductions[j]).round == static_cast<int32_t>(j);
      if (!right) return problem("rank {} does not reduce unit {} once in each of {} rounds, in their order", rank_, unit, mine_.rounds.size());
      for (int32_t other : group_of(action(reductions.front())))
        if (ranks_[static_cast<size_t>(other)].rounds != mine_.rounds) return problem("ranks {} and {} of a shard group have different rounds", rank_, other);
      int32_t last = reductions.back();
      if (held.count < mine_.lanes) {
        const auto found = replicas.find(unit);
        if (found == replicas.end()) return problem("rank {} never joins its sums of unit {} with those of the other lanes", rank_, unit);
        if (!ordered(last, found->second)) return problem("{} does not wait for {}", name(found->second), name(last));
        last = found->second;
        int64_t next = 0;
        for (int32_t other : group_of(action(last))) next = lanes(other).first == next ? next + lanes(other).count : -1;
        if (next != mine_.lanes) return problem("{}: the lanes of its ranks are not all lanes in order", name(last));
      }
      if (!ordered(last, update)) return problem("{} does not wait for {}", name(update), name(last));
    }
  }

  // From the end of its AG or EP, and before the next one of the slot, ops may read a unit's weights there.
  void check_gathers() {
    struct Slot {
      std::vector<int32_t> gathers;
      size_t next = 0;  // the first that has not ended when what is looked at starts
    };
    std::map<int32_t, Slot> slots;
    for (int32_t index = 0; index < static_cast<int32_t>(mine_.actions.size()); ++index)
      if (const Action& one = action(index); one.kind == ActionKind::kAllGatherParameters || one.kind == ActionKind::kFetchParameters) {
        const int32_t slot = uses_.weight_slot[static_cast<size_t>(one.unit)];
        if (slot >= 0) slots[slot].gathers.push_back(index);
      }
    for (int32_t index = 0; index < static_cast<int32_t>(mine_.actions.size()); ++index) {
      const Action& one = action(index);
      if (!computes_batch(one.kind)) continue;
      for (const UnitUse& use : uses_of(one)) {
        if (use.writes) continue;
        Slot& slot = slots[uses_.weight_slot[static_cast<size_t>(use.unit)]];
        const int32_t begins = graph_.before_op({rank_, index}, use.first_op), ends = graph_.behind_op({rank_, index}, use.last_op);
        while (slot.next < slot.gathers.size() && graph_.before(graph_.end({rank_, slot.gathers[slot.next]}), begins)) ++slot.next;
        if (slot.next == 0 || action(slot.gathers[slot.next - 1]).unit != use.unit) return problem("{} reads weights of unit {} that are not gathered", name(index), use.unit);
        if (slot.next < slot.gathers.size() && !graph_.before(ends, graph_.start({rank_, slot.gathers[slot.next]})))
          return problem("{} takes the place of weights that {} may still read", name(slot.gathers[slot.next]), name(index));
      }
    }
  }

  const std::vector<Schedule>& ranks_;
  const ScheduleContext& context_;
  const ScheduleGraph& graph_;
  const int32_t rank_;
  const Schedule& mine_;
  const UnitUses& uses_;
  std::vector<std::string> problems_;
};

}  // namespace

std::vector<std::string> verify_shards(const std::vector<Schedule>& ranks, const ScheduleContext& context, const ScheduleGraph& graph, int32_t rank) {
  return ShardVerifier(ranks, context, graph, rank).run();
}

}  // namespace orrery
