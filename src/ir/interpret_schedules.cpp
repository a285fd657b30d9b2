#include "ir/interpret_schedules.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <map>
#include <tuple>

#include "ir/gradient_sums.h"
#include "ir/memory_map.h"
#include "ir/unroll_schedule.h"

namespace orrery {
namespace {

constexpr uint64_t kNothing = 0x6E6F7468696E67ull;  // what memory holds that nobody wrote, or that is being written

// What a slot holds, one hash for each value that crosses a boundary and one for all that a forward saves for the backward.
struct Slot {
  uint64_t input = kNothing, output = kNothing, output_gradient = kNothing, input_gradient = kNothing, saved = kNothing;
};

struct Buffer {
  std::array<uint64_t, 3> parts{kNothing, kNothing, kNothing};
};

// What a rank keeps unit by unit.
struct UnitMemory {
  std::map<int32_t, uint64_t> weights, gradients;        // by slot
  std::map<std::pair<int32_t, int32_t>, uint64_t> sums;  // by unit and buffer: of the rank's shard
};

class Interpreter {
 public:
  Interpreter(const std::vector<Schedule>& ranks, const ScheduleContext& context, uint64_t seed) : ranks_(ranks), context_(context), graph_(ranks, context), random_(seed) {
    for (const Schedule& schedule : ranks) {
      auto& slots = slots_.emplace_back();
      auto& buffers = buffers_.emplace_back();
      for (size_t chunk = 0; chunk < schedule.num_slots.size(); ++chunk) {
        slots.emplace_back(static_cast<size_t>(schedule.num_slots[chunk]));
        buffers.emplace_back(static_cast<size_t>(schedule.num_gradient_buffers[chunk]));
      }
      auto& slot_of = slot_of_.emplace_back();
      for (const Action& action : schedule.actions)
        if (action.kind == ActionKind::kForward) slot_of[{action.chunk, action.micro_batch}] = action.slot;
    }
    for (const StateOffload& offload : context.offload) {
      auto& stored = stored_.emplace_back();
      for (size_t piece = 0; piece < offload.pieces.size(); ++piece) stored.push_back(mix_hash(7, piece));
      state_slots_.emplace_back(static_cast<size_t>(offload.slots.count), kNothing);
    }
    activations_.resize(ranks.size());
    result_.gradients.assign(ranks.size(), 0);
    units_.resize(ranks.size());
    weight_versions_.assign(ranks.size(), {});
    num_updates_.assign(ranks.size(), 0);
    delays_ = context.delays_gradients || std::any_of(ranks.begin(), ranks.end(), [](const Schedule& schedule) { return schedule.carries; });
  }

  Interpretation run() {
    std::vector<int32_t> missing(static_cast<size_t>(graph_.num_points())), ready;
    for (int32_t point = 0; point < graph_.num_points(); ++point) {
      missing[static_cast<size_t>(point)] = static_cast<int32_t>(graph_.previous(point).size()) + graph_.never_ends(point);
      if (missing[static_cast<size_t>(point)] == 0) ready.push_back(point);
    }
    int32_t num_done = 0;
    std::vector<bool> done(static_cast<size_t>(graph_.num_points()), false);
    while (!ready.empty()) {
      std::swap(ready[next_random() % ready.size()], ready.back());
      const int32_t point = ready.back();
      ready.pop_back();
      const ActionRef ref = graph_.owner(point);
      if (point == graph_.start(ref)) begin(ref);
      run_ops(ref, point);
      if (point == graph_.end(ref)) finish(ref);
      done[static_cast<size_t>(point)] = true;
      ++num_done;
      for (int32_t later : graph_.next(point))
        if (--missing[static_cast<size_t>(later)] == 0) ready.push_back(later);
    }
    for (size_t rank = 0; rank < stored_.size(); ++rank)
      for (uint64_t state : stored_[rank]) result_.gradients[rank] = mix_hash(result_.gradients[rank], state);
    result_.finished = num_done == graph_.num_points();
    if (!result_.finished) result_.stuck = graph_.name(graph_.owner(static_cast<int32_t>(std::find(done.begin(), done.end(), false) - done.begin())));
    return std::move(result_);
  }

