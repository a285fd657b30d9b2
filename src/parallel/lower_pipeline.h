// From what each rank computes (pipeline.h, or a schedule file) to complete schedules: messages between stages, activation slots,
// gradient buffers that meet in the lane tree, and what waits for what. One pass for every kind of pipeline.
//
// What it promises the memory map: the values at a chunk's boundary (its input and output and their gradients) live as long as the
// slot. A slot belongs to a micro-batch from the receive of its input (or its forward) to the last of: its backward, or W of a split
// one; the sends from it; and, where the stage before runs on the same rank, the backward there, which reads the gradient in place.
//
// Of an order that carries the schedule is one step in the middle of the flow: every step is this one. So each micro-batch has a slot of its own number,
// floor(m / n) rounds of slots for n micro-batches alive, and messages that cross the cut between two steps are received in the step that sends them.
#pragma once

#include <vector>

#include "parallel/lane_folds.h"
#include "parallel/pipeline.h"

namespace orrery {

struct LowerOptions {
  LaneShare share;
  std::vector<int32_t> world_ranks;  // by rank of the pipeline: what `peer` names; empty: the same
  int32_t spare_slots = 0;           // by chunk: lets the next micro-batch's input arrive while all others are still in use
};

/// By rank of the pipeline. OPT is the last action of each; a pass that adds the reduction of gradients, or of a matrix that two stages
/// share, inserts before it (insert_actions).
/// Errors: kInvalidConfig when the order does not run every micro-batch once, in ascending order, on every stage.
std::vector<Schedule> lower_pipeline(const PipelineOrder& order, const LowerOptions& options);

/// Puts `actions` before actions[position] and keeps every wait on the action it meant. The waits of the new ones count in the result.
void insert_actions(Schedule& schedule, int32_t position, const std::vector<Action>& actions);

/// Puts actions[from] in front of actions[to], an earlier one, and keeps every wait on the action it meant.
void move_action(Schedule& schedule, int32_t from, int32_t to);

}  // namespace orrery
