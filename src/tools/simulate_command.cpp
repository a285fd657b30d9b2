// `orrery simulate RUN.toml --cluster CLUSTER.toml`: a training step of any number of ranks without devices: the layout that the search
// picks, its schedule run as discrete events, what-ifs, and a timeline for Perfetto.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <fstream>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/units.h"
#include "parallel/pipeline.h"
#include "planner/goodput.h"
#include "simulate/finalists.h"
#include "tools/cluster_plan.h"
#include "tools/commands.h"

namespace orrery {
namespace {

struct Options {
  ClusterPlanOptions plan;
  std::string schedule, trace_path, html_path;
  double straggler = 1, link_factor = 1, fail_rate = 0;
  int64_t straggler_rank = 0;
};

void run(const Options& options) {
  SearchResult result;
  // Written so that no comparison with NaN passes.
  if (!(options.link_factor > 0 && options.straggler >= 1 && options.fail_rate >= 0 && options.straggler_rank >= 0) || !std::isfinite(options.link_factor + options.straggler + options.fail_rate))
    throw Error(ErrorCode::kInvalidArgument, "wanted --link-factor above 0, --straggler of at least 1 and --fail-rate and --straggler-rank of at least 0; found {}, {}, {} and {}",
                options.link_factor, options.straggler, options.fail_rate, options.straggler_rank);
  constexpr PipelineTerms kTerms = {.schedule = "--schedule", .ranks = "the layout's pp =", .group = "number of micro-batches (train.micro_batch_size)"};
  std::optional<PipelineKind> other;
  if (!options.schedule.empty()) other = parse_pipeline_kind(options.schedule, kTerms);
  if (other == PipelineKind::k2Bw)
    throw Error(ErrorCode::kUnsupported, "--schedule 2bw: its steps run into each other, and what is simulated is one step by itself; see a step in the middle of a run with orrery plan schedule 2bw");
  ClusterRequest both = cluster_request(options.plan);
  SearchRequest& request = both.search;
  for (size_t group = 0; options.link_factor != 1 && group < request.cluster.devices.size(); ++group) {
    const AcceleratorSpec usual = request.cluster.device_spec(group);
    DevicesSection& hosts = request.cluster.devices[group];
    hosts.network_gbytes_per_second = usual.network_bytes_per_second / 1e9 * options.link_factor;
    hosts.domain_gbytes_per_second = usual.link_bytes_per_second / 1e9 * options.link_factor;
  }
  search_and_refine(both, result);
  const Candidate& best = result.best.front();
  const JobLayout& layout = best.job.layout;
  const PipelineKind kind = other.value_or(pipeline_kind_of(layout.schedule));
  SimulatedCluster cluster;
  cluster.pipeline = simulated_pipeline(best, kind, kTerms);
  cluster.replicas = static_cast<int64_t>(best.job.cluster.num_devices / layout.pp);
  const double base = simulate_cluster(cluster).step_seconds;
  if (const double ranks = best.job.cluster.num_devices; static_cast<double>(options.straggler_rank) >= ranks)
    throw Error(ErrorCode::kInvalidArgument, "--straggler-rank {}: the layout has ranks 0 to {}", options.straggler_rank, ranks - 1);
  if (options.straggler > 1) cluster.straggler_rank = options.straggler_rank, cluster.straggler_slowdown = options.straggler;
  const ClusterTimeline timeline = simulate_cluster(cluster);
  std::string text;
  text += fmt::format("layout    {} on {} devices\n", layout_text(layout), best.job.cluster.num_devices);
  if (request.cluster.devices.size() > 1) text += fmt::format("devices   {}\n", placement_text(best));
  text += fmt::format("schedule  {}, {} micro-batches; idle {:.1f} % of the pipeline's time\n", pipeline_name(kind), layout.num_micro_batches, 100 * timeline.classes.front().idle_share);
  text += fmt::format("step      {} simulated, {} by the closed form{}\n", format_duration(base), format_duration(best.closed_form_seconds > 0 ? best.closed_form_seconds : best.step.seconds),
                      kind == pipeline_kind_of(layout.schedule) ? "" : fmt::format(" with {}", pipeline_name(pipeline_kind_of(layout.schedule))));
  if (options.straggler > 1)
    text += fmt::format("what if   rank {} takes {:g} times as long: {} ({:+.1f} %)\n", options.straggler_rank, options.straggler, format_duration(timeline.step_seconds), 100 * (timeline.step_seconds / base - 1));
  if (options.fail_rate > 0) {
    const FailureModel failures{3600 / options.fail_rate, count_parameters(request.model).total * 14 / (request.cluster.tiers.storage_gbytes_per_second * 1e9), request.cluster.failures.restart_seconds};
    const double interval = std::max(best_checkpoint_interval(failures), timeline.step_seconds);
    text += fmt::format("what if   {:g} faults an hour: goodput {:.3f} with a checkpoint every {}\n", options.fail_rate, goodput(failures, interval), format_duration(interval));
  }
  fmt::print("{}", text);
  if (!options.html_path.empty()) {
    std::ofstream page(options.html_path, std::ios::binary);
    page << page_head() << "<h1>Simulated step</h1><pre>" << escape_html(text) << "</pre><h2>One pipeline</h2><div class=wide>" << timeline_svg(timeline.classes.front()) << "</div>";
    if (timeline.classes.size() > 1) page << "<h2>The pipeline with the slow rank</h2><div class=wide>" << timeline_svg(timeline.classes.back()) << "</div>";
    page << "</html>\n";
    if (!page.flush()) throw Error(ErrorCode::kIo, "cannot write {}", options.html_path);
    fmt::print(stderr, "wrote {}\n", options.html_path);
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
  command->add_option("--html", options->html_path, "also write one self-contained page with the timeline");
  command->footer("Examples:\n  orrery simulate run.toml --cluster cluster.toml --trace step.json\n  orrery simulate run.toml --cluster cluster.toml --straggler 1.3 --fail-rate 0.5\n");
  command->callback([options, &exit_code] {
    run(*options);
    exit_code = 0;
  });
}

}  // namespace orrery