 private:
  uint64_t next_random() {
    random_ += 0x9E3779B97F4A7C15ull;
    return mix_hash(random_, 1);
  }

  const Action& action(ActionRef ref) const { return ranks_[static_cast<size_t>(ref.rank)].actions[static_cast<size_t>(ref.action)]; }
  int32_t stage(int32_t rank, const Action& one) const { return ranks_[static_cast<size_t>(rank)].stage_of_chunk[static_cast<size_t>(one.chunk)]; }
  Slot& slot(int32_t rank, const Action& one) { return slots_[static_cast<size_t>(rank)][static_cast<size_t>(one.chunk)][static_cast<size_t>(one.slot)]; }
  Buffer& buffer(int32_t rank, int32_t chunk, int32_t index) { return buffers_[static_cast<size_t>(rank)][static_cast<size_t>(chunk)][static_cast<size_t>(index)]; }

  // The slot of the micro-batch on a neighbouring stage of the same rank, if that is where it is.
  Slot* local_slot(int32_t rank, const Action& one, int32_t neighbour_stage) {
    const auto& stages = ranks_[static_cast<size_t>(rank)].stage_of_chunk;
    const auto found = std::find(stages.begin(), stages.end(), neighbour_stage);
    if (found == stages.end()) return nullptr;
    const auto chunk = static_cast<int32_t>(found - stages.begin());
    const auto used = slot_of_[static_cast<size_t>(rank)].find({chunk, one.micro_batch});
    if (used == slot_of_[static_cast<size_t>(rank)].end()) return nullptr;
    return &slots_[static_cast<size_t>(rank)][static_cast<size_t>(chunk)][static_cast<size_t>(used->second)];
  }

  // What an action writes is unreadable from its start on.
  void begin(ActionRef ref) {
    const Action& one = action(ref);
    switch (one.kind) {
      case ActionKind::kForward: slot(ref.rank, one).saved = slot(ref.rank, one).output = kNothing; break;
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput: slot(ref.rank, one).input_gradient = kNothing; break;
      case ActionKind::kRecvActivation: slot(ref.rank, one).input = kNothing; break;
      case ActionKind::kRecvGradient: slot(ref.rank, one).output_gradient = kNothing; break;
      case ActionKind::kAllGatherParameters:
      case ActionKind::kFetchParameters:
        if (has_units(ref.rank)) weights(ref.rank, one.unit) = kNothing;
        break;
      case ActionKind::kFetch: in_arena(ref.rank, one) = kNothing; break;
      case ActionKind::kOffload: found_[{ref.rank, ref.action}] = in_arena(ref.rank, one); break;
      case ActionKind::kReduceScatterGradients:
        if (sharded(ref.rank)) found_[{ref.rank, ref.action}] = gradients(ref.rank, one.unit);
        break;
      default: break;
    }
  }

  static uint64_t gathered(int32_t unit) { return mix_hash(5, static_cast<uint64_t>(unit)); }
  bool has_units(int32_t rank) const { return static_cast<size_t>(rank) < context_.unit_uses.size(); }
  bool sharded(int32_t rank) const { return !ranks_[static_cast<size_t>(rank)].rounds.empty(); }
  uint64_t& at(std::map<int32_t, uint64_t>& slots, int32_t slot) { return slots.try_emplace(slot, kNothing).first->second; }
  uint64_t& weights(int32_t rank, int32_t unit) { return at(units_[static_cast<size_t>(rank)].weights, context_.unit_uses[static_cast<size_t>(rank)].weight_slot[static_cast<size_t>(unit)]); }
  uint64_t& gradients(int32_t rank, int32_t unit) { return at(units_[static_cast<size_t>(rank)].gradients, context_.unit_uses[static_cast<size_t>(rank)].gradient_slot[static_cast<size_t>(unit)]); }
  uint64_t& shard_sum(int32_t rank, int32_t unit, int32_t buffer) { return units_[static_cast<size_t>(rank)].sums.try_emplace({unit, buffer}, kNothing).first->second; }

