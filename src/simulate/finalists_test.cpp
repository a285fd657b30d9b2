// Finalists against what they stand for: steps between the bounds that any schedule has, maps equal to the plans that a run would
// execute, an order by what was found, and what does not fit or is too late gone, with a message when nothing is left.
#include "simulate/finalists.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <numeric>
#include <tuple>
#include <utility>

#include "base/error.h"

namespace orrery {
namespace {

TrainingPlanOptions small_run() {
  TrainingPlanOptions run;
  run.model = default_model_config(ModelFamily::kLlama);
  run.model.hidden_size = 256, run.model.num_layers = 6, run.model.num_heads = run.model.num_kv_heads = 4, run.model.intermediate_size = 512, run.model.vocab_size = 1000, run.model.max_seq_len = 128;
  run.model.tie_embeddings = false;
  resolve(run.model);
  run.sequence_tokens = 128, run.global_batch_size = 16;
  return run;
}

SearchRequest request_of(const TrainingPlanOptions& run) {
  SearchRequest request;
  auto number = [](int64_t value) { return static_cast<double>(value); };
  const ModelConfig& m = run.model;
  request.model = {.num_layers = number(m.num_layers), .hidden = number(m.hidden_size), .num_heads = number(m.num_heads), .num_kv_heads = number(m.num_kv_heads), .head_dim = number(m.head_dim),
                   .ffn_hidden = number(m.intermediate_size), .vocab = number(m.vocab_size), .seq_len = number(run.sequence_tokens), .gated = true};
  request.lanes = number(run.lanes), request.global_batch = number(run.global_batch_size), request.total_tokens = 1e9;
  request.cluster = parse_cluster("[devices]\nkind = \"H100\"\ncount = 8\n[prices]\nper_device_hour = 2\n", "c.toml");
  return request;
}

SearchResult refined(const SearchRequest& request, const TrainingPlanOptions& run) {
  SearchResult result;
  search_layouts(request, result);
  refine_finalists(request, run, result);
  return result;
}

TEST(Finalists, StepsLieBetweenTheBoundsOfAnySchedule) {
  const TrainingPlanOptions run = small_run();
  const SearchResult result = refined(request_of(run), run);
  int64_t pipelines = 0;
  for (const Candidate& c : result.best) {
    const JobLayout& l = c.job.layout;
    EXPECT_EQ(c.closed_form_seconds > 0, l.pp > 1);
    if (l.pp == 1) continue;
    ++pipelines;
    const SimulatedPipeline pipeline = simulated_pipeline(c, pipeline_kind_of(l.schedule));
    std::vector<double> rank_seconds(static_cast<size_t>(l.pp), 0.0);
    double once_through = 0;
    for (size_t stage = 0; stage < pipeline.seconds_of_stage.size(); ++stage) {
      const StageSeconds& s = pipeline.seconds_of_stage[stage];
      const double micro_batch = s.forward + s.backward_input + s.backward_weight;
      rank_seconds[static_cast<size_t>(pipeline.rank_of_stage[stage])] += l.num_micro_batches * micro_batch;
      once_through += s.forward + s.backward_input;
    }
    const double slowest = *std::max_element(rank_seconds.begin(), rank_seconds.end());
    EXPECT_GE(c.step.seconds, (std::max(slowest, once_through) + c.step.tail_seconds) * (1 - 1e-9)) << layout_text(l);
    // At the latest one rank works at a time.
    double all = 0;
    for (const double seconds : rank_seconds) all += seconds;
    EXPECT_LE(c.step.seconds, (all + c.step.tail_seconds) * (1 + 1e-9)) << layout_text(l);
  }
  EXPECT_EQ(result.simulated, pipelines);
  EXPECT_GT(pipelines, 20);
}

TEST(Finalists, EvenStagesTakeWhatTheClosedFormSays) {
  TrainingPlanOptions run = small_run();
  SearchResult result;
  search_layouts(request_of(run), result);
  Candidate c = result.best.front();
  JobLayout& l = c.job.layout;
  l = {.pp = 4, .num_micro_batches = 16};
  l.virtual_stages = 1;
  c.job.model.num_layers = 8;
  c.job.model.vocab = 1;  // no head to speak of
  for (const PipelineSchedule schedule : {PipelineSchedule::kOneForwardOneBackward, PipelineSchedule::kGpipe}) {
    l.schedule = schedule;
    c.step = predict_step(c.job, default_constants());
    const SimulatedPipeline pipeline = simulated_pipeline(c, pipeline_kind_of(schedule));
    EXPECT_NEAR(simulate(pipeline).step_seconds, c.step.seconds, 0.06 * c.step.seconds);
  }
}

TEST(Finalists, MapsAreThoseOfTheRunsPlans) {
  const TrainingPlanOptions run = small_run();
  const SearchResult result = refined(request_of(run), run);
  int64_t compared = 0, refused = 0;
  std::map<std::tuple<PipelineSchedule, double, bool>, int> of_kind;  // a few of each schedule, number of stages a rank and place of the optimizer
  for (const Candidate& c : result.best) {
    EXPECT_NE(c.mapped_bytes > 0, !c.not_mapped.empty());
    refused += c.mapped_bytes == 0;
    if (c.mapped_bytes == 0 || of_kind[{c.job.layout.schedule, c.job.layout.virtual_stages, c.job.layout.offload_optimizer}]++ >= 4) continue;
    TrainingPlanOptions options = run;
    const JobLayout& l = c.job.layout;
    options.data.size = static_cast<int64_t>(l.dp), options.data.zero_stage = static_cast<int>(l.zero), options.lanes = std::max<int64_t>(options.lanes, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(l.dp))));
    if (l.zero == ZeroStage::kFull && l.shard_size < l.dp) options.data.shard_group_size = static_cast<int64_t>(l.shard_size);
    options.pipeline.size = static_cast<int64_t>(l.pp), options.pipeline.kind = pipeline_kind_of(l.schedule), options.pipeline.virtual_stages = static_cast<int64_t>(l.virtual_stages);
    options.parallel.tensor_size = static_cast<int64_t>(l.tp), options.parallel.context_size = static_cast<int64_t>(l.cp), options.parallel.sequence_parallel = l.sequence_parallel;
    options.micro_batch_size = static_cast<int64_t>(l.micro_batch), options.recompute = l.recompute == RecomputeKind::kFull ? Recompute::kFull : Recompute::kNone;
    options.optimizer.offload_piece_bytes = l.offload_optimizer ? kOffloadPieceBytes : 0;
    int64_t most = 0;
    for (const Plan& plan : make_training_plans(options, [](const Stage&, const Op&) { return int64_t{0}; }))
      if (const int64_t rank = plan.options.pipeline.rank; plan.options.data.rank == 0 && plan.options.parallel.part() == 0 && (rank < 2 || rank == options.pipeline.size - 1))
        most = std::max(most, plan.memory.total_bytes);
    EXPECT_EQ(c.mapped_bytes, most) << layout_text(l);
    ++compared;
  }
  EXPECT_GE(compared, 12);
  EXPECT_EQ(static_cast<int64_t>(result.best.size()) - refused, result.mapped);
}

