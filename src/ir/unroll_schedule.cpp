#include "ir/unroll_schedule.h"

#include <algorithm>

namespace orrery {
namespace {

constexpr int32_t kNotThere = -1;

}  // namespace

Schedule unroll(const Schedule& schedule, int32_t num_steps) {
  Schedule all = schedule;
  all.actions.clear();
  all.micro_batches.clear();
  const auto per_step = static_cast<int32_t>(schedule.micro_batches.size()), num_actions = static_cast<int32_t>(schedule.actions.size());
  for (int32_t step = 0; step < num_steps + schedule.carries; ++step)
    for (MicroBatch batch : schedule.micro_batches) {
      batch.batch_sequence += step * schedule.lanes * schedule.sequences_per_lane;
      all.micro_batches.push_back(batch);
    }
  for (int32_t step = schedule.carries ? -1 : 0; step < num_steps; ++step) {
    all.step_begins.push_back(static_cast<int32_t>(all.actions.size()));
    std::vector<int32_t> place(schedule.actions.size(), kNotThere);
    int32_t next = all.step_begins.back();
    for (size_t i = 0; i < place.size(); ++i)
      if (step >= 0 || schedule.actions[i].next_step) place[i] = next++;
    for (size_t i = 0; i < place.size(); ++i) {
      if (place[i] == kNotThere) continue;
      Action& action = all.actions.emplace_back(schedule.actions[i]);
      if (action.micro_batch >= 0) action.micro_batch += (step + action.next_step) * per_step;
      action.gradient_buffer = buffer_in_step(schedule, action.gradient_buffer, step);
      action.source_buffer = buffer_in_step(schedule, action.source_buffer, step);
      // One that names no action stays such a one.
      std::erase_if(action.waits, [&](const Wait& wait) { return wait.action >= 0 && wait.action < num_actions && place[static_cast<size_t>(wait.action)] == kNotThere; });
      for (Wait& wait : action.waits) wait.action = wait.action >= 0 && wait.action < num_actions ? place[static_cast<size_t>(wait.action)] : kNotThere;
    }
  }
  return all;
}

bool carry(const std::vector<Schedule>& ranks) {
  return std::any_of(ranks.begin(), ranks.end(), [](const Schedule& schedule) { return schedule.carries && schedule.step_begins.empty(); });
}

std::vector<Schedule> unroll(const std::vector<Schedule>& ranks, int32_t num_steps) {
  std::vector<Schedule> all;
  for (const Schedule& schedule : ranks) all.push_back(unroll(schedule, num_steps));
  return all;
}

}  // namespace orrery