  bool offloads(int32_t rank) const { return static_cast<size_t>(rank) < context_.offload.size() && !context_.offload[static_cast<size_t>(rank)].pieces.empty(); }
  uint64_t& state_slot(int32_t rank, int32_t piece) {
    return state_slots_[static_cast<size_t>(rank)][static_cast<size_t>(context_.offload[static_cast<size_t>(rank)].slot_of(piece))];
  }

  // What a copy moves: a piece of the state, or a group of the activations in a slot.
  struct Place {
    uint64_t arena = kNothing, store = kNothing;
  };
  Place& activations(int32_t rank, int32_t group, int32_t slot) { return activations_[static_cast<size_t>(rank)][{group, slot}]; }
  uint64_t& in_arena(int32_t rank, const Action& copy) { return copy.micro_batch >= 0 ? activations(rank, copy.unit, copy.slot).arena : state_slot(rank, copy.unit); }
  uint64_t& in_store(int32_t rank, const Action& copy) {
    return copy.micro_batch >= 0 ? activations(rank, copy.unit, copy.slot).store : stored_[static_cast<size_t>(rank)][static_cast<size_t>(copy.unit)];
  }

  // Ops [begin, end) of a forward make what leaves, and others take its memory from `gone_before` on; those of a backward have that memory up to
  // `comes_after`, and read what has come from `needed_before` on: kNothing when it is not there.
  uint64_t move_activations(ActionRef ref, int32_t begin, int32_t end, bool starts) {
    const Action& one = action(ref);
    const bool forward = one.kind == ActionKind::kForward;
    uint64_t read = 0;
    if (static_cast<size_t>(ref.rank) >= context_.activation_groups.size() || (!forward && one.kind != ActionKind::kBackward && one.kind != ActionKind::kBackwardInput)) return read;
    const std::vector<ActivationGroup>& groups = context_.activation_groups[static_cast<size_t>(ref.rank)];
    const auto here = [&](int32_t op) { return op >= begin && op < end; };
    for (size_t i = 0; i < groups.size(); ++i) {
      const ActivationGroup& group = groups[i];
      if (group.chunk != one.chunk) continue;
      uint64_t& memory = activations(ref.rank, static_cast<int32_t>(i), one.slot).arena;
      const uint64_t wanted = mix_hash(mix_hash(9, static_cast<uint64_t>(one.micro_batch)), i);
      if (forward && !starts && here(group.leaves_after)) memory = wanted;
      if (forward && starts && here(group.gone_before)) memory = kNothing;
      if (!forward && !starts && here(group.comes_after)) memory = kNothing;
      if (!forward && here(group.needed_before) && memory != wanted) read = kNothing;
    }
    return read;
  }

  // OPT's ops update the pieces that are fetched for them: a piece is unreadable from the first of its ops to the last.
  void update_pieces(ActionRef ref, int32_t begin, int32_t end, bool starts) {
    const std::vector<OffloadPiece>& pieces = context_.offload[static_cast<size_t>(ref.rank)].pieces;
    for (size_t piece = 0; piece < pieces.size(); ++piece) {
      const auto index = static_cast<int32_t>(piece);
      const bool first = starts && pieces[piece].first_op >= begin && pieces[piece].first_op < end, last = !starts && pieces[piece].last_op >= begin && pieces[piece].last_op < end;
      if (first) updated_[{ref.rank, index}] = state_slot(ref.rank, index), state_slot(ref.rank, index) = mix_hash(kNothing, piece);
      if (last) state_slot(ref.rank, index) = state_slot(ref.rank, index) == mix_hash(kNothing, piece) ? mix_hash(updated_[{ref.rank, index}], 8) : kNothing;
    }
  }

