#include "simulate/finalists.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "base/units.h"
#include "parallel/split_layers.h"

namespace orrery {
namespace {

// A schedule with more actions than this is priced in closed form: the fill is then less than a hundredth of the step.
constexpr double kMaxActions = 400'000;

Recompute recompute_of(RecomputeKind kind) {
  return kind == RecomputeKind::kFull ? Recompute::kFull : kind == RecomputeKind::kSelective ? Recompute::kSelective : Recompute::kNone;
}

// The candidate's layout as a run of this program. Errors: kUnsupported with what is missing.
TrainingPlanOptions run_options(const Candidate& candidate, TrainingPlanOptions run) {
  const JobLayout& l = candidate.job.layout;
  if (candidate.job.model.num_experts > 0) throw Error(ErrorCode::kUnsupported, "a mixture of experts");
  if (l.offload_optimizer) throw Error(ErrorCode::kUnsupported, "an optimizer on the host");
  auto whole = [](double value) { return static_cast<int64_t>(value); };
  run.data = {};
  run.data.size = whole(l.dp), run.data.zero_stage = static_cast<int>(l.zero);
  if (l.zero == ZeroStage::kFull && l.shard_size < l.dp) run.data.shard_group_size = whole(l.shard_size);
  run.lanes = std::max(run.lanes, run.data.size);
  run.pipeline = {};
  run.pipeline.size = whole(l.pp), run.pipeline.kind = pipeline_kind_of(l.schedule), run.pipeline.virtual_stages = whole(l.virtual_stages);
  run.parallel = {};
  run.parallel.tensor_size = whole(l.tp), run.parallel.context_size = whole(l.cp), run.parallel.sequence_parallel = l.sequence_parallel;
  run.micro_batch_size = whole(l.micro_batch), run.recompute = recompute_of(l.recompute), run.memory_budget_bytes = 0;
  return run;
}

// Bytes of the neediest of the first, second and last rank of the pipeline: embedding, most micro-batches at a time, head.
int64_t map_bytes(TrainingPlanOptions options) {
  const WorkspaceBytes no_workspace = [](const Stage&, const Op&) { return int64_t{0}; };
  int64_t bytes = 0;
  for (const int64_t rank : {int64_t{0}, int64_t{1}, options.pipeline.size - 1}) {
    if (rank >= options.pipeline.size) continue;
    options.pipeline.rank = rank;
    bytes = std::max(bytes, make_rank_plan(options, no_workspace).memory.total_bytes);
  }
  return bytes;
}

void simulate_step(Candidate& c) {
  const JobLayout& l = c.job.layout;
  const double stages = l.pp * (l.schedule == PipelineSchedule::kZeroBubbleV ? 2 : l.virtual_stages);
  if (l.pp <= 1 || 3 * stages * l.num_micro_batches > kMaxActions) return;
  const Timeline timeline = simulate(simulated_pipeline(c, pipeline_kind_of(l.schedule)));
  c.closed_form_seconds = c.step.seconds;
  c.step.seconds = timeline.step_seconds;
  c.step.bubble_seconds = timeline.idle_share * timeline.compute_seconds;
  c.low_seconds *= c.step.seconds / c.closed_form_seconds, c.high_seconds *= c.step.seconds / c.closed_form_seconds;
}

void refine(const SearchRequest& request, const TrainingPlanOptions& run, Candidate& c) {
  simulate_step(c);
  price_run(request, c);
  try {
    c.mapped_bytes = map_bytes(run_options(c, run));
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported && error.code() != ErrorCode::kInvalidConfig) throw;
    c.not_mapped = error.what();
  }
}

}  // namespace

PipelineKind pipeline_kind_of(PipelineSchedule schedule) {
  switch (schedule) {
    case PipelineSchedule::kGpipe: return PipelineKind::kGPipe;
    case PipelineSchedule::kInterleaved: return PipelineKind::kInterleaved;
    case PipelineSchedule::kZeroBubbleH1: return PipelineKind::kZbH1;
    case PipelineSchedule::kZeroBubbleV: return PipelineKind::kZbV;
    case PipelineSchedule::kOneForwardOneBackward: break;
  }
  return PipelineKind::k1F1B;
}

