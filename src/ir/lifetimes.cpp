#include "ir/lifetimes.h"

#include <algorithm>
#include <set>

#include "ir/memory_map.h"
#include "ir/unroll_schedule.h"

namespace orrery {

Lifetimes::Lifetimes(const Stage& stage, const Schedule& one_step, const std::vector<ActivationGroup>& groups) : stage_(stage) {
  // Of steps that run into each other the second finds and leaves what every later one does.
  const Schedule schedule = one_step.carries ? unroll(one_step, 2) : one_step;
  for (const ActivationGroup& group : groups)
    for (ValueId id : group.values) group_of_[id] = &group;
  for (const Action& action : schedule.actions)
    if (action.kind == ActionKind::kForward) slot_of_[{action.chunk, action.micro_batch}] = action.slot;
  if (schedule.actions.empty())
    for (Phase phase : {Phase::kForward, Phase::kBackward}) run(phase, 0, kNoBatch, {static_cast<int32_t>(phase)});
  for (const Action& action : schedule.actions) run(action);
  end_of_step_ = end_;
  for (int32_t chunk = 0; chunk < stage.num_chunks(); ++chunk) run(Phase::kEval, chunk, kNoBatch, {static_cast<int32_t>(Phase::kEval), chunk});
  std::set<std::vector<size_t>> courses;
  for (const auto& [micro_batch, visits] : visits_)
    if (micro_batch == kNoBatch || courses.insert(course_of(visits)).second) add_uses(micro_batch, visits);
}

std::vector<size_t> Lifetimes::course_of(const std::vector<Visit>& visits) const {
  std::vector<size_t> course;
  auto own = visits.begin();
  for (size_t instance = visits.front().instance; instance <= visits.back().instance; ++instance) {
    const bool is_own = own->instance == instance;
    course.push_back(2 * instances_[instance].id + (is_own ? 1 : 0));
    if (is_own) ++own;
  }
  return course;
}

Lifetimes::Alive Lifetimes::times_of(size_t block, size_t index) const {
  Alive alive;
  for (int64_t begin : begins_[block]) alive.push_back({begin + static_cast<int64_t>(index), begin + static_cast<int64_t>(index) + 1});
  std::sort(alive.begin(), alive.end());
  return alive;
}

void Lifetimes::run(const Action& action) {
  const auto phase = phase_of_action(action.kind);
  if (!phase) return;
  std::vector<int32_t> signature = {static_cast<int32_t>(*phase), action.chunk, action.micro_batch >= 0 ? action.slot : kNoBatch};
  for (const auto& [slot, state] : slot_state_) signature.insert(signature.end(), {slot.first, slot.second, static_cast<int32_t>(state)});
  run(*phase, action.chunk, action.micro_batch, signature);
  if (action.micro_batch < 0) return;
  if (action.kind == ActionKind::kForward || action.kind == ActionKind::kBackwardInput)
    slot_state_[{action.chunk, action.slot}] = action.kind;
  else
    slot_state_.erase({action.chunk, action.slot});
}

void Lifetimes::run(Phase phase, int32_t chunk, int32_t micro_batch, const std::vector<int32_t>& signature) {
  const size_t block = Stage::block_index(phase, chunk);
  const std::vector<Op>& ops = stage_.blocks[block].ops;
  begins_.resize(stage_.blocks.size());
  const auto [known, fresh] = known_.try_emplace(signature, Instance{known_.size(), end_, end_ + static_cast<int64_t>(ops.size())});
  const size_t instance = instances_.size();
  instances_.push_back(known->second);
  visits_[micro_batch].push_back({block, instance});
  if (phase == Phase::kBackward || phase == Phase::kBackwardInput) backward_of_[{chunk, micro_batch}] = instance;
  if (!fresh) return;
  begins_[block].push_back(end_);
  for (const Op& op : ops) {
    for (const std::vector<ValueId>* ids : {&op.inputs, &op.outputs})
      for (ValueId id : *ids)
        if (const orrery::Value& value = stage_.value(id); value.kind == ValueKind::kGradient) first_gradient_use_.try_emplace({value.index, value.sub}, end_);
    ++end_;
  }
}

void Lifetimes::add_uses(int32_t micro_batch, const std::vector<Visit>& visits) {
  std::map<ValueId, Use> uses;
  for (const Visit& visit : visits) {
    const std::vector<Op>& ops = stage_.blocks[visit.block].ops;
    for (size_t i = 0; i < ops.size(); ++i)
      for (const std::vector<ValueId>* ids : {&ops[i].inputs, &ops[i].outputs})
        for (ValueId id : *ids) {
          const ValueId storage = stage_.storage(id);
          if (stage_.value(storage).kind != ValueKind::kActivation) continue;
          Use& use = uses.try_emplace(storage, Use{visit.instance, visit.instance, static_cast<int64_t>(i), static_cast<int64_t>(i)}).first->second;
          use.last_instance = visit.instance;
          use.last_op = static_cast<int64_t>(i);
        }
  }
  for (const auto& [id, use] : uses) add(id, micro_batch, use);
}

void Lifetimes::add(ValueId id, int32_t micro_batch, const Use& use) {
  Value& value = values_[id];
  value.crosses_actions |= use.first_instance != use.last_instance;
  const auto found = slot_of_.find({stage_.value(id).chunk, micro_batch});
  Alive& alive = value.by_slot[found == slot_of_.end() ? 0 : found->second];
  const auto group = micro_batch == kNoBatch ? group_of_.end() : group_of_.find(id);
  const bool leaves = group != group_of_.end();
  // What the last step has begun for the next one does not come back in view.
  const auto backward = leaves ? backward_of_.find({stage_.value(id).chunk, micro_batch}) : backward_of_.end();
  const size_t back = !leaves ? use.first_instance : backward != backward_of_.end() ? backward->second : instances_.size();
  for (size_t instance = use.first_instance; instance <= use.last_instance; ++instance) {
    if (leaves && instance > use.first_instance && instance < back) continue;
    int64_t begin = instances_[instance].begin + (instance == use.first_instance ? use.first_op : 0);
    int64_t end = instance == use.last_instance ? instances_[instance].begin + use.last_op + 1 : instances_[instance].end;
    if (leaves && instance == use.first_instance) end = instances_[instance].begin + group->second->gone_before;
    if (leaves && instance == back) begin = instances_[instance].begin + group->second->comes_after + 1;
    if (begin < end) alive.push_back({begin, end});
  }
}

}  // namespace orrery