  // An action's ops run from one of its points to the next. What they read has to be there when they start and when they end; what they write is
  // unreadable in between.
  void run_ops(ActionRef ref, int32_t point) {
    const Action& one = action(ref);
    const auto phase = phase_of_action(one.kind);
    if (!phase || point > graph_.end(ref)) return;
    const std::vector<int32_t>& cuts = graph_.cuts(ref);
    const int32_t place = point - graph_.start(ref);
    const bool starts = place % 2 == 0;
    const auto part = static_cast<size_t>(place / 2);
    const int32_t begin = part == 0 ? 0 : cuts[part - 1], end = part == cuts.size() ? std::numeric_limits<int32_t>::max() : cuts[part];
    if (one.kind == ActionKind::kOptimizer && offloads(ref.rank)) update_pieces(ref, begin, end, starts);
    if (one.micro_batch < 0) return;
    uint64_t& read = read_.try_emplace({ref.rank, ref.action}, uint64_t{0}).first->second;
    if (move_activations(ref, begin, end, starts) != 0) read = kNothing;
    if (!has_units(ref.rank)) return;
    const MicroBatch& batch = ranks_[static_cast<size_t>(ref.rank)].micro_batches[static_cast<size_t>(one.micro_batch)];
    if (batch.num_sequences == 0) return;
    for (const UnitUse& use : context_.unit_uses[static_cast<size_t>(ref.rank)].blocks[Stage::block_index(*phase, one.chunk)]) {
      if (use.last_op < begin || use.first_op >= end) continue;
      if (!use.writes) {
        if (weights(ref.rank, use.unit) != gathered(use.unit)) read = kNothing;
        continue;
      }
      uint64_t& gradient = gradients(ref.rank, use.unit);
      if (starts && use.first_op >= begin && !one.add_to_destination) gradient = kNothing;
      if (starts || use.last_op >= end) continue;
      std::vector<uint64_t> addends;
      for (int64_t i = 0; i < batch.num_sequences; ++i) addends.push_back(mix_hash(mix_hash(mix_hash(unit_gradient(ref.rank, one), read), static_cast<uint64_t>(use.unit)), static_cast<uint64_t>(batch.batch_sequence + i)));
      gradient = folded_sum(one, gradient, addends).value_or(kNothing);
    }
  }

  uint64_t unit_gradient(int32_t rank, const Action& one) {
    const Slot& mine = slot(rank, one);
    const int32_t held = stage(rank, one);
    if (one.kind == ActionKind::kForward) {
      const Slot* before = held == 0 ? nullptr : local_slot(rank, one, held - 1);
      return held == 0 ? mix_hash(2, static_cast<uint64_t>(one.micro_batch)) : before != nullptr ? before->output : mine.input;
    }
    const bool last = held + 1 == context_.num_stages;
    const Slot* behind = last || one.kind == ActionKind::kBackwardWeight ? nullptr : local_slot(rank, one, held + 1);
    const uint64_t gradient = mix_hash(mine.saved, last ? 1 : behind != nullptr ? behind->input_gradient : mine.output_gradient);
    return one.kind == ActionKind::kBackwardWeight ? mix_hash(gradient, mine.input_gradient) : gradient;
  }

  std::vector<int32_t> group_of(int32_t rank, const Action& one) const {
    if (context_.group) return context_.group(rank, one);
    std::vector<int32_t> all;
    for (size_t member = 0; member < ranks_.size(); ++member) all.push_back(static_cast<int32_t>(member));
    return all;
  }

  struct NodeSum {
    LaneRange lanes;
    uint64_t sum = 0;
  };
  static void join(std::vector<NodeSum>& nodes) {
    std::sort(nodes.begin(), nodes.end(), [](const NodeSum& a, const NodeSum& b) { return a.lanes.first < b.lanes.first; });
    for (size_t i = 0; i + 1 < nodes.size();) {
      NodeSum &lower = nodes[i], &upper = nodes[i + 1];
      const bool halves = lower.lanes.count == upper.lanes.count && lower.lanes.first % (2 * lower.lanes.count) == 0 && lower.lanes.first + lower.lanes.count == upper.lanes.first;
      if (!halves) {
        ++i;
        continue;
      }
      lower = {{lower.lanes.first, 2 * lower.lanes.count}, sum_hash(lower.sum, upper.sum)};
      nodes.erase(nodes.begin() + static_cast<ptrdiff_t>(i) + 1);
      i -= i > 0;
    }
  }
  using Sent = std::vector<NodeSum>;

