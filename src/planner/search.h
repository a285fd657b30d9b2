// The search for a layout: every combination of the parallel degrees, schedule, sharding, recompute, offload, micro-batch and place on the
// hierarchy that the model and the cluster allow, scored in closed form, pruned by lower bounds of memory and time. Where there are several
// kinds of devices: each alone, replicas on several, and pipelines whose stages are on several, in every order. Budgets are counts, so equal
// inputs give an equal plan, whatever the machine. Not here: what the closed form only estimates of the finalists (simulate/finalists.h).
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/cost_constants.h"
#include "planner/mixed_pipeline.h"
#include "planner/run_limits.h"
#include "topology/cluster.h"

namespace orrery {

enum class Objective : uint8_t { kTime, kCost, kEnergy, kMemory };

/// What is not the search's choice. 0 or absent: it is.
struct FixedLayout {
  int64_t tp = 0, pp = 0, cp = 0, dp = 0, virtual_stages = 0, micro_batch = 0;
  int64_t shard_size = 0;  // with ZeroStage::kFull: ranks of a group that has all shards
  std::optional<ZeroStage> zero;
  std::optional<PipelineSchedule> schedule;
  std::optional<RecomputeKind> recompute;
  std::optional<bool> sequence_parallel, offload_optimizer;
  ContextMethod context_method = ContextMethod::kRing;
  /// "tensor_parallel_size = 8, zero_stage = 1"; empty: nothing is fixed.
  std::string text() const;
};

/// What a rank's tensors may take of its device: bytes, or a share of its memory. Neither: what the device has for them, 92 % less 2.5 GiB for its context and
/// the collectives' buffers, which it never gives whatever is asked.
struct MemoryBudget {
  double bytes = 0, fraction = 0;
  double capacity_bytes(const AcceleratorSpec& device) const;
  bool binds(const AcceleratorSpec& device) const;
  /// "budget.memory = 40.0 GiB", "budget.memory = 60 %"; empty: none.
  std::string text() const;
};

struct SearchRequest {
  ModelShape model;
  FixedLayout fixed;
  double global_batch = 0;  // sequences
  double total_tokens = 0;  // of the whole run; 0: one step is judged
  double lanes = 1;         // as TrainingJob
  NumberFormat format = NumberFormat::kBf16;
  Cluster cluster;
  Objective objective = Objective::kTime;
  RunLimits limits;
  MemoryBudget memory;
  int64_t max_tensor_parallel = 64, max_pipeline_parallel = 256, max_context_parallel = 64;
  bool front = true;  // also look at half the devices, a quarter, ...: what less money costs in time
  bool prune = true;  // false: score everything (to check that pruning loses nothing)
};

/// One layout with what it takes. Money is in the unit of the cluster's prices.
struct Candidate {
  TrainingJob job;  // its devices are those of the first part, their number that of all
  // Where it runs; every cluster.device points into the result. Several parts without ranks: each has whole replicas, and the slowest and
  // the smallest device count for all. Several with ranks: stages of every pipeline, in the order of the parts.
  std::vector<DevicePart> parts;
  StepCost step;
  MemoryCost memory;  // of the rank with the least room left
  double goodput = 1, checkpoint_interval_seconds = 0;
  double run_seconds = 0, money = 0, kwh = 0, carbon_kg = 0;
  double objective = 0;
  double low_seconds = 0, high_seconds = 0;  // 90 % interval of a step
  // Of finalists (simulate/finalists.h):
  double closed_form_seconds = 0;  // of a step, where `step` is from events; else 0
  int64_t mapped_bytes = 0;        // the exact memory map of the rank with the least room; 0: not made, for the reason that `not_mapped` gives
  double mapped_over = 0;          // by how much that rank does not fit; negative: what is left
  std::string not_mapped;

  /// Whether stages of a pipeline are on different kinds of devices.
  bool is_mixed_pipeline() const { return parts.size() > 1 && parts.front().num_ranks > 0; }
};

/// Why a family of layouts lost: its best member, or what it lacks.
struct FamilyVerdict {
  std::string family, reason;
  bool feasible = false;
  Candidate best;            // where feasible
  double missing_bytes = 0;  // else: by how much its smallest member does not fit
};

struct SearchResult {
  std::vector<AcceleratorSpec> devices;  // of the cluster's groups
  std::vector<Candidate> best;  // best first, at most kFinalists
  std::vector<FamilyVerdict> families;
  std::vector<Candidate> pareto;  // time against money, fastest first; of each set of devices a few, until finalists are refined (keep_front)
  int64_t considered = 0, pruned_by_memory = 0, pruned_by_time = 0, scored = 0;
  int64_t simulated = 0, mapped = 0, dropped = 0;  // of the finalists: stepped through by events, laid out to the byte, found not to fit or too late
  std::vector<double> capacity_bytes;              // of a device of each group, for tensors
  std::string memory_limit;                        // MemoryBudget::text() where it is less than some device has; else empty
};

inline constexpr int64_t kFinalists = 200;

/// Errors: kInvalidConfig when no layout divides the model, the batch and the devices (says which number would do), when none fits in memory (says the smallest cluster that would
/// hold the model: of this device, or with more of the kind that has most memory), and when no layout keeps the limits (says what the best ones take).
void search_layouts(const SearchRequest& request, SearchResult& result);

/// Leaves of `points` the fastest of each set of devices, fastest first, and of these the ones that are cheaper than all before.
void keep_front(std::vector<Candidate>& points);

/// Makes the candidate's devices those of `result`, whose groups are the same.
void use_devices_of(const SearchResult& result, Candidate& candidate);

/// From `step.seconds` to what a run takes: goodput, time, energy, money and the objective.
void price_run(const SearchRequest& request, Candidate& candidate);
/// The order of the result: by objective, equal ones by their time, then by their layout.
bool is_better(const Candidate& a, const Candidate& b);
/// Names of the families that it belongs to.
std::vector<std::string_view> families_of(const Candidate& candidate);
/// Why each family lost to result.best.front(); best families first.
void explain_families(SearchResult& result);

/// As search_layouts on the devices that are left: `lost_nodes` whole hosts of a group fewer; may leave devices idle where that is better.
void replan_after_loss(SearchRequest request, size_t group, int64_t lost_nodes, SearchResult& result);

/// Which links an axis of a layout spans: with the ranks of one group numbered from the nearest, `inside` of its `size` members lie in one
/// domain, `stride` devices apart.
struct AxisSpan {
  std::string_view axis;
  double size = 1, stride = 1, inside = 1;
};
/// From the innermost axis to the outermost, those of size 1 left out.
std::vector<AxisSpan> axis_spans(const Candidate& candidate);

/// "1200", "0.35": money of a small run keeps two digits.
std::string money_text(double money);
/// "tp 8 x pp 4 x dp 16, 1f1b, zero 1, micro-batch 1, recompute none".
std::string layout_text(const JobLayout& layout);
/// "64 H100", "64 H100 + 64 A100, whole replicas on each", "ranks 0-1 on 64 H100 with 12 layers, 2-3 on 64 A100 with 4".
std::string placement_text(const Candidate& candidate);
std::string search_to_text(const SearchRequest& request, const SearchResult& result, bool explain);
std::string search_to_json(const SearchRequest& request, const SearchResult& result);
/// One self-contained page; `timeline` is a picture of the best layout's step, as HTML.
std::string search_to_html(const SearchRequest& request, const SearchResult& result, std::string_view timeline);
/// The head of such a page, with its style.
std::string_view page_head();
std::string escape_html(std::string_view text);
std::string_view objective_name(Objective objective);

}  // namespace orrery