TEST(Finalists, AreSortedAndExplained) {
  const TrainingPlanOptions run = small_run();
  const SearchRequest request = request_of(run);
  const SearchResult result = refined(request, run);
  EXPECT_TRUE(std::is_sorted(result.best.begin(), result.best.end(), is_better));
  EXPECT_EQ(search_to_json(request, result), search_to_json(request, refined(request, run)));
  const auto winners = families_of(result.best.front());
  for (const FamilyVerdict& verdict : result.families)
    EXPECT_EQ(std::find(winners.begin(), winners.end(), verdict.family) != winners.end(), verdict.reason == "holds the best layout") << verdict.family;
  for (size_t i = 1; i < result.pareto.size(); ++i) EXPECT_LT(result.pareto[i].money, result.pareto[i - 1].money);
  for (const Candidate& point : result.pareto)
    for (const Candidate& c : result.best)
      if (c.job.cluster.num_devices == point.job.cluster.num_devices) {
        EXPECT_LE(point.run_seconds, c.run_seconds) << layout_text(c.job.layout);
      }
}

TEST(Finalists, LeastMemoryIsByTheMap) {
  const TrainingPlanOptions run = small_run();
  SearchRequest request = request_of(run);
  request.objective = Objective::kMemory;
  const SearchResult result = refined(request, run);
  ASSERT_GT(result.mapped, 20);
  for (const Candidate& c : result.best) EXPECT_LE(result.best.front().mapped_bytes, c.mapped_bytes) << layout_text(c.job.layout);
}

