// What a rank does when: a list of actions over micro-batches. Pure data; made by src/parallel, priced and simulated by the
// planner, executed by the runtime. An action has a text form: F0, Z0, B0, M1>0 (merge gradient buffer 1 into 0), OPT.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace orrery {

enum class ActionKind : uint8_t { kForward, kBackward, kZero, kMerge, kOptimizer };

/// Whole packed sequences [first_sequence, first_sequence + num_sequences) of the rank's share of the global batch.
struct MicroBatch {
  int64_t first_sequence = 0;
  int64_t num_sequences = 0;
  bool operator==(const MicroBatch&) const = default;
};

struct Action {
  ActionKind kind{};
  int32_t micro_batch = -1;      // kForward, kBackward
  int32_t slot = 0;              // activation slot
  int32_t gradient_buffer = 0;   // where gradients go
  int32_t source_buffer = -1;    // kMerge: added to gradient_buffer
  std::vector<uint8_t> merges;   // kForward, kBackward: GradFold::merges of this micro-batch
  bool add_to_destination = false;
  bool operator==(const Action&) const = default;
};

struct Schedule {
  int64_t lanes = 1;  // NUMERICS rule 4: the order in which sequences' gradients meet
  std::vector<MicroBatch> micro_batches;
  std::vector<Action> actions;
  int32_t num_slots = 0;
  int32_t num_gradient_buffers = 0;
  bool operator==(const Schedule&) const = default;
};

std::string to_string(const Action& action);
/// Actions separated by blanks.
std::string to_string(const Schedule& schedule);

}  // namespace orrery