SimulatedPipeline simulated_pipeline(const Candidate& candidate, PipelineKind kind) {
  const JobLayout& layout = candidate.job.layout;
  const StepCost& step = candidate.step;
  PipelineOptions options;
  options.kind = kind;
  options.num_ranks = static_cast<int32_t>(layout.pp), options.num_micro_batches = static_cast<int32_t>(layout.num_micro_batches);
  const bool v_shape = kind == PipelineKind::kZbV || kind == PipelineKind::kDualPipeV;
  options.chunks_per_rank = v_shape ? 2 : kind == PipelineKind::kInterleaved ? static_cast<int32_t>(std::max(2.0, layout.virtual_stages)) : 1;
  const PipelineOrder order = pipeline_order(options);
  SimulatedPipeline pipeline;
  pipeline.rank_of_stage = order.rank_of_stage;
  for (const auto& steps : order.steps) {
    auto& rank = pipeline.steps.emplace_back();
    for (const ComputeStep& each : steps) rank.push_back({each.kind, each.stage, each.micro_batch});
  }
  // Embedding, layers, head: as the stages of a run are cut.
  std::vector<double> costs(static_cast<size_t>(candidate.job.model.num_layers) + 2, step.layer_seconds);
  costs.front() = step.embed_seconds, costs.back() = step.head_seconds;
  int32_t begin = 0;
  for (const int32_t end : split_layers(costs, order.num_stages())) {
    StageSeconds stage;
    for (int32_t item = begin; item < end; ++item) {
      const bool layer = item > 0 && item + 1 < static_cast<int32_t>(costs.size());
      const double forward = layer ? step.forward_share : 1.0 / 3, weight = layer ? step.weight_share : 1.0 / 3, seconds = costs[static_cast<size_t>(item)];
      stage.forward += forward * seconds, stage.backward_weight += weight * seconds, stage.backward_input += (1 - forward - weight) * seconds;
    }
    const double waiting = step.handoff_seconds * layout.pp / order.num_stages() / 2;
    stage.forward += waiting, stage.backward_input += waiting;
    pipeline.seconds_of_stage.push_back(stage);
    begin = end;
  }
  pipeline.tail_seconds = step.tail_seconds;
  return pipeline;
}

void refine_finalists(const SearchRequest& request, const TrainingPlanOptions& run, SearchResult& result, const FinalistProgress& progress) {
  std::vector<Candidate*> all;
  for (std::vector<Candidate>* list : {&result.best, &result.pareto})
    for (Candidate& c : *list) all.push_back(&c);
  // Each by itself, so the result does not depend on how many threads there are.
  std::atomic<size_t> next = 0;
  std::mutex mutex;
  int64_t done = 0;
  std::exception_ptr failure;
  auto work = [&] {
    for (size_t i = next++; i < all.size(); i = next++) try {
        refine(request, run, *all[i]);
        const std::lock_guard lock(mutex);
        if (progress) progress(++done, static_cast<int64_t>(all.size()));
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
        next = all.size();
      }
  };
  {
    std::vector<std::jthread> threads;
    for (unsigned i = 1; i < std::thread::hardware_concurrency(); ++i) threads.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
  auto is_out = [&](const Candidate& c) {
    return static_cast<double>(c.mapped_bytes) > result.capacity_bytes || (request.deadline_seconds > 0 && c.run_seconds > request.deadline_seconds) || (request.budget > 0 && c.money > request.budget);
  };
  const Candidate closest = result.best.front();
  result.dropped = static_cast<int64_t>(std::erase_if(result.best, is_out));
  std::erase_if(result.pareto, [&](const Candidate& c) { return static_cast<double>(c.mapped_bytes) > result.capacity_bytes; });
  if (result.best.empty())
    throw Error(ErrorCode::kInvalidConfig, "of {} finalists none is left once its schedule is stepped through and its memory is laid out: the closest, {}, takes {} and {:.0f} of money and needs {} of {}; "
                "give the run more time, money or devices",
                result.dropped, layout_text(closest.job.layout), format_duration(closest.run_seconds), closest.money, format_bytes(static_cast<double>(closest.mapped_bytes)), format_bytes(result.capacity_bytes));
  std::sort(result.best.begin(), result.best.end(), is_better);
  // A point was the best of its number of devices in closed form; another finalist may be by now.
  for (Candidate& point : result.pareto)
    for (const Candidate& c : result.best)
      if (c.job.cluster.num_devices == point.job.cluster.num_devices && c.run_seconds < point.run_seconds) point = c;
  std::sort(result.pareto.begin(), result.pareto.end(), [](const Candidate& a, const Candidate& b) { return a.run_seconds < b.run_seconds; });
  // Slower is worth a point only where it is cheaper than all before.
  double least_money = std::numeric_limits<double>::infinity();
  std::erase_if(result.pareto, [&](const Candidate& c) { return c.money >= least_money || (least_money = c.money, false); });
  for (const Candidate& c : result.best) result.simulated += c.closed_form_seconds > 0, result.mapped += c.mapped_bytes > 0;
  // A family's best member is the best finalist that belongs to it; a family without one keeps what the closed form says.
  for (FamilyVerdict& verdict : result.families) {
    const auto member = std::find_if(result.best.begin(), result.best.end(), [&](const Candidate& c) {
      const auto names = families_of(c);
      return std::find(names.begin(), names.end(), verdict.family) != names.end();
    });
    if (member != result.best.end()) verdict.best = *member;
  }
  explain_families(result);
}

}  // namespace orrery
