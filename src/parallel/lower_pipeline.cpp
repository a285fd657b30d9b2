#include "parallel/lower_pipeline.h"

#include <algorithm>
#include <deque>
#include <map>
#include <utility>

#include "base/error.h"

namespace orrery {
namespace {

bool gives_input_gradient(ActionKind kind) { return kind == ActionKind::kBackward || kind == ActionKind::kBackwardInput; }
bool ends_backward(ActionKind kind) { return kind == ActionKind::kBackward || kind == ActionKind::kBackwardWeight; }

// One rank's list under construction.
class RankLowering {
 public:
  RankLowering(const PipelineOrder& order, int32_t rank, const LaneFolds& folds, const LowerOptions& options)
      : order_(order), steps_(order.steps[static_cast<size_t>(rank)]), rank_(rank), num_micro_batches_(static_cast<int32_t>(folds.micro_batches.size())), folds_(folds), options_(options) {
    schedule_.carries = order.carries;
    schedule_.lanes = options.share.lanes;
    schedule_.sequences_per_lane = options.share.global_batch_size / options.share.lanes;
    schedule_.micro_batches = folds.micro_batches;
    schedule_.rounds = folds.rounds;
    schedule_.num_shard_sums = folds.num_shard_sums;
    schedule_.stage_of_chunk.clear();
    for (int32_t stage = 0; stage < order.num_stages(); ++stage)
      if (rank_of(stage) == rank) schedule_.stage_of_chunk.push_back(stage);
    chunks_.resize(schedule_.stage_of_chunk.size());
    schedule_.num_gradient_buffers.assign(chunks_.size(), folds.rounds.empty() ? 0 : 1);
    for (Chunk& chunk : chunks_) chunk.buffer_of_sum = chunk.next_buffer_of_sum = std::vector<int32_t>(static_cast<size_t>(folds.num_sums), kNone);
  }

  Schedule run() {
    if (!order_.carries) check_order();
    plan_slots();
    if (order_.carries) begin_in_flow();
    for (size_t position = 0; position < steps_.size(); ++position) {
      const ComputeStep& step = steps_[position];
      if (step.kind == ActionKind::kForward)
        forward(step);
      else
        backward(step);
      for (const auto& [chunk, micro_batch] : released_at_[position]) release(chunk, micro_batch);
    }
    if (order_.carries) receive_ahead();
    for (const Chunk& chunk : chunks_) {
      auto& pieces = schedule_.piece_buffers.emplace_back();
      for (const FinishedSum& finished : folds_.finished) pieces.push_back(chunk.buffer_of_sum[static_cast<size_t>(finished.sum)]);
    }
    Action optimizer;
    optimizer.kind = ActionKind::kOptimizer;
    schedule_.actions.push_back(optimizer);
    ORRERY_CHECK(!order_.carries || in_next_step(chunks_.front().next_buffer_of_sum) == found_sums_, "the sums of rank {} move from step to step", rank_);
    return std::move(schedule_);
  }

 private:
  static constexpr int32_t kNone = -1;
  struct FreeSlot {
    int32_t slot = 0;
    std::vector<int32_t> users;  // actions of the micro-batch that had it, to be waited for
  };
  struct Chunk {
    std::deque<FreeSlot> free;                   // longest free first, so that a receive can start early
    std::map<int32_t, FreeSlot> alive;           // by micro-batch
    std::map<int32_t, int32_t> forward_action;   // by micro-batch
    std::vector<int32_t> buffer_of_sum;          // kNone: none yet, or given back
    std::vector<int32_t> next_buffer_of_sum;     // of the next step's
    std::vector<bool> buffer_taken;
  };

  int32_t rank_of(int32_t stage) const { return order_.rank_of_stage[static_cast<size_t>(stage)]; }
  int32_t world_rank(int32_t rank) const { return options_.world_ranks.empty() ? rank : options_.world_ranks[static_cast<size_t>(rank)]; }
  bool is_last(int32_t stage) const { return stage + 1 == order_.num_stages(); }
  bool here(int32_t stage) const { return stage >= 0 && stage < order_.num_stages() && rank_of(stage) == rank_; }
  int32_t chunk_of(int32_t stage) const {
    const auto found = std::find(schedule_.stage_of_chunk.begin(), schedule_.stage_of_chunk.end(), stage);
    return static_cast<int32_t>(found - schedule_.stage_of_chunk.begin());
  }
  Chunk& chunk(int32_t index) { return chunks_[static_cast<size_t>(index)]; }