  // What a member brings to a collective: what it had when its own side ended, or has now.
  const Sent& brought(int32_t member, const Action& like, const std::function<Sent(int32_t)>& now) {
    const auto key = std::tuple(member, like.kind, like.unit, like.round);
    const auto known = sent_pieces_.find(key);
    if (known != sent_pieces_.end()) return known->second;
    current_ = now(member);
    return current_;
  }

  void reduce(ActionRef ref) {
    const Action& one = action(ref);
    const ReductionRound& round = ranks_[static_cast<size_t>(ref.rank)].rounds[static_cast<size_t>(one.round)];
    const std::vector<int32_t> group = group_of(ref.rank, one);
    const auto piece_of = [&](int32_t member) {
      const auto index = static_cast<size_t>(std::find(group.begin(), group.end(), member) - group.begin());
      return round.pieces[index].count > 0 ? Sent{{round.pieces[index], gradients(member, one.unit)}} : Sent{};
    };
    std::vector<NodeSum> nodes;
    for (const ShardSum& sum : round.before) nodes.push_back({sum.lanes, shard_sum(ref.rank, one.unit, sum.buffer)});
    for (int32_t member : group) {
      const Sent& piece = brought(member, one, piece_of);
      nodes.insert(nodes.end(), piece.begin(), piece.end());
    }
    join(nodes);
    for (size_t i = 0; i < round.after.size() && i < nodes.size(); ++i) shard_sum(ref.rank, one.unit, round.after[i].buffer) = nodes[i].sum;
    // What changed while it was being sent is nothing.
    Sent mine = piece_of(ref.rank);
    if (!mine.empty() && found_[{ref.rank, ref.action}] != mine.front().sum) mine.front().sum = kNothing, shard_sum(ref.rank, one.unit, 0) = kNothing;
    sent_pieces_[{ref.rank, one.kind, one.unit, one.round}] = std::move(mine);
  }

  void reduce_replicas(ActionRef ref) {
    const Action& one = action(ref);
    const auto sums_of = [&](int32_t member) {
      Sent sums;
      for (const ShardSum& sum : ranks_[static_cast<size_t>(member)].rounds.back().after) sums.push_back({sum.lanes, shard_sum(member, one.unit, sum.buffer)});
      return sums;
    };
    std::vector<NodeSum> nodes;
    for (int32_t member : group_of(ref.rank, one)) {
      const Sent& sums = brought(member, one, sums_of);
      nodes.insert(nodes.end(), sums.begin(), sums.end());
    }
    join(nodes);
    sent_pieces_[{ref.rank, one.kind, one.unit, one.round}] = sums_of(ref.rank);
    shard_sum(ref.rank, one.unit, 0) = nodes.size() == 1 ? nodes.front().sum : kNothing;
  }

