// What each rank does when: a list of actions over micro-batches, on four streams, with what each must wait for. Pure data; made
// by src/parallel, priced and simulated by the planner, executed by the runtime. An action has a text form that parses back.
//
// Legend   stage   a run of layers; p * v stages of a pipeline over p ranks with v stages (chunks) each
//          chunk   a stage as its rank counts them: 0 .. v - 1
//          unit    a run of a rank's parameters that is gathered and reduced at one time: the embedding, a layer, the head
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace orrery {

/// Actions of one stream run one after the other in list order, those of kPoint excepted: a send or receive starts as soon as what
/// it waits for is done, since messages are matched by (peer, kind, stage, micro-batch) and not by order.
enum class Stream : uint8_t { kCompute, kPoint, kCollective, kCopy };

enum class ActionKind : uint8_t {
  // ---- kCompute
  kForward,         // F2    micro-batch 2 through a chunk
  kBackward,        // B2    its gradients, of inputs and of weights
  kBackwardInput,   // I2    gradients of inputs alone; the weights' follow in W2 (zero-bubble schedules)
  kBackwardWeight,  // W2
  kMerge,           // M1>0  adds gradient buffer 1 to buffer 0
  kNorm,            // NORM  the second uses of tied matrices join; squared sums of the rank's part of the reduced gradients
  kOptimizer,       // OPT   clip, update
  // ---- kPoint
  kSendActivation,  // SF2>1 output of a chunk for micro-batch 2, to rank 1
  kRecvActivation,  // RF2<0
  kSendGradient,    // SB2>0 gradient of a chunk's input
  kRecvGradient,    // RB2<1
  kSendSum,         // SU3>0  reduced gradient of unit 3, a matrix that another rank's stage has too, to the rank that updates it
  kRecvSum,         // RU3<1
  kSendWeight,      // SW3>1  the updated matrix back
  kRecvWeight,      // RW3<0
  // ---- kCollective
  kAllGatherParameters,     // AG3  unit 3's weights, from their shards
  kReduceScatterGradients,  // RS3  unit 3's gradients, to their shards: direct exchange in lane-tree order
  kAllGatherGradients,      // GG3  unit 3's reduced gradients, to every rank (ZeRO-0)
  kAllReduceGradients,      // AR3  the sums in unit 3's shards, over the groups that each have all shards: in lane-tree order
  kExchangeSums,            // XS   squared sums, losses and counts of all ranks, to all ranks
  // ---- kCopy
  kOffload,  // OF2.1 group 1 of the activations of micro-batch 2 to the slower tier; OU2: piece 2 of the state
  kFetch,    // EF2.1, EU2: back
  kFetchParameters,  // EP3  unit 3's weights from the slower tier
};

Stream stream_of(ActionKind kind);
/// The messages of a micro-batch: SF, RF, SB, RB.
bool is_boundary_message(ActionKind kind);
bool is_send(ActionKind kind);

/// Whole packed sequences [first_sequence, first_sequence + num_sequences) of the rank's share of the global batch, where the first of them is
/// sequence batch_sequence. One of no sequences keeps ranks alike whose shares differ: its actions wait and are waited for, and do nothing.
struct MicroBatch {
  int64_t first_sequence = 0;
  int64_t num_sequences = 0;
  int64_t batch_sequence = 0;
  int32_t round = 0;  // an index into Schedule::rounds, where there are any
  bool operator==(const MicroBatch&) const = default;
};

/// Before op `before_op` of the waiting action starts (0: before the action), action `action` of the same rank (an index into
/// Schedule::actions) has done op `after_op` (kWhole: is done). Ops count in the action's block; actions without ops have one.
struct Wait {
  static constexpr int32_t kWhole = -1;
  int32_t action = 0;
  int32_t after_op = kWhole;
  int32_t before_op = 0;
  bool operator==(const Wait&) const = default;
};

struct Action {
  ActionKind kind{};
  int32_t chunk = 0;
  int32_t micro_batch = -1;      // kForward to kBackwardWeight, kPoint
  int32_t slot = 0;              // activation slot of the chunk
  int32_t gradient_buffer = 0;   // of the chunk: where gradients go
  int32_t source_buffer = -1;    // kMerge: added to gradient_buffer
  int32_t peer = -1;             // kPoint: the other rank
  int32_t unit = -1;             // kCollective; SU, RU, SW, RW; kCopy: of state a piece, of a micro-batch's activations a group
  int32_t round = -1;            // RS of gradients that leave the rank round by round: an index into Schedule::rounds
  std::vector<uint8_t> merges;   // forward and backward: GradFold::merges of this micro-batch
  bool add_to_destination = false;
  bool next_step = false;        // where the schedule carries: of the step behind this one
  std::vector<Wait> waits;       // beside the order of its stream
  bool operator==(const Action&) const = default;
};

/// Lanes [first, first + count) of the global batch.
struct LaneRange {
  int64_t first = 0, count = 0;
  bool operator==(const LaneRange&) const = default;
};

/// One node of the lane tree among the sums that the owner of a shard keeps, and which of its buffers has it.
struct ShardSum {
  LaneRange lanes;
  int32_t buffer = 0;
  bool operator==(const ShardSum&) const = default;
};

/// Where gradients are sharded (ZeRO-2 and 3), the ranks of a shard group each bring one node of the lane tree in a round, or none; owners
/// add what they bring to the sums they keep, wherever two are the halves of a node.
struct ReductionRound {
  std::vector<LaneRange> pieces;        // by rank of the group; count 0: none
  std::vector<ShardSum> before, after;  // by first lane
  bool operator==(const ReductionRound&) const = default;
};

/// One rank's.
struct Schedule {
  int64_t lanes = 1;  // NUMERICS rule 4: the order in which sequences' gradients meet
  int64_t sequences_per_lane = 1;
  std::vector<MicroBatch> micro_batches;
  std::vector<Action> actions;
  std::vector<int32_t> stage_of_chunk = {0};  // which stage of the pipeline each chunk is
  std::vector<int32_t> num_slots;             // by chunk: micro-batches whose activations are alive at one time
  std::vector<int32_t> num_gradient_buffers;  // by chunk
  /// By chunk: the buffers that hold its sums when its last backward is done, nodes of the lane tree in lane order. The first is buffer 0.
  std::vector<std::vector<int32_t>> piece_buffers;
  /// ZeRO-2 and 3: instead of piece_buffers. A rank then has one buffer for gradients on their way, and shards of finished sums.
  std::vector<ReductionRound> rounds;
  int32_t num_shard_sums = 0;
  /// PipeDream-2BW: instead of draining, a step ends with the first micro-batches of the next one, its `next_step` actions, on the weights that are the
  /// next one's already; and it begins with what the step before has left, slots in use and sums begun. So each micro-batch comes once forward and
  /// once backward, in the step itself or the one before. What a fresh start has to run first are the `next_step` actions alone.
  bool carries = false;
  /// The first so many gradient buffers change places in pairs between steps: what a step leaves in 0, 2, ..., its piece_buffers, the next one has begun
  /// in 1, 3, ... .
  int32_t num_swapped_buffers = 0;
  std::vector<int32_t> step_begins;  // of several steps laid end to end (unroll_schedule.h): the first action of each; else empty
  bool operator==(const Schedule&) const = default;
};

int64_t num_sequences(const Schedule& schedule);

/// Which of the rank's gradient buffers `buffer` is in step `step`.
inline int32_t buffer_in_step(const Schedule& schedule, int32_t buffer, int64_t step) {
  return buffer >= 0 && buffer < schedule.num_swapped_buffers && step % 2 != 0 ? buffer ^ 1 : buffer;
}

/// "F2"; with more than one chunk a rank the stage stands before it: "3F2", as in PyTorch's pipeline schedules. "F2'" is of the next step, and where
/// several are laid end to end "F2@1" of step 1.
std::string to_string(const Action& action, const Schedule& schedule);
/// Actions separated by blanks.
std::string to_string(const Schedule& schedule);

}  // namespace orrery
