// When each activation is alive, in the time of the compute actions, op by op: what the memory map places by.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "ir/block.h"
#include "ir/offload.h"
#include "ir/schedule.h"

namespace orrery {

/// An action that comes again with all slots in the same state takes the same time: so the line is as long as a period of the schedule, and a
/// buffer is alive where it is in any of the repetitions. Steps that run
/// into each other are looked at together. What is offloaded is not alive while its memory is others' (ActivationGroup).
class Lifetimes {
 public:
  Lifetimes(const Stage& stage, const Schedule& one_step, const std::vector<ActivationGroup>& groups);

  int64_t end() const { return end_; }
  int64_t end_of_step() const { return end_of_step_; }
  /// Of a step in which no action comes again: when the first op that writes or reads an accumulator runs.
  int64_t first_use(int32_t parameter, int32_t accumulator) const { return first_gradient_use_.at({parameter, accumulator}); }
  /// By slot of the value's chunk; one entry when the place is the same in all.
  using Alive = std::vector<std::array<int64_t, 2>>;
  struct Value {
    bool crosses_actions = false;
    std::map<int32_t, Alive> by_slot;
  };
  const std::map<ValueId, Value>& values() const { return values_; }
  /// Where a block's op `index` runs, once a repetition.
  Alive times_of(size_t block, size_t index) const;

 private:
  static constexpr int32_t kNoBatch = -1;
  struct Instance {
    size_t id = 0;  // of its signature
    int64_t begin = 0, end = 0;
  };
  struct Visit {
    size_t block = 0, instance = 0;
  };
  struct Use {
    size_t first_instance = 0, last_instance = 0;
    int64_t first_op = 0, last_op = 0;
  };

  void run(const Action& action);
  void run(Phase phase, int32_t chunk, int32_t micro_batch, const std::vector<int32_t>& signature);
  /// What happens on the rank from a micro-batch's first action to its last, and which of that is its own: micro-batches whose course is the
  /// same have the same values alive at the same times.
  std::vector<size_t> course_of(const std::vector<Visit>& visits) const;
  void add_uses(int32_t micro_batch, const std::vector<Visit>& visits);
  void add(ValueId id, int32_t micro_batch, const Use& use);

  const Stage& stage_;
  std::map<std::pair<int32_t, int32_t>, int32_t> slot_of_;        // (chunk, micro-batch)
  std::map<std::pair<int32_t, int32_t>, ActionKind> slot_state_;  // (chunk, slot) in use: what was done last
  std::map<std::vector<int32_t>, Instance> known_;                // by signature
  std::vector<Instance> instances_;                               // by action
  std::vector<std::vector<int64_t>> begins_;                      // by block
  std::map<int32_t, std::vector<Visit>> visits_;                  // by micro-batch
  std::map<ValueId, const ActivationGroup*> group_of_;
  std::map<std::pair<int32_t, int32_t>, size_t> backward_of_;     // by (chunk, micro-batch): B's instance, or I's
  std::map<ValueId, Value> values_;
  std::map<std::pair<int32_t, int32_t>, int64_t> first_gradient_use_;  // by (parameter, accumulator)
  int64_t end_ = 0, end_of_step_ = 0;
};

}  // namespace orrery