  // What an action reads, it reads last: the longest time in which another could spoil it.
  void finish(ActionRef ref) {
    const Action& one = action(ref);
    const int32_t rank = ref.rank;
    switch (one.kind) {
      case ActionKind::kForward: forward(rank, one, read_by(ref)); break;
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput: {
        Slot& mine = slot(rank, one);
        const bool last = stage(rank, one) + 1 == context_.num_stages;
        if (const Slot* behind = last ? nullptr : local_slot(rank, one, stage(rank, one) + 1)) mine.output_gradient = behind->input_gradient;
        const uint64_t gradient = mix_hash(mix_hash(mix_hash(mine.saved, last ? 1 : mine.output_gradient), read_by(ref)), weight_version(rank, one));
        mine.input_gradient = mix_hash(gradient, static_cast<uint64_t>(stage(rank, one)));
        fold(rank, one, GradientPart::kInput, gradient);
        if (one.kind == ActionKind::kBackward) fold(rank, one, GradientPart::kWeight, gradient);
        break;
      }
      case ActionKind::kBackwardWeight: {
        const Slot& mine = slot(rank, one);
        const bool last = stage(rank, one) + 1 == context_.num_stages;
        // W works on what I left in the slot, its input gradient stands for that.
        fold(rank, one, GradientPart::kWeight, mix_hash(mix_hash(mine.saved, last ? 1 : mine.output_gradient), mine.input_gradient));
        break;
      }
      case ActionKind::kMerge: merge(rank, one); break;
      case ActionKind::kOptimizer: optimizer(rank); break;
      case ActionKind::kSendActivation:
      case ActionKind::kSendGradient: sent_[{ref.rank, ref.action}] = boundary(rank, one); break;
      case ActionKind::kRecvActivation: slot(rank, one).input = payload(ref); break;
      case ActionKind::kRecvGradient: slot(rank, one).output_gradient = payload(ref); break;
      case ActionKind::kAllGatherParameters:
      case ActionKind::kFetchParameters:
        if (has_units(rank)) weights(rank, one.unit) = gathered(one.unit);
        break;
      case ActionKind::kReduceScatterGradients:
        if (sharded(rank)) reduce(ref);
        break;
      case ActionKind::kAllReduceGradients:
        if (sharded(rank)) reduce_replicas(ref);
        break;
      case ActionKind::kFetch: in_arena(rank, one) = in_store(rank, one); break;
      case ActionKind::kOffload: in_store(rank, one) = in_arena(rank, one) == found_[{ref.rank, ref.action}] ? in_arena(rank, one) : kNothing; break;
      default: break;
    }
  }

  uint64_t boundary(int32_t rank, const Action& send) { return send.kind == ActionKind::kSendActivation ? slot(rank, send).output : slot(rank, send).input_gradient; }

  // The bytes leave when the first of the two sides ends.
  uint64_t payload(ActionRef receive) {
    const ActionRef send = graph_.send_of(receive);
    if (send.rank < 0) return kNothing;
    const auto sent = sent_.find({send.rank, send.action});
    return sent != sent_.end() ? sent->second : boundary(send.rank, action(send));
  }

  uint64_t read_by(ActionRef ref) const {
    const auto read = read_.find({ref.rank, ref.action});
    return read == read_.end() ? 0 : read->second;
  }

  void forward(int32_t rank, const Action& one, uint64_t read) {
    Slot& mine = slot(rank, one);
    const int32_t held = stage(rank, one);
    if (held == 0) mine.input = mix_hash(2, static_cast<uint64_t>(one.micro_batch));
    if (const Slot* before = held == 0 ? nullptr : local_slot(rank, one, held - 1)) mine.input = before->output;
    mine.saved = mix_hash(mix_hash(mix_hash(mine.input, static_cast<uint64_t>(held) + 100), read), weight_version(rank, one));
    mine.output = mix_hash(mine.saved, 3);
    fold(rank, one, GradientPart::kForward, mine.output);
  }

  void fold(int32_t rank, const Action& one, GradientPart part, uint64_t gradient) {
    const bool last = stage(rank, one) + 1 == context_.num_stages;
    if (sharded(rank) || !writes_part(one.kind, last, part)) return;
    Buffer& sums = buffer(rank, one.chunk, one.gradient_buffer);
    uint64_t& sum = sums.parts[static_cast<size_t>(part)];
    std::vector<uint64_t> addends;
    const MicroBatch& batch = ranks_[static_cast<size_t>(rank)].micro_batches[static_cast<size_t>(one.micro_batch)];
    for (int64_t i = 0; i < batch.num_sequences; ++i) addends.push_back(mix_hash(gradient, static_cast<uint64_t>(batch.first_sequence + i)));
    sum = folded_sum(one, sum, addends).value_or(kNothing);
  }

  void merge(int32_t rank, const Action& one) {
    Buffer& into = buffer(rank, one.chunk, one.gradient_buffer);
    Buffer& from = buffer(rank, one.chunk, one.source_buffer);
    const bool last = stage(rank, one) + 1 == context_.num_stages;
    for (size_t part = 0; part < into.parts.size(); ++part)
      if (last || part != static_cast<size_t>(GradientPart::kForward)) into.parts[part] = sum_hash(into.parts[part], from.parts[part]);
  }

