#include "ir/verify_schedules.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <numeric>
#include <optional>
#include <set>

#include "ir/gradient_sums.h"
#include "ir/memory_map.h"

namespace orrery {
namespace {

constexpr size_t kMaxProblems = 20;

bool is_compute_of_batch(ActionKind kind) {
  return kind == ActionKind::kForward || kind == ActionKind::kBackward || kind == ActionKind::kBackwardInput || kind == ActionKind::kBackwardWeight;
}
bool belongs_to_batch(ActionKind kind) { return is_compute_of_batch(kind) || is_boundary_message(kind); }

// Where the actions of one micro-batch on one chunk stand in the rank's list; -1: none.
struct BatchActions {
  std::array<int32_t, 8> index;
  BatchActions() { index.fill(-1); }
  static size_t place(ActionKind kind) {
    switch (kind) {
      case ActionKind::kForward: return 0;
      case ActionKind::kBackward: return 1;
      case ActionKind::kBackwardInput: return 2;
      case ActionKind::kBackwardWeight: return 3;
      case ActionKind::kRecvActivation: return 4;
      case ActionKind::kSendActivation: return 5;
      case ActionKind::kRecvGradient: return 6;
      default: return 7;
    }
  }
  int32_t& operator[](ActionKind kind) { return index[place(kind)]; }
  int32_t operator[](ActionKind kind) const { return index[place(kind)]; }
  int32_t input_gradient() const { return std::max(index[1], index[2]); }   // B or I
  int32_t weight_gradient() const { return std::max(index[1], index[3]); }  // B or W
};

class SetVerifier {
 public:
  SetVerifier(const std::vector<Schedule>& ranks, const ScheduleContext& context) : ranks_(ranks), context_(context) {}

  std::vector<std::string> run() {
    for (int32_t rank = 0; rank < num_ranks(); ++rank) check_fields(rank);
    if (!problems_.empty()) return std::move(problems_);  // what follows indexes by these fields
    const ScheduleGraph graph(ranks_, context_);
    graph_ = &graph;
    for (const std::string& text : graph.problems()) problem("{}", text);
    if (const std::string cycle = graph.cycle(); !cycle.empty()) problem("these wait for each other: {}", cycle);
    for (int32_t rank = 0; rank < num_ranks(); ++rank) {
      index_batches(rank);
      check_optimizer(rank);
    }
    if (!problems_.empty()) return std::move(problems_);  // order can be asked for only where there is one
    for (int32_t rank = 0; rank < num_ranks(); ++rank) {
      for (const auto& [key, batch] : batches_[static_cast<size_t>(rank)]) check_batch(rank, key.first, key.second, batch);
      check_slots(rank);
      if (schedule(rank).rounds.empty()) {
        for (int32_t chunk = 0; chunk < num_chunks(rank); ++chunk) check_sums(rank, chunk);
      } else {
        check_round_sums(rank);
        check_reductions(rank);
        check_gathers(rank);
      }
    }
    return std::move(problems_);
  }

 private:
  using BatchKey = std::pair<int32_t, int32_t>;  // (chunk, micro-batch)

