#include "ir/verify_offload.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>

namespace orrery {
namespace {

const StateOffload& state_of(const ScheduleContext& context, int32_t rank) {
  static const StateOffload kNone;
  return static_cast<size_t>(rank) < context.offload.size() ? context.offload[static_cast<size_t>(rank)] : kNone;
}

const std::vector<ActivationGroup>& groups_of(const ScheduleContext& context, int32_t rank) {
  static const std::vector<ActivationGroup> kNone;
  return static_cast<size_t>(rank) < context.activation_groups.size() ? context.activation_groups[static_cast<size_t>(rank)] : kNone;
}

class OffloadVerifier {
 public:
  OffloadVerifier(const Schedule& schedule, const ScheduleContext& context, const ScheduleGraph& graph, int32_t rank)
      : schedule_(schedule), state_(state_of(context, rank)), groups_(groups_of(context, rank)), graph_(graph), rank_(rank) {
    for (int32_t index = 0; index < static_cast<int32_t>(schedule.actions.size()); ++index) {
      const Action& action = schedule.actions[static_cast<size_t>(index)];
      if (action.kind == ActionKind::kOptimizer) optimizers_.push_back(index);
      if (action.kind == ActionKind::kForward) compute_[{action.chunk, action.micro_batch, true}] = index;
      if (action.kind == ActionKind::kBackward || action.kind == ActionKind::kBackwardInput) compute_[{action.chunk, action.micro_batch, false}] = index;
      if (action.kind != ActionKind::kOffload && action.kind != ActionKind::kFetch) continue;
      copies_[{action.kind, action.unit, action.micro_batch}].push_back(index);
    }
    for (const auto& [copy, all] : copies_)
      if (all.size() > (std::get<2>(copy) >= 0 ? 1 : optimizers_.size())) problem("{} comes twice", name(all.back()));
  }

  std::vector<std::string> run() {
    if (problems_.empty()) check_state();
    if (problems_.empty()) check_activations();
    return std::move(problems_);
  }

 private:
  template <typename... Args>
  void problem(fmt::format_string<Args...> format, Args&&... args) {
    problems_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }
  std::string name(int32_t index) const { return graph_.name({rank_, index}); }
  // Of a piece of state, the one of the `step`-th update.
  int32_t copy_of(ActionKind kind, int32_t unit, int32_t micro_batch, size_t step = 0) const {
    const auto found = copies_.find({kind, unit, micro_batch});
    return found == copies_.end() || found->second.size() <= step ? -1 : found->second[step];
  }
  bool ends_before_op(int32_t first, int32_t second, int32_t op) const { return graph_.before(graph_.end({rank_, first}), graph_.before_op({rank_, second}, op)); }
  bool starts_behind_op(int32_t first, int32_t second, int32_t op) const { return graph_.before(graph_.behind_op({rank_, second}, op), graph_.start({rank_, first})); }
  bool ordered(int32_t first, int32_t second) const { return graph_.before(graph_.end({rank_, first}), graph_.start({rank_, second})); }

  // Of each step: nothing of one begins before all of the one before has ended (unroll_schedule.h).
  void check_state() {
    for (size_t step = 0; step < optimizers_.size() && problems_.empty(); ++step) check_state(step);
  }

  void check_state(size_t step) {
    const int32_t optimizer = optimizers_[step];
    for (int32_t index = 0; index < static_cast<int32_t>(state_.pieces.size()); ++index) {
      const OffloadPiece& piece = state_.pieces[static_cast<size_t>(index)];
      const int32_t fetch = copy_of(ActionKind::kFetch, index, -1, step), back = copy_of(ActionKind::kOffload, index, -1, step);
      if (fetch < 0 || back < 0) return problem("rank {}: piece {} of the state does not {}", rank_, index, fetch < 0 ? "come" : "go back");
      if (!ends_before_op(fetch, optimizer, piece.first_op)) problem("{} does not wait for {}", name(optimizer), name(fetch));
      if (!starts_behind_op(back, optimizer, piece.last_op)) problem("{} does not wait for the update of its piece", name(back));
      if (index >= state_.slots.count && !ordered(copy_of(ActionKind::kOffload, index - state_.slots.count, -1, step), fetch)) problem("{} takes a slot whose piece has not gone back", name(fetch));
    }
  }

