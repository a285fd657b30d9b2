// Where every byte of a run lives: an offset in one arena for each buffer, from lifetimes in the schedule. Its total is both the
// prediction and the allocation. Persistent buffers lie one after the other; activations and workspaces share an area by lifetime.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "ir/block.h"
#include "ir/offload.h"
#include "ir/parameter_unit.h"
#include "ir/schedule.h"

namespace orrery {

enum class MemoryClass : uint8_t { kWeights, kNewestWeights, kMasterLow, kGradients, kMoments, kOffloadSlots, kConstants, kBatch, kStep, kKvCache, kPackedWeights, kCheckpoint, kGatheredWeights, kUnitGradients, kActivations, kCount };
std::string_view memory_class_name(MemoryClass memory_class);

constexpr int64_t kArenaAlignment = 64;           // every buffer starts on a cache line
constexpr int64_t kArenaGranule = 2 << 20;        // the arena itself is a multiple of 2 MiB
constexpr int64_t align_up(int64_t bytes, int64_t alignment) { return (bytes + alignment - 1) / alignment * alignment; }

/// Workspace bytes of an op at the stage's bounds, for the machine the plan is made for. Pure (backend kernel traits).
using WorkspaceBytes = std::function<int64_t(const Stage&, const Op&)>;

/// Where each accumulator of each parameter starts inside the gradient buffers of its chunk, in f32 elements, -1 where the rank has none;
/// first uses in model order, then second uses. A function of the forward and backward blocks and of what else has a gradient value: an
/// accumulator that no op here writes is received from another rank, as one sum, and has a place in buffer 0 alone. Parameters start on
/// multiples of 32 elements, so that in a layout of bf16 weights they start on a cache line too.
struct GradientLayout {
  std::vector<std::array<int64_t, 2>> offset;
  std::vector<std::array<int32_t, 2>> chunk;
  struct Size {
    int64_t num_elements = 0;  // of buffer 0
    int64_t num_summed = 0;    // of every other buffer
  };
  std::vector<Size> chunks;
};
GradientLayout gradient_layout(const Stage& stage);

/// The block that a compute action runs; nothing for the other streams.
std::optional<Phase> phase_of_action(ActionKind kind);

struct MemoryMap {
  /// Persistent buffers: bytes from the arena's start; -1 where there is none.
  std::vector<int64_t> parameter_offset;                // by parameter: the compute weight
  /// By parameter and StateField: of the first element that this rank keeps, of newest weights that are whole on every rank the parameter's first; -1 where it
  /// is offloaded.
  std::vector<std::array<int64_t, kNumStateFields>> state_offset;
  bool newest_whole = false;
  std::vector<std::array<int64_t, 2>> state_range;      // by parameter: elements [begin, end) whose state this rank keeps
  std::vector<std::vector<int64_t>> gradient_buffer_offset, gradient_buffer_bytes;  // by chunk and gradient buffer
  /// A step of one micro-batch writes each gradient once, while the activations before it die: gradients then lie in the activations' area, each
  /// from its first writer to the end of the step. gradient_buffer_bytes is 0, and gradient_offset counts from the area's start.
  bool gradients_by_lifetime = false;
  std::vector<std::array<int64_t, 2>> gradient_offset;  // by parameter and accumulator, inside a gradient buffer of its chunk
  /// Where gradients are sharded (all chunks then have the same one gradient buffer, in which units take turns): by unit and sum, of the
  /// shard's first element; by parameter and accumulator, of the first element that this rank keeps, in the sum that is finished.
  std::vector<std::vector<int64_t>> shard_sum_offset;
  std::vector<std::array<int64_t, 2>> gradient_shard_offset;
  /// Where weights are sharded (parameter_offset is then a place that units take turns in): of the first element that this rank keeps, by
  /// unit and by parameter.
  std::vector<int64_t> unit_shard_offset, parameter_shard_offset;
  std::vector<int64_t> offload_slot_offset;  // by slot: of pieces of state that are elsewhere between their updates
  std::vector<int64_t> constant_offset;
  std::array<int64_t, 10> batch_offset{};   // by BatchField: the first of two copies, so that the next step's data arrives during this one
  std::array<int64_t, 10> batch_bytes{};    // of one copy
  std::array<int64_t, 5> step_offset{};     // by StepField
  std::vector<std::array<int64_t, 2>> kv_offset;  // by layer: keys, values
  std::vector<int64_t> packed_offset;             // by parameter: packed for serving
  int64_t checkpoint_offset = -1;                 // the buffer that a save streams through
  /// Activations: by value and slot (index value * num_slots + slot); -1 for values that live elsewhere.
  std::vector<int64_t> activation_offset;
  std::vector<std::vector<int64_t>> workspace_offset, workspace_bytes;  // by block (Stage::block_index) and op
  int32_t num_slots = 0;               // of the chunk that has most
  int64_t activation(ValueId value, int32_t slot) const { return activation_offset[static_cast<size_t>(value) * static_cast<size_t>(num_slots) + static_cast<size_t>(slot)]; }

