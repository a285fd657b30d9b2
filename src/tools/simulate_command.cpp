// `orrery simulate RUN.toml --cluster CLUSTER.toml`: a training step of any number of ranks without devices: the layout that the search
// picks, its schedule run as discrete events, what-ifs, and a timeline for Perfetto.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/units.h"
#include "parallel/pipeline.h"
#include "planner/goodput.h"
#include "simulate/simulate.h"
#include "tools/cluster_plan.h"
#include "tools/commands.h"

namespace orrery {
namespace {

struct Options {
  ClusterPlanOptions plan;
  std::string schedule, trace_path;
  double straggler = 1, link_factor = 1, fail_rate = 0;
  int64_t straggler_rank = 0;
};

PipelineKind kind_of(PipelineSchedule schedule) {
  switch (schedule) {
    case PipelineSchedule::kGpipe: return PipelineKind::kGPipe;
    case PipelineSchedule::kInterleaved: return PipelineKind::kInterleaved;
    case PipelineSchedule::kZeroBubbleH1: return PipelineKind::kZbH1;
    case PipelineSchedule::kZeroBubbleV: return PipelineKind::kZbV;
    case PipelineSchedule::kOneForwardOneBackward: break;
  }
  return PipelineKind::k1F1B;
}

/// The pipeline of a layout, its stages' seconds from the closed form: a third of the work is forward, without recomputation, and the
/// two halves of the backward are equal.
SimulatedPipeline pipeline_of(const Candidate& candidate, PipelineKind kind, double handoff_seconds) {
  const JobLayout& layout = candidate.job.layout;
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
    for (const ComputeStep& step : steps)
      if (step.kind != ActionKind::kOptimizer) rank.push_back({step.kind, step.stage, step.micro_batch});
  }
  const double steady = candidate.step.steady_seconds / layout.num_micro_batches;  // of a rank and micro-batch
  const double chunks = static_cast<double>(order.num_stages()) / layout.pp;
  const double forward_share = layout.recompute == RecomputeKind::kFull ? 0.25 : 1.0 / 3;
  pipeline.forward_seconds = steady * forward_share / chunks;
  pipeline.backward_input_seconds = pipeline.backward_weight_seconds = steady * (1 - forward_share) / 2 / chunks;
  pipeline.handoff_seconds = handoff_seconds;
  pipeline.tail_seconds = candidate.step.seconds - candidate.step.steady_seconds - candidate.step.bubble_seconds;
  return pipeline;
}

void run(const Options& options) {
  SearchRequest request;
  SearchResult result;
  if (options.link_factor <= 0 || options.straggler < 1 || options.fail_rate < 0)
    throw Error(ErrorCode::kInvalidArgument, "wanted --link-factor above 0, --straggler of at least 1 and --fail-rate of at least 0; found {}, {}, {}", options.link_factor, options.straggler, options.fail_rate);
  request = cluster_request(options.plan);
  const AcceleratorSpec usual = request.cluster.device_spec();
  if (options.link_factor != 1) {
    request.cluster.links.network_gbytes_per_second = usual.network_bytes_per_second / 1e9 * options.link_factor;
    request.cluster.links.domain_gbytes_per_second = usual.link_bytes_per_second / 1e9 * options.link_factor;
  }
  search_layouts(request, result);
  const Candidate& best = result.best.front();
  const JobLayout& layout = best.job.layout;
  const PipelineKind kind = options.schedule.empty() ? kind_of(layout.schedule) : parse_pipeline_kind(options.schedule);
  SimulatedCluster cluster;
  // A message of one micro-batch's activations, over the network where stages lie on different hosts.
  const double message = layout.micro_batch * request.model.seq_len / layout.cp * request.model.hidden * 2 / (layout.sequence_parallel ? layout.tp : 1);
  cluster.pipeline = pipeline_of(best, kind, message / result.device.network_bytes_per_second);
  cluster.replicas = static_cast<int64_t>(best.job.cluster.num_devices / layout.pp);
  const double base = simulate_cluster(cluster).step_seconds;
  if (options.straggler > 1) cluster.straggler_rank = options.straggler_rank, cluster.straggler_slowdown = options.straggler;
  const ClusterTimeline timeline = simulate_cluster(cluster);
  fmt::print("layout    {} on {} devices\n", layout_text(layout), best.job.cluster.num_devices);
  fmt::print("schedule  {}, {} micro-batches; idle {:.1f} % of the pipeline's time\n", pipeline_name(kind), layout.num_micro_batches, 100 * timeline.classes.front().idle_share);
  fmt::print("step      {} simulated, {} by the closed form\n", format_duration(base), format_duration(best.step.seconds));
  if (options.straggler > 1)
    fmt::print("what if   rank {} takes {:g} times as long: {} ({:+.1f} %)\n", options.straggler_rank, options.straggler, format_duration(timeline.step_seconds), 100 * (timeline.step_seconds / base - 1));
  if (options.fail_rate > 0) {
    const FailureModel failures{3600 / options.fail_rate, count_parameters(request.model).total * 14 / (request.cluster.tiers.storage_gbytes_per_second * 1e9), request.cluster.failures.restart_seconds};
    const double interval = std::max(best_checkpoint_interval(failures), timeline.step_seconds);
    fmt::print("what if   {:g} faults an hour: goodput {:.3f} with a checkpoint every {}\n", options.fail_rate, goodput(failures, interval), format_duration(interval));
  }
  if (!options.trace_path.empty()) {
    const int64_t events = write_trace(timeline, options.trace_path);
    fmt::print(stderr, "wrote {}: {} actions of {} ranks; open it in ui.perfetto.dev or chrome://tracing\n", options.trace_path, events, best.job.cluster.num_devices);
  }
}

}  // namespace

void add_simulate_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("simulate", "a training step on a cluster that need not be here: timeline, slow ranks, faults");
  command->add_option("file", options->plan.run_path, "the run file")->required();
  command->add_option("--cluster", options->plan.cluster_path, "the cluster's description")->required();
  command->add_option("--set", options->plan.overrides, "section.key=value over the file's value; may be repeated")->allow_extra_args(false);
  command->add_option("--objective", options->plan.objective, "time, cost, energy or memory")->capture_default_str();
  command->add_option("--schedule", options->schedule, "another pipeline schedule over the same layout: gpipe, 1f1b, interleaved, zb-h1, zb-v, dualpipe-v");
  command->add_option("--straggler", options->straggler, "what if one rank took this many times as long")->capture_default_str();
  command->add_option("--straggler-rank", options->straggler_rank, "which one")->capture_default_str();
  command->add_option("--link-factor", options->link_factor, "what if every link had this share of its bandwidth (0.5: halved); the layout is searched again")->capture_default_str();
  command->add_option("--fail-rate", options->fail_rate, "what if this many faults an hour stopped the job");
  command->add_option("--trace", options->trace_path, "write the timeline of every rank for Perfetto");
  command->footer("Examples:\n  orrery simulate run.toml --cluster cluster.toml --trace step.json\n  orrery simulate run.toml --cluster cluster.toml --straggler 1.3 --fail-rate 0.5\n");
  command->callback([options, &exit_code] {
    run(*options);
    exit_code = 0;
  });
}

}  // namespace orrery