// A pipeline over two kinds of devices is stepped through with each rank's own seconds, and mapped with the layers that it was dealt; what the
// map finds too large is dealt again.
TEST(Finalists, PipelinesOverSeveralKinds) {
  const TrainingPlanOptions run = small_run();
  SearchRequest request = request_of(run);
  request.cluster = parse_cluster("[[devices]]\nkind = \"H100\"\ncount = 8\n[[devices]]\nkind = \"V100\"\ncount = 8\n[prices]\nper_device_hour = 2\n", "c.toml");
  SearchResult closed;
  search_layouts(request, closed);
  const auto family = std::find_if(closed.families.begin(), closed.families.end(), [](const FamilyVerdict& v) { return v.family == "stages on several kinds of devices"; });
  ASSERT_NE(family, closed.families.end());
  ASSERT_TRUE(family->feasible);
  Candidate best = family->best;
  const SimulatedPipeline pipeline = simulated_pipeline(best, pipeline_kind_of(best.job.layout.schedule));
  const std::vector<int32_t> layers = layers_by_stage(best.parts, pipeline.rank_of_stage);
  std::map<int32_t, double> of_layer;  // by group: forward and backward of one layer on a stage without an end of the model
  for (size_t stage = 1; stage + 1 < layers.size(); ++stage) {
    ASSERT_GT(layers[stage], 0);
    const auto part = std::find_if(best.parts.begin(), best.parts.end(), [&](const DevicePart& p) { return pipeline.rank_of_stage[stage] < p.first_rank + p.num_ranks; });
    const StageSeconds& s = pipeline.seconds_of_stage[stage];
    const double waiting = best.step.handoff_seconds * best.job.layout.pp / static_cast<double>(layers.size());
    const double seconds = (s.forward + s.backward_input + s.backward_weight - waiting) / layers[stage];
    EXPECT_NEAR(seconds, part->step.layer_seconds, 1e-9);
    of_layer[part->group] = seconds;
  }
  if (of_layer.size() == 2) {
    EXPECT_LT(of_layer[0], of_layer[1]);
  }
  // By itself through the same steps as all finalists.
  closed.best = closed.pareto = {best};
  refine_finalists(request, run, closed);
  const Candidate refined = closed.best.front();
  EXPECT_GT(refined.mapped_bytes, 0) << refined.not_mapped;
  EXPECT_GT(refined.closed_form_seconds, 0);
  // With devices of that kind a little too small for the map of their ranks, these get fewer layers.
  size_t tight = 0;
  while (static_cast<double>(refined.mapped_bytes) - best.parts[tight].capacity_bytes != refined.mapped_over) ++tight;
  const auto layers_there = [&](const Candidate& c) { return std::accumulate(c.parts[tight].layers.begin(), c.parts[tight].layers.end(), 0); };
  best.parts[tight].capacity_bytes = 0.98 * static_cast<double>(refined.mapped_bytes);
  closed.best = closed.pareto = {best};
  refine_finalists(request, run, closed);
  EXPECT_LE(closed.best.front().mapped_over, 0);
  EXPECT_LT(layers_there(closed.best.front()), layers_there(best));
}

TEST(Finalists, WhatIsTooLateIsDroppedWithTheWayOut) {
  const TrainingPlanOptions run = small_run();
  SearchRequest request = request_of(run);
  SearchResult result;
  search_layouts(request, result);
  SearchResult copy = result;
  request.limits.seconds = 1e-6;  // tightened after the search, as events may find
  try {
    refine_finalists(request, run, result);
    FAIL() << "nothing can be that fast";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("more time, money or devices"), std::string::npos) << error.what();
  }
  const SearchRequest open = request_of(run);
  const SearchResult all = refined(open, run);
  request.limits.seconds = all.best[all.best.size() / 2].run_seconds;
  for (std::vector<Candidate>* list : {&copy.best, &copy.pareto})
    for (Candidate& c : *list) use_devices_of(copy, c);
  refine_finalists(request, run, copy);
  EXPECT_GT(copy.dropped, 0);
  for (const Candidate& c : copy.best) EXPECT_LE(c.run_seconds, request.limits.seconds);
}

}  // namespace
}  // namespace orrery
