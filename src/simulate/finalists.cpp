#include "simulate/finalists.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <exception>
#include <limits>
#include <mutex>
#include <set>
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

// Which rank computes what in which order.
PipelineOrder pipeline_order_of(const JobLayout& layout, PipelineKind kind, const PipelineTerms& terms = {}) {
  PipelineOptions options;
  options.terms = terms;
  options.kind = kind;
  options.num_ranks = static_cast<int32_t>(layout.pp), options.num_micro_batches = static_cast<int32_t>(layout.num_micro_batches);
  const bool v_shape = kind == PipelineKind::kZbV || kind == PipelineKind::kDualPipeV;
  options.chunks_per_rank = v_shape ? 2 : kind == PipelineKind::kInterleaved ? static_cast<int32_t>(std::max(2.0, layout.virtual_stages)) : 1;
  return pipeline_order(options);
}

// The part of the layout that a pipeline rank is on.
const StepCost& step_of_rank(const Candidate& candidate, int32_t rank) {
  if (candidate.is_mixed_pipeline())
    for (const DevicePart& part : candidate.parts)
      if (rank < part.first_rank + part.num_ranks) return part.step;
  return candidate.step;
}

// Layers of each stage: by their ranks' speeds where these differ, else as the stages of a run are cut: by cost, embedding and head counted.
std::vector<int32_t> stage_layers(const Candidate& candidate, const PipelineOrder& order) {
  if (candidate.is_mixed_pipeline()) return layers_by_stage(candidate.parts, order.rank_of_stage);
  const auto num_layers = static_cast<int32_t>(candidate.job.model.num_layers);
  std::vector<double> costs(static_cast<size_t>(num_layers) + 2, candidate.step.layer_seconds);
  costs.front() = candidate.step.embed_seconds, costs.back() = candidate.step.head_seconds;
  std::vector<int32_t> layers;
  int32_t begin = 0;
  for (const int32_t end : split_layers(costs, order.num_stages())) {
    layers.push_back(std::min(end, num_layers + 1) - std::max(begin, 1));
    begin = end;
  }
  return layers;
}

// The candidate's layout as a run of this program. Errors: kUnsupported with what is missing.
TrainingPlanOptions run_options(const Candidate& candidate, TrainingPlanOptions run) {
  const JobLayout& l = candidate.job.layout;
  if (candidate.job.model.num_experts > 0) throw Error(ErrorCode::kUnsupported, "a mixture of experts");
  auto whole = [](double value) { return static_cast<int64_t>(value); };
  run.data = {};
  run.data.size = whole(l.dp), run.data.zero_stage = static_cast<int>(l.zero);
  if (l.zero == ZeroStage::kFull && l.shard_size < l.dp) run.data.shard_group_size = whole(l.shard_size);
  run.lanes = std::max(run.lanes, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(run.data.size))));
  run.pipeline = {};
  run.pipeline.size = whole(l.pp), run.pipeline.kind = pipeline_kind_of(l.schedule), run.pipeline.virtual_stages = whole(l.virtual_stages);
  run.parallel = {.context_method = run.parallel.context_method};
  run.parallel.tensor_size = whole(l.tp), run.parallel.context_size = whole(l.cp), run.parallel.sequence_parallel = l.sequence_parallel;
  if (candidate.is_mixed_pipeline())
    for (const int32_t layers : layers_by_stage(candidate.parts, pipeline_order_of(l, run.pipeline.kind).rank_of_stage)) run.pipeline.stage_layers.push_back(layers);
  run.micro_batch_size = whole(l.micro_batch), run.recompute = recompute_of(l.recompute), run.memory_budget_bytes = 0;
  run.optimizer.offload_piece_bytes = l.offload_optimizer ? kOffloadPieceBytes : 0;
  run.optimizer.offload_weights = run.optimizer.offload_weights && l.offload_optimizer;
  return run;
}

// Bytes of the neediest pipeline rank on each kind of device, of the first, second and last there: embedding, most micro-batches at a time, head.
// Replicas on several kinds are alike, so theirs are made once. What does not fit is not looked at further: kinds behind it have 0.
std::vector<int64_t> map_bytes(TrainingPlanOptions options, const Candidate& candidate) {
  const WorkspaceBytes no_workspace = [](const Stage&, const Op&) { return int64_t{0}; };
  std::vector<int64_t> bytes(candidate.parts.size(), 0);
  for (size_t i = 0; i < bytes.size(); ++i) {
    const DevicePart& part = candidate.parts[i];
    if (i > 0 && !candidate.is_mixed_pipeline()) {
      bytes[i] = bytes.front();
      continue;
    }
    const int64_t first = part.first_rank, last = first + (candidate.is_mixed_pipeline() ? part.num_ranks : options.pipeline.size) - 1;
    for (const int64_t rank : std::set<int64_t>{first, std::min(first + 1, last), last}) {
      options.pipeline.rank = rank;
      bytes[i] = std::max(bytes[i], make_rank_plan(options, no_workspace).memory.total_bytes);
      if (static_cast<double>(bytes[i]) > part.capacity_bytes) return bytes;
    }
  }
  return bytes;
}

// The map of the part with the least room left.
void note_map(const std::vector<int64_t>& bytes, Candidate& c) {
  c.mapped_over = -std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < bytes.size(); ++i)
    if (const double over = static_cast<double>(bytes[i]) - c.parts[i].capacity_bytes; over > c.mapped_over) c.mapped_bytes = bytes[i], c.mapped_over = over;
}