  [[noreturn]] void refuse(const ComputeStep& step, const char* why) const {
    throw Error(ErrorCode::kInvalidConfig, "schedule of rank {}: {}{}{} {}", rank_, step.stage, kind_letter(step.kind), step.micro_batch, why);
  }
  static char kind_letter(ActionKind kind) {
    return kind == ActionKind::kForward ? 'F' : kind == ActionKind::kBackward ? 'B' : kind == ActionKind::kBackwardInput ? 'I' : 'W';
  }

  // Gradients meet in the order of the micro-batches, so every stage has to run them in ascending order.
  void check_order() const {
    struct Done {
      int32_t forward = 0, input = 0, weight = 0;
    };
    std::map<int32_t, Done> done;
    for (const ComputeStep& step : steps_) {
      if (!here(step.stage)) refuse(step, "names a stage that this rank does not hold");
      Done& stage = done[step.stage];
      const bool is_forward = step.kind == ActionKind::kForward;
      const bool is_input = gives_input_gradient(step.kind), is_weight = ends_backward(step.kind);
      if (!is_forward && !is_input && !is_weight) refuse(step, "is not a forward or backward");
      if ((is_forward && step.micro_batch != stage.forward) || (is_input && step.micro_batch != stage.input) || (is_weight && step.micro_batch != stage.weight))
        refuse(step, "comes out of order: each stage runs the micro-batches 0, 1, 2, ... one after the other, forward and backward alike");
      stage.forward += is_forward;
      stage.input += is_input;
      stage.weight += is_weight;
      if (stage.input > stage.forward) refuse(step, "comes before its forward");
      if (stage.weight > stage.input) refuse(step, "comes before its I");
    }
    for (int32_t stage : schedule_.stage_of_chunk) {
      const Done& counted = done[stage];
      if (counted.forward != num_micro_batches_ || counted.input != num_micro_batches_ || counted.weight != num_micro_batches_)
        throw Error(ErrorCode::kInvalidConfig, "schedule of rank {}: stage {} runs {} forwards, {} input and {} weight gradients; the batch has {} micro-batches", rank_, stage,
                    counted.forward, counted.input, counted.weight, num_micro_batches_);
    }
  }

  // When each slot is given back, and so how many are needed.
  void plan_slots() {
    released_at_.resize(steps_.size());
    std::map<std::pair<int32_t, int32_t>, size_t> release_position;  // (chunk, micro-batch)
    for (size_t position = 0; position < steps_.size(); ++position) {
      const ComputeStep& step = steps_[position];
      if (ends_backward(step.kind)) {
        size_t& at = release_position[{chunk_of(step.stage), step.micro_batch}];
        at = std::max(at, position);
      }
      if (gives_input_gradient(step.kind) && here(step.stage + 1)) {
        size_t& at = release_position[{chunk_of(step.stage + 1), step.micro_batch}];
        at = std::max(at, position);
      }
    }
    for (const auto& [key, position] : release_position) released_at_[position].push_back(key);
    std::vector<int32_t> alive(chunks_.size(), order_.carries ? first(rank_, ActionKind::kForward) - first(rank_, ActionKind::kBackward) : 0), peak = alive;
    for (size_t position = 0; position < steps_.size(); ++position) {
      const auto index = static_cast<size_t>(chunk_of(steps_[position].stage));
      if (steps_[position].kind == ActionKind::kForward) peak[index] = std::max(peak[index], ++alive[index]);
      for (const auto& released : released_at_[position]) --alive[static_cast<size_t>(released.first)];
    }
    for (size_t index = 0; index < chunks_.size(); ++index) {
      int32_t num_slots = std::min(peak[index] + options_.spare_slots, num_micro_batches_);
      // Rounds that are as equal as can be, none shorter than what is alive.
      if (order_.carries) num_rounds_ = num_micro_batches_ / num_slots, num_slots = (num_micro_batches_ + num_rounds_ - 1) / num_rounds_;
      for (int32_t slot = 0; slot < num_slots; ++slot) chunks_[index].free.push_back({slot, {}});
      schedule_.num_slots.push_back(num_slots);
    }
  }

  // The first forward or backward of a rank whose order carries.
  int32_t first(int32_t rank, ActionKind kind) const {
    const auto& steps = order_.steps[static_cast<size_t>(rank)];
    return std::find_if(steps.begin(), steps.end(), [&](const ComputeStep& step) { return step.kind == kind; })->micro_batch;
  }
  bool is_next(int32_t micro_batch) const { return micro_batch >= num_micro_batches_; }