  std::array<int64_t, static_cast<size_t>(MemoryClass::kCount)> class_bytes{};
  /// Largest sum of activation and workspace bytes alive at one time. Gradients by lifetime: class kGradients is how much more is alive with them,
  /// class kActivations the rest of the area.
  int64_t activation_lower_bound = 0;
  int64_t total_bytes = 0;             // the arena: all classes, rounded up to kArenaGranule
};

/// What takes turns in slots, unit by unit: gradients that ZeRO-2 and 3 keep in parts, and weights that ZeRO-3 keeps in parts, or that are offloaded.
struct ShardOptions {
  std::vector<ParameterUnit> units;
  int64_t shard = 0;                 // of each unit: this rank's
  int32_t num_sums = 0;              // gradient sums that a shard's owner keeps
  bool gradients = false;
  bool weights = false;
  bool weights_stay = false;         // once gathered: each unit has its slot to itself, in which its shard lies
  bool weights_elsewhere = false;    // nothing of them stays in the arena
};

struct MemoryMapOptions {
  DType moment_dtype = DType::kF32;
  int num_moments = 2;                // AdamW 2, SGD with momentum and Lion 1
  bool newest_apart = false;          // the newest weights are state, forwards and backwards read others
  bool newest_whole = false;          // and whole on every rank, because work of the next step reads them
  OffloadSlots offload_slots;         // where state is offloaded
  std::vector<ActivationGroup> activation_groups;  // what leaves between forward and backward
  std::vector<std::array<int64_t, 2>> state_range;  // by parameter: elements whose state this rank keeps; empty: all of them
  int64_t batch_sequences = 0;        // the step's sequences on this rank (training and evaluation batches)
  int64_t sequence_tokens = 0;
  int64_t kv_blocks = 0;              // serving
  int batch_copies = 2;
  int64_t checkpoint_buffer_bytes = 0;
  ShardOptions shards;
  std::vector<ParameterUnit> reduced_units;  // whose gradients lie side by side, because ranks reduce them together; empty: none do
};

/// Lays out `stage` under `schedule`. Deterministic. Cost: quadratic in the number of activation buffers.
/// A value has one place for each slot of its chunk; one that no micro-batch needs from one action to the next has the same place in all.
/// What is sent or received has its place to itself: no other stream's time is known here.
MemoryMap build_memory_map(const Stage& stage, const Schedule& schedule, const MemoryMapOptions& options, const WorkspaceBytes& workspace_bytes);

/// Whether a chunk's input, output and their gradients are messages: not the model's ends, nor shared with a neighbour on this rank.
struct BoundaryMessages {
  bool input = false, output = false;
};
BoundaryMessages boundary_messages(const Stage& stage, int32_t chunk);

/// A buffer to place: alive in each [begin, end) of its owner's time, ascending and apart.
struct PlacedBuffer {
  int64_t bytes = 0;
  std::vector<std::array<int64_t, 2>> alive;
  int64_t offset = 0;
};
/// Chooses offsets so that buffers alive at the same time do not overlap; returns the height. Tries several orders of greedy
/// best-fit and keeps the lowest.
int64_t place_buffers(std::vector<PlacedBuffer>& buffers);
/// Largest sum of bytes alive at one time: no placement can be lower.
int64_t live_bytes_lower_bound(const std::vector<PlacedBuffer>& buffers);

}  // namespace orrery