  template <typename... Args>
  void problem(fmt::format_string<Args...> format, Args&&... args) {
    if (problems_.size() < kMaxProblems) problems_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  int32_t num_ranks() const { return static_cast<int32_t>(ranks_.size()); }
  const Schedule& schedule(int32_t rank) const { return ranks_[static_cast<size_t>(rank)]; }
  const Action& action(int32_t rank, int32_t index) const { return schedule(rank).actions[static_cast<size_t>(index)]; }
  int32_t num_chunks(int32_t rank) const { return static_cast<int32_t>(schedule(rank).stage_of_chunk.size()); }
  int32_t stage(int32_t rank, int32_t chunk) const { return schedule(rank).stage_of_chunk[static_cast<size_t>(chunk)]; }
  std::string name(int32_t rank, int32_t index) const { return fmt::format("rank {} {}", rank, to_string(action(rank, index), schedule(rank))); }
  std::optional<int32_t> chunk_of_stage(int32_t rank, int32_t wanted) const {
    const auto& stages = schedule(rank).stage_of_chunk;
    const auto found = std::find(stages.begin(), stages.end(), wanted);
    if (found == stages.end()) return std::nullopt;
    return static_cast<int32_t>(found - stages.begin());
  }
  // The end of one action comes before the start of another; -1 stands for an action that does not exist and constrains nothing.
  bool ordered(int32_t rank, int32_t first, int32_t second) const {
    if (first < 0 || second < 0) return true;
    if (is_compute_of_batch(action(rank, first).kind) && is_compute_of_batch(action(rank, second).kind)) return first < second;
    return graph_->before(graph_->end({rank, first}), graph_->start({rank, second}));
  }

  void check_fields(int32_t rank) {
    const Schedule& mine = schedule(rank);
    if (static_cast<int32_t>(mine.num_slots.size()) != num_chunks(rank)) problem("rank {} counts slots of {} chunks, it has {}", rank, mine.num_slots.size(), num_chunks(rank));
    if (static_cast<int32_t>(mine.num_gradient_buffers.size()) != num_chunks(rank) || static_cast<int32_t>(mine.piece_buffers.size()) != num_chunks(rank))
      problem("rank {} counts gradient buffers of {} chunks, sums of {}; it has {}", rank, mine.num_gradient_buffers.size(), mine.piece_buffers.size(), num_chunks(rank));
    for (int32_t held : mine.stage_of_chunk)
      if (held < 0 || held >= context_.num_stages) problem("rank {} holds stage {} of {}", rank, held, context_.num_stages);
    if (!mine.rounds.empty() && static_cast<size_t>(rank) >= context_.unit_uses.size()) problem("rank {} reduces unit by unit, its units are not known", rank);
    for (const MicroBatch& batch : mine.micro_batches)
      if (!mine.rounds.empty() && (batch.round < 0 || batch.round >= static_cast<int32_t>(mine.rounds.size()))) problem("rank {} has a micro-batch of round {} of {}", rank, batch.round, mine.rounds.size());
    if (!problems_.empty()) return;
    for (size_t index = 0; index < mine.actions.size(); ++index) {
      const Action& one = mine.actions[index];
      if (one.chunk < 0 || one.chunk >= num_chunks(rank)) {
        problem("rank {} action {} names chunk {} of {}", rank, index, one.chunk, num_chunks(rank));
        continue;
      }
      const std::string called = name(rank, static_cast<int32_t>(index));
      if (belongs_to_batch(one.kind)) {
        if (one.micro_batch < 0 || one.micro_batch >= static_cast<int32_t>(mine.micro_batches.size())) problem("{} names a micro-batch that is not there", called);
        if (one.slot < 0 || one.slot >= mine.num_slots[static_cast<size_t>(one.chunk)])
          problem("{} uses slot {}, its chunk has {}", called, one.slot, mine.num_slots[static_cast<size_t>(one.chunk)]);
      }
      if (stream_of(one.kind) == Stream::kPoint && (one.peer < 0 || one.peer >= num_ranks() || one.peer == rank)) problem("{} names rank {} as its peer", called, one.peer);
      const int32_t num_buffers = mine.num_gradient_buffers[static_cast<size_t>(one.chunk)];
      if (stream_of(one.kind) == Stream::kCompute && one.kind != ActionKind::kOptimizer && (one.gradient_buffer < 0 || one.gradient_buffer >= num_buffers))
        problem("{} names gradient buffer {} of {}", called, one.gradient_buffer, num_buffers);
      if (is_sharded(rank, one) && (one.unit < 0 || one.unit >= static_cast<int32_t>(context_.unit_uses[static_cast<size_t>(rank)].gradient_slot.size())))
        problem("{} names a unit that is not there", called);
      if (!mine.rounds.empty() && one.kind == ActionKind::kReduceScatterGradients && (one.round < 0 || one.round >= static_cast<int32_t>(mine.rounds.size())))
        problem("{} names round {} of {}", called, one.round, mine.rounds.size());
      if (one.kind == ActionKind::kMerge && (one.source_buffer < 0 || one.source_buffer >= num_buffers || one.source_buffer == one.gradient_buffer))
        problem("{} adds from gradient buffer {} of {}", called, one.source_buffer, num_buffers);
    }
  }

  // Whether the action gathers or reduces a unit in a slot.
  bool is_sharded(int32_t rank, const Action& one) const {
    return !schedule(rank).rounds.empty() && (one.kind == ActionKind::kReduceScatterGradients || one.kind == ActionKind::kAllGatherParameters || one.kind == ActionKind::kAllReduceGradients);
  }

  void index_batches(int32_t rank) {
    auto& batches = batches_.emplace_back();
    const Schedule& mine = schedule(rank);
    for (int32_t index = 0; index < static_cast<int32_t>(mine.actions.size()); ++index) {
      const Action& one = action(rank, index);
      if (!belongs_to_batch(one.kind)) continue;
      int32_t& place = batches[{one.chunk, one.micro_batch}][one.kind];
      if (place >= 0) problem("{} comes twice", name(rank, index));
      place = index;
    }
    for (int32_t chunk = 0; chunk < num_chunks(rank); ++chunk)
      for (int32_t batch = 0; batch < static_cast<int32_t>(mine.micro_batches.size()); ++batch) {
        const BatchActions& found = batches[{chunk, batch}];
        const bool whole = found[ActionKind::kBackward] >= 0;
        const bool split = found[ActionKind::kBackwardInput] >= 0 && found[ActionKind::kBackwardWeight] >= 0;
        const bool part = found[ActionKind::kBackwardInput] >= 0 || found[ActionKind::kBackwardWeight] >= 0;
        if (found[ActionKind::kForward] < 0) problem("rank {} stage {} does not run micro-batch {} forward", rank, stage(rank, chunk), batch);
        if (!(whole && !part) && !(split && !whole)) problem("rank {} stage {} runs micro-batch {} not once backward, as B or as I and W", rank, stage(rank, chunk), batch);
      }
  }

  void check_optimizer(int32_t rank) {
    int32_t count = 0;
    bool last = false;
    for (const Action& one : schedule(rank).actions) {
      if (stream_of(one.kind) != Stream::kCompute) continue;
      last = one.kind == ActionKind::kOptimizer;
      count += last;
    }
    if (count != 1 || !last) problem("rank {} has {} OPT; wanted one, as its last compute action", rank, count);
  }

  void check_batch(int32_t rank, int32_t chunk, int32_t batch, const BatchActions& found) {
    const int32_t held = stage(rank, chunk);
    const int32_t forward = found[ActionKind::kForward], input = found.input_gradient(), weight = found.weight_gradient();
    int32_t slot = action(rank, forward).slot;
    for (int32_t index : found.index)
      if (index >= 0 && action(rank, index).slot != slot) problem("{} uses slot {}, the forward of its micro-batch slot {}", name(rank, index), action(rank, index).slot, slot);
    if (input < forward) problem("{} comes before {}", name(rank, input), name(rank, forward));
    if (weight < input) problem("{} comes before {}", name(rank, weight), name(rank, input));
    neighbour(rank, batch, held - 1, forward, found[ActionKind::kRecvActivation], ActionKind::kForward);
    neighbour(rank, batch, held + 1, input, found[ActionKind::kRecvGradient], ActionKind::kBackward);
    sent(rank, forward, found[ActionKind::kSendActivation], held + 1);
    sent(rank, input, found[ActionKind::kSendGradient], held - 1);
    // The gradient lands in the slot, which is this micro-batch's from its forward on.
    if (found[ActionKind::kRecvGradient] >= 0 && !ordered(rank, forward, found[ActionKind::kRecvGradient]))
      problem("{} may arrive before {} is done", name(rank, found[ActionKind::kRecvGradient]), name(rank, forward));
  }

  bool exists(int32_t neighbour_stage) const { return neighbour_stage >= 0 && neighbour_stage < context_.num_stages; }

  // `mine` reads what the neighbouring stage made: on this rank earlier in the list, from another one by `receive`.
  void neighbour(int32_t rank, int32_t batch, int32_t neighbour_stage, int32_t mine, int32_t receive, ActionKind made_by) {
    const auto chunk = exists(neighbour_stage) ? chunk_of_stage(rank, neighbour_stage) : std::nullopt;
    if (!exists(neighbour_stage) || chunk) {
      if (receive >= 0) problem("{} receives what no other rank makes", name(rank, receive));
      if (!chunk) return;
      const BatchActions& other = batches_[static_cast<size_t>(rank)].at({*chunk, batch});
      const int32_t made = made_by == ActionKind::kForward ? other[ActionKind::kForward] : other.input_gradient();
      if (made > mine) problem("{} comes before {}, which makes its input", name(rank, mine), name(rank, made));
      return;
    }
    if (receive < 0) return problem("{} has no receive of its input from stage {}", name(rank, mine), neighbour_stage);
    if (!ordered(rank, receive, mine)) problem("{} does not wait for {}", name(rank, mine), name(rank, receive));
  }

  // A send exists exactly when the neighbouring stage is another rank's, and it waits for what it sends.
  void sent(int32_t rank, int32_t made, int32_t send, int32_t neighbour_stage) {
    const bool wanted = exists(neighbour_stage) && !chunk_of_stage(rank, neighbour_stage);
    if (wanted != (send >= 0)) {
      if (wanted) return problem("{} is never sent to stage {}", name(rank, made), neighbour_stage);
      return problem("{} sends to a stage of its own rank, or to none", name(rank, send));
    }
    if (wanted && !ordered(rank, made, send)) problem("{} does not wait for {}", name(rank, send), name(rank, made));
  }

  // All uses of a slot by one micro-batch come before all uses by the next.
  void check_slots(int32_t rank) {
    std::map<BatchKey, std::vector<std::pair<int32_t, int32_t>>> users;  // (chunk, slot) -> (forward, micro-batch)
    for (const auto& [key, found] : batches_[static_cast<size_t>(rank)])
      users[{key.first, action(rank, found[ActionKind::kForward]).slot}].emplace_back(found[ActionKind::kForward], key.second);
    for (auto& [key, order] : users) {
      std::sort(order.begin(), order.end());
      for (size_t i = 0; i + 1 < order.size(); ++i) {
        const BatchActions& earlier = batches_[static_cast<size_t>(rank)].at({key.first, order[i].second});
        const BatchActions& later = batches_[static_cast<size_t>(rank)].at({key.first, order[i + 1].second});
        const int32_t receive = later[ActionKind::kRecvActivation], begin = receive >= 0 ? receive : later[ActionKind::kForward];
        for (int32_t use : uses(rank, key.first, order[i].second, earlier))
          if (!ordered(rank, use, begin)) problem("{} takes slot {} while {} may still use it", name(rank, begin), key.second, name(rank, use));
      }
    }
  }

  // The actions of a rank that read or write a micro-batch's slot; neighbouring stages on the same rank read it in place.
  std::vector<int32_t> uses(int32_t rank, int32_t chunk, int32_t batch, const BatchActions& found) const {
    std::vector<int32_t> indices;
    for (int32_t index : found.index)
      if (index >= 0) indices.push_back(index);
    const auto& batches = batches_[static_cast<size_t>(rank)];
    if (const auto before = chunk_of_stage(rank, stage(rank, chunk) - 1)) indices.push_back(batches.at({*before, batch}).input_gradient());
    if (const auto behind = chunk_of_stage(rank, stage(rank, chunk) + 1)) indices.push_back(batches.at({*behind, batch})[ActionKind::kForward]);
    return indices;
  }

  // Follows each part of the chunk's gradients through its buffers.
  void check_sums(int32_t rank, int32_t chunk) {
    const bool last_stage = stage(rank, chunk) + 1 == context_.num_stages;
    std::array<std::map<int32_t, uint64_t>, 3> filled;  // by part: buffer -> sum
    std::set<int32_t> zeroed;
    for (int32_t index = 0; index < static_cast<int32_t>(schedule(rank).actions.size()); ++index) {
      const Action& one = action(rank, index);
      if (one.kind == ActionKind::kOptimizer) {
        for (GradientPart part : {GradientPart::kForward, GradientPart::kInput, GradientPart::kWeight})
          if (part != GradientPart::kForward || last_stage) check_finished(rank, chunk, filled[static_cast<size_t>(part)]);
        continue;
      }
      if (one.chunk != chunk) continue;
      if (one.kind == ActionKind::kZero) {
        for (auto& part : filled)
          if (part.count(one.gradient_buffer)) return problem("{} clears a sum", name(rank, index));
        zeroed.insert(one.gradient_buffer);
      } else if (one.kind == ActionKind::kMerge) {
        for (GradientPart part : {GradientPart::kForward, GradientPart::kInput, GradientPart::kWeight}) {
          if (part == GradientPart::kForward && !last_stage) continue;
          auto& sums = filled[static_cast<size_t>(part)];
          if (!sums.count(one.gradient_buffer) || !sums.count(one.source_buffer)) return problem("{} adds a buffer that holds no sum", name(rank, index));
          sums[one.gradient_buffer] = sum_hash(sums[one.gradient_buffer], sums[one.source_buffer]);
          sums.erase(one.source_buffer);
        }
        zeroed.erase(one.source_buffer);
      } else if (is_compute_of_batch(one.kind)) {
        for (GradientPart part : {GradientPart::kForward, GradientPart::kInput, GradientPart::kWeight})
          if (writes_part(one.kind, last_stage, part) && !fold(rank, index, filled[static_cast<size_t>(part)], zeroed)) return;
      }
    }
  }

  bool fold(int32_t rank, int32_t index, std::map<int32_t, uint64_t>& sums, const std::set<int32_t>& zeroed) {
    const Action& one = action(rank, index);
    const bool holds = sums.count(one.gradient_buffer) > 0;
    if (one.add_to_destination != holds) {
      if (holds) problem("{} overwrites the sum in gradient buffer {}", name(rank, index), one.gradient_buffer);
      else problem("{} adds to gradient buffer {} before it holds a sum", name(rank, index), one.gradient_buffer);
      return false;
    }
    if (!holds && context_.needs_zero && stage(rank, one.chunk) == 0 && !zeroed.count(one.gradient_buffer)) {
      problem("{} accumulates rows into gradient buffer {}, which was not zeroed", name(rank, index), one.gradient_buffer);
      return false;
    }
    const MicroBatch& batch = schedule(rank).micro_batches[static_cast<size_t>(one.micro_batch)];
    std::vector<uint64_t> addends;
    for (int64_t i = 0; i < batch.num_sequences; ++i) addends.push_back(leaf(batch.batch_sequence + i));
    const auto sum = folded_sum(one, holds ? sums[one.gradient_buffer] : 0, addends);
    if (!sum) {
      problem("{} does not fold its {} sequences into one sum", name(rank, index), batch.num_sequences);
      return false;
    }
    sums[one.gradient_buffer] = *sum;
    return true;
  }

  static uint64_t leaf(int64_t sequence) { return mix_hash(0x9E3779B97F4A7C15ull, static_cast<uint64_t>(sequence) + 1); }

  LaneRange lanes(int32_t rank) const { return context_.lanes.empty() ? LaneRange{0, schedule(rank).lanes} : context_.lanes[static_cast<size_t>(rank)]; }

  uint64_t lane_tree(int64_t first_lane, int64_t num_lanes, int64_t sequences) const {
    if (num_lanes > 1) return sum_hash(lane_tree(first_lane, num_lanes / 2, sequences), lane_tree(first_lane + num_lanes / 2, num_lanes / 2, sequences));
    uint64_t sum = leaf(first_lane * sequences);
    for (int64_t i = 1; i < sequences; ++i) sum = sum_hash(sum, leaf(first_lane * sequences + i));
    return sum;
  }

  // The sums that are left are the largest nodes of the lane tree that the rank's lanes make up, where piece_buffers says, the first in
  // buffer 0.
  void check_finished(int32_t rank, int32_t chunk, const std::map<int32_t, uint64_t>& sums) {
    const auto [first, count] = lanes(rank);
    const std::vector<int32_t>& buffers = schedule(rank).piece_buffers[static_cast<size_t>(chunk)];
    size_t piece = 0;
    bool right = true;
    for (int64_t lane = first; lane < first + count && right; ++piece) {
      auto size = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(first + count - lane)));
      while (lane % size != 0) size /= 2;
      right = piece < buffers.size() && (piece > 0 || buffers[0] == 0) && sums.count(buffers[piece]) > 0 && sums.at(buffers[piece]) == lane_tree(lane, size, schedule(rank).sequences_per_lane);
      lane += size;
    }
    if (!right || piece != buffers.size() || sums.size() != buffers.size())
      problem("rank {} stage {}: the gradient sums that reach OPT are not the lane tree over lanes [{}, {})", rank, stage(rank, chunk), first, first + count);
  }

