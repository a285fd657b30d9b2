// Pipeline schedules as pure functions: (kind, ranks, micro-batches, chunks) -> what each rank computes, in order. Messages, slots,
// gradient sums and waits are not here: lower_pipeline.h adds them, the same way to every kind and to a schedule file. Costs do not
// change these orders; they choose which layers a stage has (split_layers.h), and schedule_grid.h prices the result.
//
// Legend   p ranks, v chunks a rank, p * v stages, m micro-batches; F forward, I and W the two halves of the backward B
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ir/schedule.h"

namespace orrery {

enum class PipelineKind : uint8_t {
  kGPipe,        // all forwards, then all backwards
  k1F1B,         // one forward, one backward; p - rank micro-batches alive
  kInterleaved,  // 1F1B over v chunks a rank, in groups of g micro-batches: the bubble divided by v
  kZbH1,         // 1F1B with the backward split; W fills what waiting there is, memory as 1F1B on rank 0
  kZbV,          // two chunks a rank placed as a V, backward split: no bubble when F = I = W
  kDualPipeV,    // two chunks a rank placed as a V; forward of one beside backward of the other
  k2Bw,          // PipeDream-2BW (Narayanan et al. 2021, arXiv:2006.09503): 1F1B that does not drain between steps (NUMERICS rule 15)
};

/// "gpipe", "1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe-v", "2bw".
std::string_view pipeline_name(PipelineKind kind);

/// What the settings are called where they were made, for messages: keys of a run file, or a command's flags.
struct PipelineTerms {
  std::string_view schedule = "parallel.schedule =", ranks = "pipeline_parallel_size =", group = "parallel.microbatch_group_size_per_virtual_pipeline_stage";
};

/// Error: kInvalidConfig listing the names.
PipelineKind parse_pipeline_kind(std::string_view name, const PipelineTerms& terms = {});

struct PipelineOptions {
  PipelineKind kind = PipelineKind::k1F1B;
  int32_t num_ranks = 1;
  int32_t num_micro_batches = 1;
  int32_t chunks_per_rank = 1;  // more than 1: kInterleaved; always 2 where stages are placed as a V
  /// kInterleaved: micro-batches that go through a chunk before the first of them goes on to the rank's next; 0: num_ranks, the fewest. More give
  /// messages more time, and cost slots: Megatron's microbatch_group_size_per_vp_stage.
  int32_t micro_batch_group_size = 0;
  /// k2Bw: a step that begins and ends in the middle of the flow, with the first micro-batches of the next step in place of the drain.
  bool carries = false;
  PipelineTerms terms = {};
};

struct ComputeStep {
  ActionKind kind{};  // kForward, kBackward, kBackwardInput, kBackwardWeight
  int32_t stage = 0;
  int32_t micro_batch = 0;  // from num_micro_batches on, where the order carries: of the next step
  bool operator==(const ComputeStep&) const = default;
};

struct PipelineOrder {
  int32_t num_micro_batches = 0;
  bool carries = false;  // each rank runs [first, first + m) of the flow, forward and backward, where `first` is its first forward's, or backward's
  std::vector<int32_t> rank_of_stage;
  std::vector<std::vector<ComputeStep>> steps;  // by rank
  int32_t num_stages() const { return static_cast<int32_t>(rank_of_stage.size()); }
  bool operator==(const PipelineOrder&) const = default;
};

/// On every rank each stage sees its micro-batches in ascending order, forward, backward and W alike: gradients meet in that order.
/// Errors: kInvalidConfig, naming the number that is wrong and what would do.
PipelineOrder pipeline_order(const PipelineOptions& options);

/// Activations alive on `rank` at one time, each of one micro-batch on one stage: the published formula (an upper bound for kZbV and
/// kDualPipeV, where only the fullest rank reaches it).
int32_t peak_activations(const PipelineOptions& options, int32_t rank);

/// A schedule file: `rank 0: F0 F1 B0 B1`, one line a rank; where stage and rank differ the stage stands first: `3F2`. `#` begins a comment.
std::string to_string(const PipelineOrder& order);
/// Reads one back. Without a stage before it an action is of stage = rank. Errors: kInvalidConfig with the line.
PipelineOrder parse_pipeline_order(std::string_view text);

}  // namespace orrery