  // The slot of a micro-batch where the order carries: its place in its round.
  int32_t slot_of(int32_t micro_batch) const {
    const int32_t index = micro_batch % num_micro_batches_, longer = num_micro_batches_ % num_rounds_, shortest = num_micro_batches_ / num_rounds_;
    const int32_t in_longer = longer * (shortest + 1);
    return index < in_longer ? index % (shortest + 1) : (index - in_longer) % shortest;
  }

  FreeSlot take_slot(Chunk& mine, int32_t micro_batch) {
    const auto found = order_.carries ? std::find_if(mine.free.begin(), mine.free.end(), [&](const FreeSlot& slot) { return slot.slot == slot_of(micro_batch); }) : mine.free.begin();
    ORRERY_CHECK(found != mine.free.end(), "no slot for micro-batch {}", micro_batch);
    FreeSlot slot = std::move(*found);
    mine.free.erase(found);
    return slot;
  }

  std::vector<int32_t> in_next_step(std::vector<int32_t> buffers) const {
    for (int32_t& buffer : buffers) buffer = buffer_in_step(schedule_, buffer, 1);
    return buffers;
  }

  // What the step before has left: slots in use, and sums where its last actions, the same as those of this step, have put them.
  void begin_in_flow() {
    Chunk& mine = chunks_.front();
    for (int32_t micro_batch = first(rank_, ActionKind::kBackward); micro_batch < first(rank_, ActionKind::kForward); ++micro_batch)
      mine.alive[micro_batch] = take_slot(mine, micro_batch);
    const auto adds = [&](const ComputeStep& step) { return is_next(step.micro_batch) && (step.kind != ActionKind::kForward || is_last(step.stage)); };
    if (std::none_of(steps_.begin(), steps_.end(), adds)) return void(found_sums_ = mine.buffer_of_sum);
    schedule_.num_swapped_buffers = 2 * static_cast<int32_t>(folds_.finished.size());
    schedule_.num_gradient_buffers.front() = schedule_.num_swapped_buffers;
    for (int32_t buffer = 0; buffer < schedule_.num_swapped_buffers; buffer += 2) take_buffer(mine, buffer);
    for (const ComputeStep& step : steps_) {
      if (!adds(step)) continue;
      gradient_buffer(step);
      if (ends_backward(step.kind)) merges(step);
    }
    mine.buffer_of_sum = found_sums_ = in_next_step(std::exchange(mine.next_buffer_of_sum, std::vector<int32_t>(mine.buffer_of_sum.size(), kNone)));
    std::fill(mine.buffer_taken.begin(), mine.buffer_taken.end(), false);
    for (int32_t buffer : mine.buffer_of_sum)
      if (buffer != kNone) take_buffer(mine, buffer);
  }

  // Messages that the neighbours send before the cut, for what this rank runs behind it.
  void receive_ahead() {
    const int32_t stage = schedule_.stage_of_chunk.front();
    Chunk& mine = chunks_.front();
    if (stage > 0)
      for (int32_t i = first(rank_, ActionKind::kForward); i < first(rank_of(stage - 1), ActionKind::kForward); ++i) {
        FreeSlot slot = take_slot(mine, i);
        Action receive = point(ActionKind::kRecvActivation, {ActionKind::kForward, stage, num_micro_batches_ + i}, stage - 1, slot.slot);
        for (int32_t user : slot.users) receive.waits.push_back({.action = user});
        push(std::move(receive));
      }
    if (!is_last(stage))
      for (int32_t i = first(rank_, ActionKind::kBackward); i < first(rank_of(stage + 1), ActionKind::kBackward); ++i) {
        Action receive = point(ActionKind::kRecvGradient, {ActionKind::kBackward, stage, num_micro_batches_ + i}, stage + 1, slot_of(i));
        receive.waits = {{.action = mine.forward_action.at(num_micro_batches_ + i)}};
        push(std::move(receive));
      }
  }
  // Whether the step before has received it.
  bool is_here(const ComputeStep& step, int32_t neighbour) const { return order_.carries && step.micro_batch < first(rank_of(neighbour), step.kind); }

  int32_t push(Action action) {
    schedule_.actions.push_back(std::move(action));
    return static_cast<int32_t>(schedule_.actions.size()) - 1;
  }

  Action point(ActionKind kind, const ComputeStep& step, int32_t peer_stage, int32_t slot) const {
    Action action;
    action.kind = kind;
    action.chunk = chunk_of(step.stage);
    action.micro_batch = step.micro_batch % num_micro_batches_;
    action.next_step = is_next(step.micro_batch);
    action.slot = slot;
    action.peer = world_rank(rank_of(peer_stage));
    return action;
  }

