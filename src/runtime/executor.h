// Runs the blocks of a stage in the memory that the map gave them. It resolves operands to addresses and calls kernels; it
// decides nothing and allocates nothing after construction.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/kernel.h"
#include "ir/block.h"
#include "ir/memory_map.h"
#include "runtime/arena.h"
#include "runtime/op_collectives.h"

namespace orrery {

/// What an action fixes at run time: which micro-batch, which buffers, how many rows.
struct ActionBinding {
  int32_t chunk = 0;
  int32_t micro_batch = 0;
  std::span<const int32_t> slots = {};  // by chunk: where this micro-batch's activations are; empty: slot 0
  int32_t gradient_buffer = 0;          // of the chunk whose gradient it is
  int32_t source_buffer = 0;
  bool newest_weights = false;   // work of the next step: reads the newest weights, which are whole (MemoryMap::newest_whole)
  int32_t batch_copy = 0;        // which copy of the step's batch is this step's
  int64_t first_token = 0;       // of the micro-batch inside the step's token-shaped fields
  int64_t num_tokens = 0;        // T
  int64_t num_segments = 0;      // S
  int64_t num_rows = 0;          // M
  GradFold fold;
};

/// Workspace bytes of `op` at the stage's bounds: what the memory map asks of the kernel traits. Pure: `device` need not be here.
/// sequence_tokens: of whole sequences, of which a context rank has its share; 0: unknown.
int64_t op_workspace_bytes(const DeviceSpec& device, const Stage& stage, const Op& op, int64_t sequence_tokens);

/// Time spent in one op of a block since the last reset.
struct OpTime {
  double seconds = 0;
  int64_t calls = 0;
};

class Executor {
 public:
  /// Resolves every kernel; fails with kUnsupported before anything runs when one is missing. `stage`, `map` and `arena` outlive it.
  Executor(const Stage& stage, const MemoryMap& map, const Arena& arena, const KernelContext& context, int64_t sequence_tokens);
  /// With whom collective ops speak, from the thread that calls run(): every group that an op of the stage names, before the first run() of
  /// a stage that has any. They outlive the executor.
  void set_groups(std::vector<OpGroup> groups);
  /// No thread of the pool reads ahead in the arena any more.
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  /// Ops [begin, end) of a block.
  struct OpRange {
    size_t begin = 0, end = SIZE_MAX;
  };
  /// Runs the ops of a phase of binding.chunk, in order; all of them, or a part when the next one has to wait. No heap allocation. `done`, when
  /// given, is raised by one and notified after each op, for other streams that wait for a part of the action.
  void run(Phase phase, const ActionBinding& binding, std::atomic<int64_t>* done = nullptr) { run(phase, binding, done, OpRange()); }
  void run(Phase phase, const ActionBinding& binding, std::atomic<int64_t>* done, OpRange range);

  /// The memory of a value under a binding: for the trainer (batch in, losses out), checkpoints and tests.
  TensorView view(ValueId id, const ActionBinding& binding) const;

  const std::vector<OpTime>& op_times(Phase phase, int32_t chunk = 0) const { return times_[Stage::block_index(phase, chunk)]; }
  void reset_op_times();

 private:
  // What is known of a value before its binding: everything where neither its address nor its rows change.
  struct Resolved {
    TensorView view;              // data null: address() says where
    Dim rows;                     // of dims[0]
    bool dynamic_inside = false;  // another dimension changes
    std::byte* newest = nullptr;  // of a weight that work of the next step reads elsewhere
  };
  std::byte* address(ValueId id, const ActionBinding& binding) const;

  const Stage& stage_;
  const MemoryMap& map_;
  const Arena& arena_;
  KernelContext context_;
  int64_t sequence_tokens_;
  std::vector<OpGroup> groups_;
  std::vector<std::vector<const KernelEntry*>> kernels_;  // by block and op
  std::vector<std::vector<ReadAhead>> next_weights_;      // by block and op: of the packed product that comes after it
  std::vector<Resolved> resolved_;                        // by value
  std::vector<std::vector<OpTime>> times_;                // by block and op
  std::vector<std::vector<OpGroup*>> op_groups_;          // by block and op; null for kernels
};

}  // namespace orrery