  const UnitUses& unit_uses(int32_t rank) const { return context_.unit_uses[static_cast<size_t>(rank)]; }
  const std::vector<UnitUse>& uses_of(int32_t rank, const Action& one) const {
    static const std::vector<UnitUse> kNone;
    const auto phase = phase_of_action(one.kind);
    return phase ? unit_uses(rank).blocks[Stage::block_index(*phase, one.chunk)] : kNone;
  }
  std::vector<int32_t> group_of(int32_t rank, const Action& one) const {
    if (context_.group) return context_.group(rank, one);
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

  void check_round_sums(int32_t rank) {
    const Schedule& mine = schedule(rank);
    std::map<int32_t, GradientSlot> slots;
    for (int32_t index = 0; index < static_cast<int32_t>(mine.actions.size()); ++index)
      if (action(rank, index).kind == ActionKind::kReduceScatterGradients) slots[unit_uses(rank).gradient_slot[static_cast<size_t>(action(rank, index).unit)]].reductions.push_back(index);
    for (int32_t index = 0; index < static_cast<int32_t>(mine.actions.size()); ++index) {
      const Action& one = action(rank, index);
      if (!is_compute_of_batch(one.kind)) continue;
      for (const UnitUse& use : uses_of(rank, one))
        if (use.writes && !write_unit(rank, index, use, slots[unit_uses(rank).gradient_slot[static_cast<size_t>(use.unit)]])) return;
    }
    for (auto& [number, slot] : slots)
      if (slot.writer >= 0 && !send_away(rank, slot)) return;
    for (const auto& [number, slot] : slots)
      if (slot.num_reduced < slot.reductions.size()) return problem("{} finds no gradients", name(rank, slot.reductions[slot.num_reduced]));
  }

  bool write_unit(int32_t rank, int32_t index, const UnitUse& use, GradientSlot& slot) {
    const Action& one = action(rank, index);
    const MicroBatch& batch = schedule(rank).micro_batches[static_cast<size_t>(one.micro_batch)];
    const bool goes_on = slot.writer >= 0 && slot.writer != index && slot.unit == use.unit && slot.round == batch.round;
    if (!goes_on) {
      if (slot.writer >= 0 && !send_away(rank, slot)) return false;
      if (slot.num_reduced > 0) {
        const int32_t before = slot.reductions[slot.num_reduced - 1];
        if (!graph_->before(graph_->end({rank, before}), graph_->before_op({rank, index}, use.first_op))) {
          problem("{} does not wait for {}, whose place it takes", name(rank, index), name(rank, before));
          return false;
        }
      }
      slot.sum.reset();
    }
    if (batch.num_sequences > 0) {
      if (one.add_to_destination != slot.sum.has_value()) {
        problem("{} {}", name(rank, index), one.add_to_destination ? "adds to gradients that are not there" : "overwrites gradients that were not reduced");
        return false;
      }
      std::vector<uint64_t> addends;
      for (int64_t i = 0; i < batch.num_sequences; ++i) addends.push_back(leaf(batch.batch_sequence + i));
      slot.sum = folded_sum(one, slot.sum.value_or(0), addends);
      if (!slot.sum) {
        problem("{} does not fold its {} sequences into one sum", name(rank, index), batch.num_sequences);
        return false;
      }
    }
    slot.unit = use.unit, slot.round = batch.round, slot.writer = index, slot.last_op = use.last_op;
    return true;
  }

  // The next RS of the slot is of what is there, comes behind it, and finds the node that this rank brings.
  bool send_away(int32_t rank, GradientSlot& slot) {
    if (slot.num_reduced == slot.reductions.size()) {
      problem("{} writes gradients of unit {} that are not reduced", name(rank, slot.writer), slot.unit);
      return false;
    }
    const int32_t index = slot.reductions[slot.num_reduced++];
    const Action& one = action(rank, index);
    const std::vector<int32_t> group = group_of(rank, one);
    const auto member = static_cast<size_t>(std::find(group.begin(), group.end(), rank) - group.begin());
    const ReductionRound& round = schedule(rank).rounds[static_cast<size_t>(one.round)];
    const LaneRange piece = member < round.pieces.size() ? round.pieces[member] : LaneRange{};
    std::optional<uint64_t> wanted;
    if (piece.count > 0) wanted = lane_tree(piece.first, piece.count, schedule(rank).sequences_per_lane);
    const bool right = one.unit == slot.unit && one.round == slot.round && round.pieces.size() == group.size() && slot.sum == wanted;
    const bool behind = graph_->before(graph_->behind_op({rank, slot.writer}, slot.last_op), graph_->start({rank, index}));
    if (!right) problem("{} does not find the sum over lanes [{}, {}) in its slot", name(rank, index), piece.first, piece.first + piece.count);
    else if (!behind) problem("{} does not wait for {}", name(rank, index), name(rank, slot.writer));
    slot.writer = -1;
    return right && behind;
  }

  static bool are_halves(const LaneRange& lower, const LaneRange& upper) {
    return lower.count == upper.count && lower.first % (2 * lower.count) == 0 && lower.first + lower.count == upper.first;
  }

  // What owners keep: each unit is reduced once a round, in order; a round's sums are those of the round before and its pieces, halves of nodes
  // joined; at the end they are the lanes of the group, and where shards have replicas AR joins those. All this before the norm is taken.
  void check_reductions(int32_t rank) {
    const Schedule& mine = schedule(rank);
    std::map<int32_t, std::vector<int32_t>> rounds;  // by unit: its reductions
    std::map<int32_t, int32_t> replicas;             // by unit: its AR
    int32_t update = -1;
    for (int32_t index = 0; index < static_cast<int32_t>(mine.actions.size()); ++index) {
      const Action& one = action(rank, index);
      if (one.kind == ActionKind::kReduceScatterGradients) rounds[one.unit].push_back(index);
      if (one.kind == ActionKind::kAllReduceGradients && !replicas.try_emplace(one.unit, index).second) problem("{} comes twice", name(rank, index));
      if (update < 0 && (one.kind == ActionKind::kNorm || one.kind == ActionKind::kOptimizer)) update = index;
    }
    std::vector<ShardSum> sums;
    for (size_t j = 0; j < mine.rounds.size(); ++j) {
      if (mine.rounds[j].before != sums) return problem("rank {} round {} begins with other sums than the round before leaves", rank, j);
      std::vector<LaneRange> nodes;
      for (const ShardSum& sum : sums) nodes.push_back(sum.lanes);
      for (const LaneRange& piece : mine.rounds[j].pieces)
        if (piece.count > 0) nodes.push_back(piece);
      for (size_t i = 0; i + 1 < nodes.size();)
        if (are_halves(nodes[i], nodes[i + 1])) {
          nodes[i].count *= 2;
          nodes.erase(nodes.begin() + static_cast<ptrdiff_t>(i) + 1);
          i -= i > 0;
        } else {
          ++i;
        }
      sums = mine.rounds[j].after;
      std::set<int32_t> buffers;
      bool right = sums.size() == nodes.size();
      for (size_t i = 0; right && i < sums.size(); ++i) right = sums[i].lanes == nodes[i] && sums[i].buffer >= 0 && sums[i].buffer < mine.num_shard_sums && buffers.insert(sums[i].buffer).second;
      // A sum that only stays, or that pieces join, stays where it is.
      for (const ShardSum& kept : mine.rounds[j].before)
        for (const ShardSum& sum : sums) right = right && (kept.lanes.first != sum.lanes.first || kept.buffer == sum.buffer);
      if (!right) return problem("rank {} round {} does not end with the largest nodes of the lane tree that it completes", rank, j);
    }
    const LaneRange held = lanes(rank);
    int64_t lane = held.first;
    for (const ShardSum& sum : sums) lane = sum.lanes.first == lane ? lane + sum.lanes.count : -1;
    if (sums.empty() || sums.front().buffer != 0 || lane != held.first + held.count)
      return problem("rank {}: the sums in its shards are not those of lanes [{}, {})", rank, held.first, held.first + held.count);
    const auto num_units = static_cast<int32_t>(unit_uses(rank).gradient_slot.size());
    for (int32_t unit = 0; unit < num_units; ++unit) {
      const std::vector<int32_t>& reductions = rounds[unit];
      bool right = reductions.size() == mine.rounds.size();
      for (size_t j = 0; right && j < reductions.size(); ++j) right = action(rank, reductions[j]).round == static_cast<int32_t>(j);
      if (!right) return problem("rank {} does not reduce unit {} once in each of {} rounds, in their order", rank, unit, mine.rounds.size());
      for (int32_t other : group_of(rank, action(rank, reductions.front())))
        if (schedule(other).rounds != mine.rounds) return problem("ranks {} and {} of a shard group have different rounds", rank, other);
      int32_t last = reductions.back();
      if (held.count < mine.lanes) {
        const auto found = replicas.find(unit);
        if (found == replicas.end()) return problem("rank {} never joins its sums of unit {} with those of the other lanes", rank, unit);
        if (!ordered(rank, last, found->second)) return problem("{} does not wait for {}", name(rank, found->second), name(rank, last));
        last = found->second;
        int64_t next = 0;
        for (int32_t other : group_of(rank, action(rank, last))) next = lanes(other).first == next ? next + lanes(other).count : -1;
        if (next != mine.lanes) return problem("{}: the lanes of its ranks are not all lanes in order", name(rank, last));
      }
      if (!ordered(rank, last, update)) return problem("{} does not wait for {}", name(rank, update), name(rank, last));
    }
  }

  // From the end of its AG, and before the next AG of the slot, ops may read a unit's weights there.
  void check_gathers(int32_t rank) {
    struct Slot {
      std::vector<int32_t> gathers;
      size_t next = 0;  // the first that has not ended when what is looked at starts
    };
    std::map<int32_t, Slot> slots;
    const Schedule& mine = schedule(rank);
    for (int32_t index = 0; index < static_cast<int32_t>(mine.actions.size()); ++index)
      if (const Action& one = action(rank, index); one.kind == ActionKind::kAllGatherParameters) {
        const int32_t slot = unit_uses(rank).weight_slot[static_cast<size_t>(one.unit)];
        if (slot >= 0) slots[slot].gathers.push_back(index);
      }
    for (int32_t index = 0; index < static_cast<int32_t>(mine.actions.size()); ++index) {
      const Action& one = action(rank, index);
      if (!is_compute_of_batch(one.kind)) continue;
      for (const UnitUse& use : uses_of(rank, one)) {
        if (use.writes) continue;
        Slot& slot = slots[unit_uses(rank).weight_slot[static_cast<size_t>(use.unit)]];
        const int32_t begins = graph_->before_op({rank, index}, use.first_op), ends = graph_->behind_op({rank, index}, use.last_op);
        while (slot.next < slot.gathers.size() && graph_->before(graph_->end({rank, slot.gathers[slot.next]}), begins)) ++slot.next;
        if (slot.next == 0 || action(rank, slot.gathers[slot.next - 1]).unit != use.unit) return problem("{} reads weights of unit {} that are not gathered", name(rank, index), use.unit);
        if (slot.next < slot.gathers.size() && !graph_->before(ends, graph_->start({rank, slot.gathers[slot.next]})))
          return problem("{} takes the place of weights that {} may still read", name(rank, slot.gathers[slot.next]), name(rank, index));
      }
    }
  }

  const std::vector<Schedule>& ranks_;
  const ScheduleContext& context_;
  const ScheduleGraph* graph_ = nullptr;
  std::vector<std::map<BatchKey, BatchActions>> batches_;  // by rank
  std::vector<std::string> problems_;
};

}  // namespace

std::vector<std::string> verify_schedules(const std::vector<Schedule>& ranks, const ScheduleContext& context) { return SetVerifier(ranks, context).run(); }

}  // namespace orrery