  Action compute(const ComputeStep& step, int32_t slot) const {
    Action action;
    action.kind = step.kind;
    action.chunk = chunk_of(step.stage);
    action.micro_batch = step.micro_batch % num_micro_batches_;
    action.next_step = is_next(step.micro_batch);
    action.slot = slot;
    const LaneFold& fold = fold_of(step);
    action.merges = fold.merges;
    action.add_to_destination = fold.add_to_destination;
    return action;
  }

  void forward(const ComputeStep& step) {
    Chunk& mine = chunk(chunk_of(step.stage));
    FreeSlot slot = take_slot(mine, step.micro_batch);
    // The loss leaves its gradients in the forward, so there the partial sum begins.
    const int32_t buffer = is_last(step.stage) ? gradient_buffer(step) : -1;
    const bool receives = step.stage > 0 && !here(step.stage - 1) && !is_here(step, step.stage - 1);
    std::vector<Wait> waits;
    for (int32_t user : slot.users) {
      const bool in_order_anyway = !receives && stream_of(schedule_.actions[static_cast<size_t>(user)].kind) == Stream::kCompute;
      if (!in_order_anyway) waits.push_back({.action = user});
    }
    slot.users.clear();
    if (receives) {
      Action receive = point(ActionKind::kRecvActivation, step, step.stage - 1, slot.slot);
      receive.waits = std::move(waits);
      waits = {{.action = push(std::move(receive))}};
    }
    Action action = compute(step, slot.slot);
    action.gradient_buffer = std::max(buffer, 0);
    action.waits = std::move(waits);
    const int32_t index = push(std::move(action));
    mine.forward_action[step.micro_batch] = index;
    if (!is_last(step.stage) && !here(step.stage + 1)) {
      Action send = point(ActionKind::kSendActivation, step, step.stage + 1, slot.slot);
      send.waits = {{.action = index}};
      slot.users.push_back(push(std::move(send)));
    }
    mine.alive[step.micro_batch] = std::move(slot);
  }

  void backward(const ComputeStep& step) {
    Chunk& mine = chunk(chunk_of(step.stage));
    FreeSlot& slot = mine.alive.at(step.micro_batch);
    const int32_t buffer = gradient_buffer(step);
    Action action = compute(step, slot.slot);
    action.gradient_buffer = buffer;
    if (gives_input_gradient(step.kind) && !is_last(step.stage) && !here(step.stage + 1) && !is_here(step, step.stage + 1)) {
      Action receive = point(ActionKind::kRecvGradient, step, step.stage + 1, slot.slot);
      if (const auto forward = mine.forward_action.find(step.micro_batch); forward != mine.forward_action.end()) receive.waits = {{.action = forward->second}};
      action.waits = {{.action = push(std::move(receive))}};
    }
    const int32_t index = push(std::move(action));
    if (gives_input_gradient(step.kind) && step.stage > 0 && !here(step.stage - 1)) {
      Action send = point(ActionKind::kSendGradient, step, step.stage - 1, slot.slot);
      send.waits = {{.action = index}};
      slot.users.push_back(push(std::move(send)));
    }
    last_compute_ = index;
    if (ends_backward(step.kind)) carry(step);
  }

  // What reads the slot last on this rank is the compute action just emitted.
  void release(int32_t chunk_index, int32_t micro_batch) {
    Chunk& owner = chunk(chunk_index);
    FreeSlot slot = std::move(owner.alive.at(micro_batch));
    owner.alive.erase(micro_batch);
    slot.users.push_back(last_compute_);
    owner.free.push_back(std::move(slot));
  }

  const LaneFold& fold_of(const ComputeStep& step) const { return folds_.folds[static_cast<size_t>(step.micro_batch % num_micro_batches_)]; }
  std::vector<int32_t>& buffers_of_sums(const ComputeStep& step) {
    Chunk& mine = chunk(chunk_of(step.stage));
    return is_next(step.micro_batch) ? mine.next_buffer_of_sum : mine.buffer_of_sum;
  }

  static void take_buffer(Chunk& mine, int32_t buffer) {
    mine.buffer_taken.resize(std::max(mine.buffer_taken.size(), static_cast<size_t>(buffer) + 1), false);
    mine.buffer_taken[static_cast<size_t>(buffer)] = true;
  }