  void check_activations() {
    const auto num_batches = static_cast<int32_t>(schedule_.micro_batches.size());
    for (int32_t index = 0; index < static_cast<int32_t>(groups_.size()); ++index) {
      const ActivationGroup& group = groups_[static_cast<size_t>(index)];
      std::vector<std::pair<int32_t, int32_t>> order;  // forwards
      // What the last of several steps has begun ends behind them; the same actions of the steps before are looked at.
      for (int32_t batch = 0; batch < num_batches; ++batch)
        if (!schedule_.carries || compute_.count({group.chunk, batch, false}) > 0) order.emplace_back(compute_.at({group.chunk, batch, true}), batch);
      std::sort(order.begin(), order.end());
      std::map<int32_t, int32_t> fetched;  // by slot: the last EF
      for (const auto& [forward, batch] : order) {
        const int32_t backward = compute_.at({group.chunk, batch, false});
        const int32_t leave = copy_of(ActionKind::kOffload, index, batch), come = copy_of(ActionKind::kFetch, index, batch);
        if (leave < 0 || come < 0) return problem("rank {}: group {} of micro-batch {} does not {}", rank_, index, batch, leave < 0 ? "go" : "come back");
        const int32_t slot = schedule_.actions[static_cast<size_t>(forward)].slot;
        for (int32_t copy : {leave, come})
          if (schedule_.actions[static_cast<size_t>(copy)].slot != slot) problem("{} copies slot {}, the forward of its micro-batch has slot {}", name(copy), schedule_.actions[static_cast<size_t>(copy)].slot, slot);
        if (!starts_behind_op(leave, forward, group.leaves_after)) problem("{} does not wait for what it copies", name(leave));
        if (!ends_before_op(leave, forward, group.gone_before)) problem("{} does not wait for {}", name(forward), name(leave));
        if (!starts_behind_op(come, backward, group.comes_after)) problem("{} comes before there is room", name(come));
        if (!ends_before_op(come, backward, group.needed_before)) problem("{} does not wait for {}", name(backward), name(come));
        if (!ordered(leave, come)) problem("{} comes before {}", name(come), name(leave));
        const auto [earlier, fresh] = fetched.try_emplace(slot, come);
        if (!fresh && !ordered(earlier->second, leave)) problem("{} overwrites what {} has not brought back", name(leave), name(earlier->second));
        earlier->second = come;
      }
    }
  }

  const Schedule& schedule_;
  const StateOffload& state_;
  const std::vector<ActivationGroup>& groups_;
  const ScheduleGraph& graph_;
  const int32_t rank_;
  std::vector<int32_t> optimizers_;                                      // by step
  std::map<std::tuple<int32_t, int32_t, bool>, int32_t> compute_;        // by chunk, micro-batch and whether it is the forward
  std::map<std::tuple<ActionKind, int32_t, int32_t>, std::vector<int32_t>> copies_;  // by kind, unit and micro-batch; -1 of state, once a step
  std::vector<std::string> problems_;
};

}  // namespace

std::vector<std::string> verify_offload(const Schedule& schedule, const ScheduleContext& context, const ScheduleGraph& graph, int32_t rank) {
  return OffloadVerifier(schedule, context, graph, rank).run();
}

bool names_what_is_offloaded(const Action& copy, const ScheduleContext& context, int32_t rank) {
  if (copy.unit < 0) return false;
  if (copy.micro_batch < 0) return copy.unit < static_cast<int32_t>(state_of(context, rank).pieces.size());
  const std::vector<ActivationGroup>& groups = groups_of(context, rank);
  return copy.unit < static_cast<int32_t>(groups.size()) && groups[static_cast<size_t>(copy.unit)].chunk == copy.chunk;
}

}  // namespace orrery