  // The weights that forwards and backwards of a step read, and the newest ones, which are those of the next.
  struct WeightVersions {
    uint64_t read = 11, newest = 11;
  };
  uint64_t weight_version(int32_t rank, const Action& one) const {
    const WeightVersions& versions = weight_versions_[static_cast<size_t>(rank)];
    const Schedule& mine = ranks_[static_cast<size_t>(rank)];
    // What a fresh start runs before its first step is on the weights of that step.
    const bool fresh = mine.carries && &one < &mine.actions[static_cast<size_t>(mine.step_begins[1])];
    return one.next_step && !fresh ? versions.newest : versions.read;
  }

  void optimizer(int32_t rank) {
    uint64_t& digest = result_.gradients[static_cast<size_t>(rank)];
    const int64_t step = num_updates_[static_cast<size_t>(rank)]++;
    if (sharded(rank))
      for (size_t unit = 0; unit < context_.unit_uses[static_cast<size_t>(rank)].gradient_slot.size(); ++unit) digest = mix_hash(digest, shard_sum(rank, static_cast<int32_t>(unit), 0));
    const std::vector<std::vector<int32_t>>& pieces = ranks_[static_cast<size_t>(rank)].piece_buffers;
    for (size_t chunk = 0; chunk < pieces.size(); ++chunk)
      for (int32_t index : pieces[chunk])
        for (uint64_t part : buffer(rank, static_cast<int32_t>(chunk), buffer_in_step(ranks_[static_cast<size_t>(rank)], index, step)).parts) digest = mix_hash(digest, part);
    WeightVersions& versions = weight_versions_[static_cast<size_t>(rank)];
    versions.read = versions.newest;
    versions.newest = mix_hash(versions.newest, digest);
    if (!delays_) versions.read = versions.newest;
  }

  const std::vector<Schedule>& ranks_;
  const ScheduleContext& context_;
  ScheduleGraph graph_;
  uint64_t random_;
  std::vector<std::vector<std::vector<Slot>>> slots_;      // by rank, chunk, slot
  std::vector<std::vector<std::vector<Buffer>>> buffers_;  // by rank, chunk, buffer
  std::vector<std::map<std::pair<int32_t, int32_t>, int32_t>> slot_of_;  // by rank: (chunk, micro-batch) -> slot
  std::map<std::pair<int32_t, int32_t>, uint64_t> sent_;   // by send that has ended: what it sent
  std::vector<UnitMemory> units_;                          // by rank
  std::map<std::pair<int32_t, int32_t>, uint64_t> read_;   // by action: kNothing once an op has read weights that were not there
  std::map<std::pair<int32_t, int32_t>, uint64_t> found_;  // by reduction: the gradients at its start
  std::map<std::tuple<int32_t, ActionKind, int32_t, int32_t>, Sent> sent_pieces_;  // by reduction that has ended: what the rank brought
  Sent current_;
  std::vector<std::vector<uint64_t>> stored_, state_slots_;  // by rank: pieces of state where they are offloaded to, and what their slots hold
  std::vector<std::map<std::pair<int32_t, int32_t>, Place>> activations_;     // by rank: of a group and slot
  std::map<std::pair<int32_t, int32_t>, uint64_t> updated_;  // by rank and piece: what its update found
  std::vector<WeightVersions> weight_versions_;  // by rank
  std::vector<int64_t> num_updates_;             // by rank
  bool delays_ = false;
  Interpretation result_;
};

}  // namespace

Interpretation interpret_schedules(const std::vector<Schedule>& ranks, const ScheduleContext& context, uint64_t seed) {
  constexpr int32_t kSteps = 3;
  if (!carry(ranks)) return Interpreter(ranks, context, seed).run();
  const std::vector<Schedule> steps = unroll(ranks, kSteps);
  return Interpreter(steps, context, seed).run();
}

}  // namespace orrery