  int32_t gradient_buffer(const ComputeStep& step) {
    // What leaves the rank at the end of a round needs one place, whose users wait for each other unit by unit (shard.h).
    if (!folds_.rounds.empty()) return 0;
    Chunk& mine = chunk(chunk_of(step.stage));
    const int32_t sum = fold_of(step).sum;
    int32_t& buffer = buffers_of_sums(step)[static_cast<size_t>(sum)];
    if (buffer != kNone) return buffer;
    const auto& finished = folds_.finished;
    const auto piece = std::find_if(finished.begin(), finished.end(), [&](const FinishedSum& one) { return one.sum == sum; });
    if (schedule_.num_swapped_buffers > 0 && piece != finished.end()) {
      buffer = 2 * static_cast<int32_t>(piece - finished.begin()) + is_next(step.micro_batch);
    } else {
      // A single pair's second is free until the next step begins its sum.
      const ptrdiff_t first = schedule_.num_swapped_buffers > 2 ? schedule_.num_swapped_buffers : schedule_.num_swapped_buffers / 2;
      const auto begin = mine.buffer_taken.begin() + std::min<ptrdiff_t>(std::ssize(mine.buffer_taken), first);
      buffer = static_cast<int32_t>(std::max(first, std::find(begin, mine.buffer_taken.end(), false) - mine.buffer_taken.begin()));
    }
    ORRERY_CHECK(static_cast<size_t>(buffer) >= mine.buffer_taken.size() || !mine.buffer_taken[static_cast<size_t>(buffer)], "gradient buffer {} is in use", buffer);
    take_buffer(mine, buffer);
    int32_t& num_buffers = schedule_.num_gradient_buffers[static_cast<size_t>(chunk_of(step.stage))];
    num_buffers = std::max(num_buffers, buffer + 1);
    return buffer;
  }

  // (into, from): the merges of buffers behind a micro-batch; `from` is free then.
  std::vector<std::pair<int32_t, int32_t>> merges(const ComputeStep& step) {
    Chunk& mine = chunk(chunk_of(step.stage));
    std::vector<int32_t>& buffers = buffers_of_sums(step);
    std::vector<std::pair<int32_t, int32_t>> merged;
    for (const auto& [into, from] : fold_of(step).carries) {
      int32_t& source = buffers[static_cast<size_t>(from)];
      merged.emplace_back(buffers[static_cast<size_t>(into)], source);
      mine.buffer_taken[static_cast<size_t>(source)] = false;
      source = kNone;
    }
    return merged;
  }

  void carry(const ComputeStep& step) {
    for (const auto& [into, from] : merges(step)) {
      Action merge;
      merge.kind = ActionKind::kMerge;
      merge.chunk = chunk_of(step.stage);
      merge.gradient_buffer = into;
      merge.source_buffer = from;
      merge.next_step = is_next(step.micro_batch);
      push(std::move(merge));
    }
  }

  const PipelineOrder& order_;
  const std::vector<ComputeStep>& steps_;
  const int32_t rank_;
  const int32_t num_micro_batches_;
  const LaneFolds& folds_;
  const LowerOptions& options_;
  Schedule schedule_;
  std::vector<Chunk> chunks_;
  std::vector<std::vector<std::pair<int32_t, int32_t>>> released_at_;  // by step: (chunk, micro-batch)
  int32_t last_compute_ = -1;
  int32_t num_rounds_ = 0;            // of slots, where the order carries
  std::vector<int32_t> found_sums_;
};

}  // namespace

std::vector<Schedule> lower_pipeline(const PipelineOrder& order, const LowerOptions& options) {
  const LaneFolds folds = lane_folds(options.share);
  const auto num_ranks = static_cast<int32_t>(order.steps.size());
  ORRERY_CHECK(options.world_ranks.empty() || options.world_ranks.size() == order.steps.size(), "{} world ranks for {}", options.world_ranks.size(), num_ranks);
  std::vector<Schedule> schedules;
  for (int32_t rank = 0; rank < num_ranks; ++rank) schedules.push_back(RankLowering(order, rank, folds, options).run());
  return schedules;
}

void insert_actions(Schedule& schedule, int32_t position, const std::vector<Action>& actions) {
  for (Action& action : schedule.actions)
    for (Wait& wait : action.waits)
      if (wait.action >= position) wait.action += static_cast<int32_t>(actions.size());
  schedule.actions.insert(schedule.actions.begin() + position, actions.begin(), actions.end());
}

void move_action(Schedule& schedule, int32_t from, int32_t to) {
  ORRERY_CHECK(to <= from, "action {} in front of {}", from, to);
  for (Action& action : schedule.actions)
    for (Wait& wait : action.waits) wait.action = wait.action == from ? to : wait.action + (wait.action >= to && wait.action < from);
  const auto begin = schedule.actions.begin();
  std::rotate(begin + to, begin + from, begin + from + 1);
}

}  // namespace orrery
