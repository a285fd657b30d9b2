// The search for a layout: every combination of the parallel degrees, schedule, sharding, recompute, offload and micro-batch that the
// model and the cluster allow, scored in closed form, pruned by lower bounds of memory and time. Budgets are counts, so equal inputs
// give an equal plan, whatever the machine. Not here: what the closed form only estimates of the finalists (simulate/finalists.h).
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "planner/cost_constants.h"
#include "topology/cluster.h"

namespace orrery {

enum class Objective : uint8_t { kTime, kCost, kEnergy, kMemory };

struct SearchRequest {
  ModelShape model;
  double global_batch = 0;  // sequences
  double total_tokens = 0;  // of the whole run; 0: one step is judged
  NumberFormat format = NumberFormat::kBf16;
  Cluster cluster;
  Objective objective = Objective::kTime;
  double deadline_seconds = 0, budget = 0;  // 0: none
  double memory_fraction = 0.92;            // of a device, what tensors may use
  int64_t max_tensor_parallel = 64, max_pipeline_parallel = 256, max_context_parallel = 64;
  bool front = true;  // also look at half the devices, a quarter, ...: what less money costs in time
  bool prune = true;  // false: score everything (to check that pruning loses nothing)
};

/// One layout with what it takes. Money is in the unit of the cluster's prices.
struct Candidate {
  TrainingJob job;  // its cluster.device points into the result
  StepCost step;
  MemoryCost memory;
  double goodput = 1, checkpoint_interval_seconds = 0;
  double run_seconds = 0, money = 0, kwh = 0, carbon_kg = 0;
  double objective = 0;
  double low_seconds = 0, high_seconds = 0;  // 90 % interval of a step
  // Of finalists (simulate/finalists.h):
  double closed_form_seconds = 0;  // of a step, where `step` is from events; else 0
  int64_t mapped_bytes = 0;        // the exact memory map of the fullest rank; 0: not made, for the reason that `not_mapped` gives
  std::string not_mapped;
};

/// Why a family of layouts lost: its best member, or what it lacks.
struct FamilyVerdict {
  std::string family, reason;
  bool feasible = false;
  Candidate best;            // where feasible
  double missing_bytes = 0;  // else: by how much its smallest member does not fit
};

struct SearchResult {
  AcceleratorSpec device;
  std::vector<Candidate> best;  // best first, at most kFinalists
  std::vector<FamilyVerdict> families;
  std::vector<Candidate> pareto;  // time against money, fastest first
  int64_t considered = 0, pruned_by_memory = 0, pruned_by_time = 0, scored = 0;
  int64_t simulated = 0, mapped = 0, dropped = 0;  // of the finalists: stepped through by events, laid out to the byte, found not to fit or too late
  double capacity_bytes = 0;                       // of a device, for tensors
};

inline constexpr int64_t kFinalists = 200;

/// Errors: kInvalidConfig when no layout divides the batch and the devices, when none fits in memory (says the smallest cluster of
/// this device that would hold the model), and when deadline or budget cannot be met (says what the best layout takes).
void search_layouts(const SearchRequest& request, SearchResult& result);

/// From `step.seconds` to what a run takes: goodput, time, energy, money and the objective.
void price_run(const SearchRequest& request, Candidate& candidate);
/// The order of the result: by objective, equal ones by their layout.
bool is_better(const Candidate& a, const Candidate& b);
/// Names of the families that it belongs to.
std::vector<std::string_view> families_of(const Candidate& candidate);
/// Why each family lost to result.best.front(); best families first.
void explain_families(SearchResult& result);

/// As search_layouts on the devices that are left: `lost_nodes` whole hosts fewer; may leave devices idle where that is better.
void replan_after_loss(SearchRequest request, int64_t lost_nodes, SearchResult& result);

/// "tp 8 x pp 4 x dp 16, 1f1b, zero 1, micro-batch 1, recompute none".
std::string layout_text(const JobLayout& layout);
std::string search_to_text(const SearchRequest& request, const SearchResult& result, bool explain);
std::string search_to_json(const SearchRequest& request, const SearchResult& result);
/// One self-contained page; `timeline` is a picture of the best layout's step, as HTML.
std::string search_to_html(const SearchRequest& request, const SearchResult& result, std::string_view timeline);
/// The head of such a page, with its style.
std::string_view page_head();
std::string escape_html(std::string_view text);
std::string_view objective_name(Objective objective);

}  // namespace orrery