// Deals the layers of a pipeline over several kinds again, as if each device were as much smaller or larger as the map of its ranks is larger or smaller
// than the closed form. False: they do not fit so.
bool deal_by_map(const SearchRequest& request, const std::vector<int64_t>& bytes, Candidate& c) {
  std::vector<DevicePart> parts = c.parts;
  double missed = 1;  // of kinds that were not mapped, as of the one before
  for (size_t i = 0; i < parts.size(); ++i) {
    if (bytes[i] > 0) missed = parts[i].memory.total() / static_cast<double>(bytes[i]);
    parts[i].capacity_bytes *= missed;
  }
  const PlacedStep placed = place_mixed_pipeline(c.job, parts, request.cluster.tiers.host_gib_per_device * 1073741824.0);
  if (!placed.fits) return false;
  for (size_t i = 0; i < parts.size(); ++i) parts[i].capacity_bytes = c.parts[i].capacity_bytes;
  c.parts = std::move(parts), c.step = placed.step, c.memory = placed.memory;
  return true;
}

void simulate_step(Candidate& c) {
  const JobLayout& l = c.job.layout;
  const double stages = l.pp * (l.schedule == PipelineSchedule::kZeroBubbleV ? 2 : l.virtual_stages);
  if (l.pp <= 1 || 3 * stages * l.num_micro_batches > kMaxActions) return;
  const Timeline timeline = simulate(simulated_pipeline(c, pipeline_kind_of(l.schedule)));
  c.closed_form_seconds = c.step.seconds;
  c.step.seconds = timeline.step_seconds;
  c.step.bubble_seconds = timeline.idle_share * timeline.compute_seconds;
}

void refine(const SearchRequest& request, const TrainingPlanOptions& run, Candidate& c) {
  const double low = c.low_seconds / c.step.seconds, high = c.high_seconds / c.step.seconds;
  try {
    std::vector<int64_t> bytes = map_bytes(run_options(c, run), c);
    note_map(bytes, c);
    if (c.mapped_over > 0 && c.is_mixed_pipeline() && deal_by_map(request, bytes, c)) {
      bytes = map_bytes(run_options(c, run), c);
      note_map(bytes, c);
    }
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported && error.code() != ErrorCode::kInvalidConfig) throw;
    c.not_mapped = error.what();
  }
  simulate_step(c);
  c.low_seconds = low * c.step.seconds, c.high_seconds = high * c.step.seconds;
  price_run(request, c);
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

SimulatedPipeline simulated_pipeline(const Candidate& candidate, PipelineKind kind, const PipelineTerms& terms) {
  const JobLayout& layout = candidate.job.layout;
  const PipelineOrder order = pipeline_order_of(layout, kind, terms);
  SimulatedPipeline pipeline;
  pipeline.rank_of_stage = order.rank_of_stage;
  for (const auto& steps : order.steps) {
    auto& rank = pipeline.steps.emplace_back();
    for (const ComputeStep& each : steps) rank.push_back({each.kind, each.stage, each.micro_batch});
  }
  const int32_t num_stages = order.num_stages();
  const std::vector<int32_t> layers = stage_layers(candidate, order);
  for (int32_t stage = 0; stage < num_stages; ++stage) {
    const StepCost& step = step_of_rank(candidate, order.rank_of_stage[static_cast<size_t>(stage)]);
    const double of_layers = layers[static_cast<size_t>(stage)] * step.layer_seconds, of_ends = (stage == 0 ? step.embed_seconds : 0) + (stage + 1 == num_stages ? step.head_seconds : 0);
    StageSeconds seconds;
    seconds.forward = step.forward_share * of_layers + of_ends / 3;
    seconds.backward_weight = step.weight_share * of_layers + of_ends / 3;
    seconds.backward_input = of_layers + of_ends - seconds.forward - seconds.backward_weight;
    const double waiting = candidate.step.handoff_seconds * layout.pp / num_stages / 2;
    seconds.forward += waiting, seconds.backward_input += waiting;
    pipeline.seconds_of_stage.push_back(seconds);
  }
  pipeline.tail_seconds = candidate.step.tail_seconds;
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
    return c.mapped_over > 0 || !request.limits.allow(c.run_seconds, c.money, c.kwh);
  };
  const Candidate closest = result.best.front();
  result.dropped = static_cast<int64_t>(std::erase_if(result.best, is_out));
  std::erase_if(result.pareto, [](const Candidate& c) { return c.mapped_over > 0; });
  if (result.best.empty())
    throw Error(ErrorCode::kInvalidConfig, "of {} finalists none is left once its schedule is stepped through and its memory is laid out: the best, {}, takes {}{}{}; "
                "give the run more time, money or devices, or shorter sequences", result.dropped, layout_text(closest.job.layout), format_duration(closest.run_seconds),
                request.cluster.has_prices() ? fmt::format(", costs {}", money_text(closest.money)) : "",
                closest.mapped_over > 0 ? fmt::format(" and needs {}, {} more than there is", format_bytes(static_cast<double>(closest.mapped_bytes)), format_bytes(closest.mapped_over)) : "");
  std::sort(result.best.begin(), result.best.end(), is_better);
  result.pareto.insert(result.pareto.end(), result.best.begin(), result.best.end());
  keep_front(result.pareto);
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
