#include "ir/verify_schedules.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <set>

#include "ir/gradient_sums.h"
#include "ir/unroll_schedule.h"
#include "ir/verify_offload.h"
#include "ir/verify_shards.h"

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
  SetVerifier(const std::vector<Schedule>& ranks, const ScheduleContext& context) : ranks_(&ranks), context_(context) {}

  std::vector<std::string> run() {
    for (int32_t rank = 0; rank < num_ranks(); ++rank) check_fields(rank);
    for (int32_t rank = 0; rank < num_ranks(); ++rank) check_optimizer(rank);
    if (!problems_.empty()) return std::move(problems_);  // what follows indexes by these fields
    // A step that begins with what the one before has left is looked at as some steps in a row: the last of them leaves what the others do.
    std::vector<Schedule> steps;
    if (carry(*ranks_)) {
      steps = unroll(*ranks_, kSteps);
      ranks_ = &steps;
    }
    const ScheduleGraph graph(*ranks_, context_);
    graph_ = &graph;
    for (const std::string& text : graph.problems()) problem("{}", text);
    if (const std::string cycle = graph.cycle(); !cycle.empty()) problem("these wait for each other: {}", cycle);
    for (int32_t rank = 0; rank < num_ranks(); ++rank) index_batches(rank);
    if (!problems_.empty()) return std::move(problems_);  // order can be asked for only where there is one
    for (int32_t rank = 0; rank < num_ranks(); ++rank) {
      for (const auto& [key, batch] : batches_[static_cast<size_t>(rank)])
        if (key.second < num_whole_batches(rank)) check_batch(rank, key.first, key.second, batch);
      check_slots(rank);
      for (const std::string& text : verify_offload(schedule(rank), context_, graph, rank)) problem("{}", text);
      for (int32_t chunk = 0; chunk < num_chunks(rank) && schedule(rank).rounds.empty(); ++chunk) check_sums(rank, chunk);
      if (has_units(rank))
        for (const std::string& text : verify_shards(*ranks_, context_, graph, rank)) problem("{}", text);
    }
    return std::move(problems_);
  }

 private:
  using BatchKey = std::pair<int32_t, int32_t>;  // (chunk, micro-batch)
  static constexpr int32_t kSteps = 3;

  template <typename... Args>
  void problem(fmt::format_string<Args...> format, Args&&... args) {
    if (problems_.size() < kMaxProblems) problems_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  int32_t num_ranks() const { return static_cast<int32_t>(ranks_->size()); }
  const Schedule& schedule(int32_t rank) const { return (*ranks_)[static_cast<size_t>(rank)]; }
  // Those of a step that is not there are begun and not ended.
  int32_t num_whole_batches(int32_t rank) const {
    const auto all = static_cast<int32_t>(schedule(rank).micro_batches.size());
    return schedule(rank).carries ? all / (kSteps + 1) * kSteps : all;
  }
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
    if (mine.carries != schedule(0).carries) problem("rank {} ends its steps with work of the next one, and another rank does not", mine.carries ? rank : 0);
    const auto stays_in_step = [](const Action& one) { return !one.next_step; };
    if (!mine.carries && !std::all_of(mine.actions.begin(), mine.actions.end(), stays_in_step)) problem("rank {} has work of the next step, and its steps do not carry any", rank);
    if (static_cast<int32_t>(mine.num_slots.size()) != num_chunks(rank)) problem("rank {} counts slots of {} chunks, it has {}", rank, mine.num_slots.size(), num_chunks(rank));
    if (static_cast<int32_t>(mine.num_gradient_buffers.size()) != num_chunks(rank) || static_cast<int32_t>(mine.piece_buffers.size()) != num_chunks(rank))
      problem("rank {} counts gradient buffers of {} chunks, sums of {}; it has {}", rank, mine.num_gradient_buffers.size(), mine.piece_buffers.size(), num_chunks(rank));
    for (int32_t buffers : mine.num_gradient_buffers)
      if (mine.num_swapped_buffers > buffers || mine.num_swapped_buffers % 2 != 0) problem("rank {} exchanges {} gradient buffers in pairs, it has {}", rank, mine.num_swapped_buffers, buffers);
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
      if (!belongs_to_batch(one.kind) && stream_of(one.kind) != Stream::kCopy && one.micro_batch >= 0) problem("{} names micro-batch {} and belongs to none", called, one.micro_batch);
      if (stream_of(one.kind) == Stream::kPoint && (one.peer < 0 || one.peer >= num_ranks() || one.peer == rank)) problem("{} names rank {} as its peer", called, one.peer);
      const int32_t num_buffers = mine.num_gradient_buffers[static_cast<size_t>(one.chunk)];
      if (stream_of(one.kind) == Stream::kCompute && one.kind != ActionKind::kOptimizer && (one.gradient_buffer < 0 || one.gradient_buffer >= num_buffers))
        problem("{} names gradient buffer {} of {}", called, one.gradient_buffer, num_buffers);
      const bool is_copy = one.kind == ActionKind::kOffload || one.kind == ActionKind::kFetch;
      if (mine.carries && (!mine.rounds.empty() || has_units(rank))) problem("{} is of what takes turns in a step, and steps run into each other", called);
      if (one.next_step && !belongs_to_batch(one.kind) && one.kind != ActionKind::kMerge && !(is_copy && one.micro_batch >= 0)) problem("{} is of the next step, and no part of a micro-batch", called);
      if (one.kind == ActionKind::kFetchParameters && !has_units(rank)) problem("{} fetches what is not offloaded", called);
      if (is_copy && !names_what_is_offloaded(one, context_, rank)) problem("{} copies what is not there", called);
      if (is_copy && one.micro_batch >= static_cast<int32_t>(mine.micro_batches.size())) problem("{} names a micro-batch that is not there", called);
      if (is_of_unit(rank, one) && (one.unit < 0 || one.unit >= static_cast<int32_t>(context_.unit_uses[static_cast<size_t>(rank)].gradient_slot.size())))
        problem("{} names a unit that is not there", called);
      if (!mine.rounds.empty() && one.kind == ActionKind::kReduceScatterGradients && (one.round < 0 || one.round >= static_cast<int32_t>(mine.rounds.size())))
        problem("{} names round {} of {}", called, one.round, mine.rounds.size());
      if (one.kind == ActionKind::kMerge && (one.source_buffer < 0 || one.source_buffer >= num_buffers || one.source_buffer == one.gradient_buffer))
        problem("{} adds from gradient buffer {} of {}", called, one.source_buffer, num_buffers);
    }
  }

  bool has_units(int32_t rank) const { return static_cast<size_t>(rank) < context_.unit_uses.size(); }

  // Whether the action gathers, fetches or reduces a unit in a slot.
  bool is_of_unit(int32_t rank, const Action& one) const {
    return has_units(rank) && (one.kind == ActionKind::kFetchParameters || one.kind == ActionKind::kReduceScatterGradients || one.kind == ActionKind::kAllGatherParameters || one.kind == ActionKind::kAllReduceGradients);
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
      for (int32_t batch = 0; batch < num_whole_batches(rank); ++batch) {
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
      if (key.second < num_whole_batches(rank)) users[{key.first, action(rank, found[ActionKind::kForward]).slot}].emplace_back(found[ActionKind::kForward], key.second);
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
    int64_t step = 0;
    for (int32_t index = 0; index < static_cast<int32_t>(schedule(rank).actions.size()); ++index) {
      const Action& one = action(rank, index);
      if (one.kind == ActionKind::kOptimizer) {
        for (GradientPart part : {GradientPart::kForward, GradientPart::kInput, GradientPart::kWeight})
          if (part != GradientPart::kForward || last_stage) check_finished(rank, chunk, step, filled[static_cast<size_t>(part)]);
        ++step;
        continue;
      }
      if (one.chunk != chunk) continue;
      if (one.kind == ActionKind::kMerge) {
        for (GradientPart part : {GradientPart::kForward, GradientPart::kInput, GradientPart::kWeight}) {
          if (part == GradientPart::kForward && !last_stage) continue;
          auto& sums = filled[static_cast<size_t>(part)];
          if (!sums.count(one.gradient_buffer) || !sums.count(one.source_buffer)) return problem("{} adds a buffer that holds no sum", name(rank, index));
          sums[one.gradient_buffer] = sum_hash(sums[one.gradient_buffer], sums[one.source_buffer]);
          sums.erase(one.source_buffer);
        }
      } else if (is_compute_of_batch(one.kind)) {
        for (GradientPart part : {GradientPart::kForward, GradientPart::kInput, GradientPart::kWeight})
          if (writes_part(one.kind, last_stage, part) && !fold(rank, index, filled[static_cast<size_t>(part)])) return;
      }
    }
  }

  bool fold(int32_t rank, int32_t index, std::map<int32_t, uint64_t>& sums) {
    const Action& one = action(rank, index);
    const bool holds = sums.count(one.gradient_buffer) > 0;
    if (one.add_to_destination != holds) {
      if (holds) problem("{} overwrites the sum in gradient buffer {}", name(rank, index), one.gradient_buffer);
      else problem("{} adds to gradient buffer {} before it holds a sum", name(rank, index), one.gradient_buffer);
      return false;
    }
    const MicroBatch& batch = schedule(rank).micro_batches[static_cast<size_t>(one.micro_batch)];
    std::vector<uint64_t> addends;
    for (int64_t i = 0; i < batch.num_sequences; ++i) addends.push_back(sequence_hash(batch.batch_sequence + i));
    const auto sum = folded_sum(one, holds ? sums[one.gradient_buffer] : 0, addends);
    if (!sum) {
      problem("{} does not fold its {} sequences into one sum", name(rank, index), batch.num_sequences);
      return false;
    }
    sums[one.gradient_buffer] = *sum;
    return true;
  }

  LaneRange lanes(int32_t rank) const { return context_.lanes.empty() ? LaneRange{0, schedule(rank).lanes} : context_.lanes[static_cast<size_t>(rank)]; }

  // The sums that are left are the largest nodes of the lane tree that the rank's lanes make up, where piece_buffers says, the first in
  // buffer 0. The update ends them; beside them are at most those of the next step.
  void check_finished(int32_t rank, int32_t chunk, int64_t step, std::map<int32_t, uint64_t>& sums) {
    const Schedule& mine = schedule(rank);
    const auto [first, count] = lanes(rank);
    std::vector<int32_t> buffers = mine.piece_buffers[static_cast<size_t>(chunk)];
    size_t piece = 0;
    bool right = buffers.empty() || buffers[0] == 0;
    for (int32_t& buffer : buffers) buffer = buffer_in_step(mine, buffer, step);
    const int64_t before = step * mine.lanes;  // of the steps before
    for (int64_t lane = first; lane < first + count && right; ++piece) {
      auto size = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(first + count - lane)));
      while (lane % size != 0) size /= 2;
      right = piece < buffers.size() && sums.count(buffers[piece]) > 0 && sums.at(buffers[piece]) == lane_tree_hash(before + lane, size, mine.sequences_per_lane);
      lane += size;
    }
    if (!right || piece != buffers.size() || (!mine.carries && sums.size() != buffers.size()))
      problem("rank {} stage {}: the gradient sums that reach OPT are not the lane tree over lanes [{}, {})", rank, stage(rank, chunk), first, first + count);
    for (int32_t buffer : buffers) sums.erase(buffer);
  }

  const std::vector<Schedule>* ranks_;
  const ScheduleContext& context_;
  const ScheduleGraph* graph_ = nullptr;
  std::vector<std::map<BatchKey, BatchActions>> batches_;  // by rank
  std::vector<std::string> problems_;
};

}  // namespace

std::vector<std::string> verify_schedules(const std::vector<Schedule>& ranks, const ScheduleContext& context) { return SetVerifier(ranks, context).run(); }

}  // namespace orrery
