#include "train/auto_layout.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "base/units.h"
#include "train/layer_probe.h"

namespace orrery {
namespace {

// A layout with more parts has to be this much faster: below it the prediction cannot tell.
constexpr double kWorthwhile = 0.01;

struct Candidate {
  int64_t ranks = 1;
  int zero_stage = 0;
  std::optional<int64_t> micro_batch_size;
};

std::vector<int64_t> rank_counts(const RunSetup& setup, bool ranks_given) {
  const TrainingPlanOptions& options = setup.plan_options;
  if (ranks_given || setup.config.parallel.data_parallel_size) return {options.data.size};
  // Ranks of a pipeline and those that share layers have a thread each, too.
  const int64_t threads = std::max<int64_t>(1, setup.engine.num_threads / (options.world_size() / options.data.size)), most = std::min(threads, options.lanes);
  std::vector<int64_t> counts;
  for (int64_t ranks = 1; ranks <= most; ranks *= 2)
    if (threads % ranks == 0) counts.push_back(ranks);
  return counts;
}

std::string layout_name(const Plan& plan, int threads) {
  const DataParallel& data = plan.options.data;
  return fmt::format("{} rank{} x {} thread{}{}, micro-batch {}, recompute {}", data.size, data.size == 1 ? "" : "s", threads, threads == 1 ? "" : "s",
                     data.size > 1 ? fmt::format(", zero {}", data.zero_stage) : "", plan.micro_batch_size, recompute_text(plan));
}

TrainingPlanOptions options_of(const RunSetup& setup, const Candidate& candidate) {
  TrainingPlanOptions options = setup.plan_options;
  options.memory_budget_bytes = options.memory_budget_bytes * options.data.size / candidate.ranks;  // all ranks share this machine's memory
  options.data.size = candidate.ranks, options.data.zero_stage = candidate.zero_stage;
  if (candidate.micro_batch_size) options.micro_batch_size = candidate.micro_batch_size;
  return options;
}

std::vector<Plan> plans_of(const RunSetup& setup, const TrainingPlanOptions& options, Communicator* world) {
  EngineOptions each = setup.engine;
  each.num_threads = rank_threads(setup.engine.num_threads, world != nullptr ? 1 : static_cast<int>(options.world_size()));
  return make_training_plans(options, workspace_traits(each, options.sequence_tokens));
}

}  // namespace

LayoutChoice choose_layout(RunSetup& setup, bool ranks_given, const SetupNote& note, Communicator* world) {
  const bool automatic = setup.config.parallel.layout == LayoutMode::kAuto;
  const std::vector<int64_t> counts = rank_counts(setup, ranks_given || !automatic);
  std::vector<Candidate> candidates;
  for (const int64_t ranks : counts) {
    const int stage = setup.plan_options.data.zero_stage;
    candidates.push_back({ranks, stage, std::nullopt});
    if (counts.size() > 1 && ranks > 1 && stage == 0) candidates.push_back({ranks, 1, std::nullopt});
  }
  KeptOpTimes kept = load_op_times();
  const bool leads = world == nullptr || world->rank() == 0;
  if (leads && !kept.not_used.empty()) note(fmt::format("probe     {} is not used: {}{}", op_times_path(), kept.not_used, automatic ? "; ops are timed again" : ""));
  OpTimes& times = kept.times;
  if (world != nullptr) share_op_times(times, *world);
  const auto begin = std::chrono::steady_clock::now();
  int64_t measured = 0;
  LayoutChoice choice;
  std::optional<Error> misfit;
  std::optional<TrainingPlanOptions> taken;
  size_t taken_index = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const Candidate candidate = candidates[i];
    const TrainingPlanOptions options = options_of(setup, candidate);
    WeighedLayout weighed;
    try {
      const std::vector<Plan> plans = plans_of(setup, options, world);
      const StepMachine machine = step_machine(setup.engine, plans.front().stage.compute_dtype, static_cast<int>(plans.size()), world);
      if (automatic) measured += measure_missing(plans, setup.engine, machine, setup.train.get(), times, world);
      StepPrediction prediction = predict_step_time(plans, times, machine);
      weighed.layout = layout_name(plans.front(), machine.threads_per_rank);
      for (const Plan& plan : plans) weighed.bytes += plan.memory.total_bytes;
      weighed.seconds = prediction.missing.empty() ? prediction.seconds : 0;
      // The plan's own choice is the largest that fits; half of it may sit better in the caches.
      const int64_t chosen = plans.back().micro_batch_size;
      if (automatic && !options.micro_batch_size && chosen > 1) candidates.push_back({candidate.ranks, candidate.zero_stage, chosen / 2});
      const bool better = !taken || (weighed.seconds > 0 && (!choice.prediction.missing.empty() || weighed.seconds < choice.prediction.seconds * (1 - kWorthwhile)));
      if (better) choice.prediction = std::move(prediction), choice.machine = machine, taken = options, taken_index = choice.weighed.size();
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kInvalidConfig) throw;
      weighed.layout = fmt::format("{} ranks, zero {}", candidate.ranks, candidate.zero_stage);
      weighed.reason = "does not fit";
      if (!misfit) misfit = error;
      // What does not fit may in more shards. Where the lesser fits it is the faster one, with less to send.
      const int first_stage = counts.size() > 1 ? 1 : 0;  // 0 and 1 are weighed anyway
      if (automatic && candidate.ranks > 1 && candidate.zero_stage >= first_stage && candidate.zero_stage < 3) candidates.push_back({candidate.ranks, candidate.zero_stage + 1, candidate.micro_batch_size});
    }
    choice.weighed.push_back(std::move(weighed));
  }
  if (!taken) throw *misfit;
  setup.plan_options = *taken;
  if (measured > 0) {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (leads)
      note(fmt::format("probe     {} ops and collectives timed in {:.1f} s with two layers of this model{}", measured, seconds,
                       store_op_times(times) ? ", kept in " + op_times_path() : ""));
  }
  const auto at = choice.weighed.begin() + static_cast<ptrdiff_t>(taken_index);
  std::rotate(choice.weighed.begin(), at, at + 1);
  std::stable_sort(choice.weighed.begin() + 1, choice.weighed.end(), [](const WeighedLayout& a, const WeighedLayout& b) {
    return a.reason.empty() != b.reason.empty() ? a.reason.empty() : a.seconds < b.seconds;
  });
  const double best = choice.weighed.front().seconds;
  for (auto entry = choice.weighed.begin() + 1; entry != choice.weighed.end(); ++entry)
    if (entry->reason.empty() && best > 0 && entry->seconds > 0) entry->reason = fmt::format("{:+.1f} % time", 100 * (entry->seconds / best - 1));
  return choice;
}

std::string layout_choice_to_text(const LayoutChoice& choice) {
  if (choice.weighed.empty()) return {};
  std::string text;
  if (choice.weighed.size() > 1) {
    text += fmt::format("weighed   {} layouts\n", choice.weighed.size());
    for (const WeighedLayout& w : choice.weighed)
      text += fmt::format("          {:<56} {:>10}  {:>12}  {}\n", w.layout, w.bytes > 0 ? format_bytes(static_cast<double>(w.bytes)) : "", w.seconds > 0 ? fmt::format("{:.4g} s", w.seconds) : "",
                          &w == &choice.weighed.front() ? "taken" : w.reason);
  }
  return text + prediction_to_text(choice.prediction);
}

}  // namespace orrery
