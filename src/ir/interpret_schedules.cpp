#include "ir/interpret_schedules.h"

#include <algorithm>
#include <array>
#include <map>

#include "ir/gradient_sums.h"

namespace orrery {
namespace {

constexpr uint64_t kNothing = 0x6E6F7468696E67ull;  // what memory holds that nobody wrote, or that is being written

// What a slot holds, one hash for each value that crosses a boundary and one for all that a forward saves for the backward.
struct Slot {
  uint64_t input = kNothing, output = kNothing, output_gradient = kNothing, input_gradient = kNothing, saved = kNothing;
};

struct Buffer {
  std::array<uint64_t, 3> parts{kNothing, kNothing, kNothing};
  uint64_t rows = kNothing;  // what accumulators hold that are written row by row: 0 after Z
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
    result_.gradients.assign(ranks.size(), 0);
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
      if (point == graph_.end(ref)) finish(ref);
      done[static_cast<size_t>(point)] = true;
      ++num_done;
      for (int32_t later : graph_.next(point))
        if (--missing[static_cast<size_t>(later)] == 0) ready.push_back(later);
    }
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
      default: break;
    }
  }

  // What an action reads, it reads last: the longest time in which another could spoil it.
  void finish(ActionRef ref) {
    const Action& one = action(ref);
    const int32_t rank = ref.rank;
    switch (one.kind) {
      case ActionKind::kForward: forward(rank, one); break;
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput: {
        Slot& mine = slot(rank, one);
        const bool last = stage(rank, one) + 1 == context_.num_stages;
        if (const Slot* behind = last ? nullptr : local_slot(rank, one, stage(rank, one) + 1)) mine.output_gradient = behind->input_gradient;
        const uint64_t gradient = mix_hash(mine.saved, last ? 1 : mine.output_gradient);
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
      case ActionKind::kZero: buffer(rank, one.chunk, one.gradient_buffer).rows = 0; break;
      case ActionKind::kMerge: merge(rank, one); break;
      case ActionKind::kOptimizer: optimizer(rank); break;
      case ActionKind::kSendActivation:
      case ActionKind::kSendGradient: sent_[{ref.rank, ref.action}] = boundary(rank, one); break;
      case ActionKind::kRecvActivation: slot(rank, one).input = payload(ref); break;
      case ActionKind::kRecvGradient: slot(rank, one).output_gradient = payload(ref); break;
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

  void forward(int32_t rank, const Action& one) {
    Slot& mine = slot(rank, one);
    const int32_t held = stage(rank, one);
    if (held == 0) mine.input = mix_hash(2, static_cast<uint64_t>(one.micro_batch));
    if (const Slot* before = held == 0 ? nullptr : local_slot(rank, one, held - 1)) mine.input = before->output;
    mine.saved = mix_hash(mine.input, static_cast<uint64_t>(held) + 100);
    mine.output = mix_hash(mine.saved, 3);
    fold(rank, one, GradientPart::kForward, mine.output);
  }

  void fold(int32_t rank, const Action& one, GradientPart part, uint64_t gradient) {
    const bool last = stage(rank, one) + 1 == context_.num_stages;
    if (!writes_part(one.kind, last, part)) return;
    Buffer& sums = buffer(rank, one.chunk, one.gradient_buffer);
    uint64_t& sum = sums.parts[static_cast<size_t>(part)];
    std::vector<uint64_t> addends;
    const MicroBatch& batch = ranks_[static_cast<size_t>(rank)].micro_batches[static_cast<size_t>(one.micro_batch)];
    for (int64_t i = 0; i < batch.num_sequences; ++i) addends.push_back(mix_hash(gradient, static_cast<uint64_t>(batch.first_sequence + i)));
    // A sum that starts adds to whatever the row accumulators hold.
    if (!one.add_to_destination && context_.needs_zero && stage(rank, one) == 0 && sums.rows != 0) addends[0] = mix_hash(addends[0], sums.rows);
    sum = folded_sum(one, sum, addends).value_or(kNothing);
  }

  void merge(int32_t rank, const Action& one) {
    Buffer& into = buffer(rank, one.chunk, one.gradient_buffer);
    Buffer& from = buffer(rank, one.chunk, one.source_buffer);
    for (size_t part = 0; part < into.parts.size(); ++part) into.parts[part] = sum_hash(into.parts[part], from.parts[part]);
    from.rows = kNothing;
  }

  void optimizer(int32_t rank) {
    uint64_t& digest = result_.gradients[static_cast<size_t>(rank)];
    const std::vector<std::vector<int32_t>>& pieces = ranks_[static_cast<size_t>(rank)].piece_buffers;
    for (size_t chunk = 0; chunk < pieces.size(); ++chunk)
      for (int32_t index : pieces[chunk])
        for (uint64_t part : buffer(rank, static_cast<int32_t>(chunk), index).parts) digest = mix_hash(digest, part);
  }

  const std::vector<Schedule>& ranks_;
  const ScheduleContext& context_;
  ScheduleGraph graph_;
  uint64_t random_;
  std::vector<std::vector<std::vector<Slot>>> slots_;      // by rank, chunk, slot
  std::vector<std::vector<std::vector<Buffer>>> buffers_;  // by rank, chunk, buffer
  std::vector<std::map<std::pair<int32_t, int32_t>, int32_t>> slot_of_;  // by rank: (chunk, micro-batch) -> slot
  std::map<std::pair<int32_t, int32_t>, uint64_t> sent_;   // by send that has ended: what it sent
  Interpretation result_;
};

}  // namespace

Interpretation interpret_schedules(const std::vector<Schedule>& ranks, const ScheduleContext& context, uint64_t seed) { return Interpreter(ranks, context, seed).run(); }

}  // namespace orrery
