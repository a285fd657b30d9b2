// `orrery plan RUN.toml`: everything that the run will do and where every byte will lie, before it starts.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "ir/block.h"
#include "runtime/machine_facts.h"
#include "planner/schedule_text.h"
#include "planner/validate.h"
#include "tools/cluster_plan.h"
#include "tools/commands.h"
#include "tools/plan_schedule_command.h"
#include "planner/step_trace.h"
#include "train/auto_layout.h"
#include "train/layer_probe.h"
#include "train/run_budget.h"
#include "train/run_setup.h"

namespace orrery {
namespace {

void add_validate(CLI::App& plan, int& exit_code) {
  struct Options {
    std::string path;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = plan.add_subcommand("validate", "error of predicted step time and memory on a table of published runs");
  command->add_option("table", options->path, "a CSV file with the columns of bench/data/published_runs.csv")->required();
  command->add_flag("--json", options->json, "print JSON");
  command->footer("Examples:\n  orrery plan validate bench/data/published_runs.csv\n  orrery plan validate runs.csv --json\n");
  command->callback([options, &exit_code] {
    const ValidateReport report = validate(load_published_runs(options->path));
    fmt::print("{}{}", options->json ? validate_to_json(report, options->path) : validate_to_text(report), options->json ? "\n" : "");
    exit_code = 0;
  });
}

void add_compare(CLI::App& plan, int& exit_code) {
  struct Options {
    std::string folder;
    bool calibrate = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = plan.add_subcommand("compare", "what a run's steps took beside what its plan said, action by action");
  command->add_option("run", options->folder, "a run's folder")->required();
  command->add_flag("--calibrate", options->calibrate, "keep the times that the run saw: the next plan on this machine is made from them");
  command->footer("Examples:\n  orrery plan compare runs/run\n  orrery plan compare runs/run --calibrate\n");
  command->callback([options, &exit_code] {
    const std::string path = (std::filesystem::path(options->folder) / "trace.json").string();
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error(ErrorCode::kInvalidArgument, "{}: cannot be read; a run writes it when it has trained at least three steps and ends or is stopped", path);
    const StepTrace trace = trace_from_json({std::istreambuf_iterator<char>(file), {}}, path);
    fmt::print("{}", trace_to_text(trace));
    if (options->calibrate) {
      if (const std::string difference = fingerprint_difference(trace.machine, machine_fingerprint(machine_facts())); !difference.empty())
        throw Error(ErrorCode::kInvalidConfig, "{}: not of this machine: {}; calibrate there, or train here", path, difference);
      KeptOpTimes kept = load_op_times();
      if (!kept.not_used.empty()) fmt::print(stderr, "{} is replaced: {}\n", op_times_path(), kept.not_used);
      const int64_t count = calibrate(kept.times, trace);
      if (!store_op_times(kept.times)) throw Error(ErrorCode::kIo, "cannot write {}", op_times_path());
      fmt::print(stderr, "kept {} times in {}\n", count, op_times_path());
    }
    exit_code = 0;
  });
}

}  // namespace

void add_plan_command(CLI::App& app, int& exit_code) {
  struct Options {
    std::string path;
    std::vector<std::string> overrides;
    int num_threads = 0, num_ranks = 0;
    int rank = -1;
    bool json = false, ops = false, schedule = false;
    std::string schedule_file;
    ClusterPlanOptions cluster;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("plan", "layout, bytes and schedule of a run, verified, before it starts");
  command->add_option("file", options->path, "the run file");
  command->add_option("--set", options->overrides, "section.key=value over the file's value; may be repeated")->allow_extra_args(false);
  command->add_option("--threads", options->num_threads, "compute threads of all ranks together; 0 for every core");
  command->add_option("--ranks", options->num_ranks, "ranks to plan for; absent: chosen")->check(CLI::Range(1, 1024));
  command->add_option("--rank", options->rank, "which rank's memory and schedule to print; by default the last, which has the most to hold");
  command->add_flag("--json", options->json, "the whole plan as JSON: blocks, schedule, every offset");
  command->add_flag("--ops", options->ops, "also print the ops of each block, one a line");
  command->add_flag("--schedule", options->schedule, "also print the step x rank grid, the bubble, bytes on every link and memory of every rank");
  command->add_option("--schedule-file", options->schedule_file, "a pipeline's order from this file, one line a rank like `rank 0: F0 F1 B0 B1`; verified, and what train runs with parallel.schedule = FILE");
  ClusterPlanOptions& cluster = options->cluster;
  CLI::Option* given = command->add_option("--cluster", cluster.cluster_path, "search the layout for the cluster of this file instead of this machine");
  command->add_option("--objective", cluster.objective, "time, cost, energy or memory")->capture_default_str()->needs(given);
  command->add_option("--deadline", cluster.deadline, "the run's longest time, such as 30d")->needs(given);
  command->add_option("--budget", cluster.budget, "the run's highest price, such as 2M")->needs(given);
  command->add_option("--lose-nodes", cluster.lost_nodes, "plan for what is left when this many hosts are gone, such as 2, or A100:2 where there are several kinds")->needs(given);
  command->add_option("--html", cluster.html_path, "also write one self-contained page")->needs(given);
  command->add_flag("--explain", cluster.explain, "the top ten, and why each family of layouts lost")->needs(given);
  command->footer("Examples:\n  orrery plan run.toml --cluster cluster.toml --explain\n  orrery plan run.toml\n  orrery plan run.toml --set train.recompute=full --json > plan.json\n");
  add_validate(*command, exit_code);
  add_compare(*command, exit_code);
  add_plan_schedule(*command, exit_code);
  command->callback([options, command, &exit_code] {
    if (!command->get_subcommands().empty()) return;
    if (options->path.empty())
      throw Error(ErrorCode::kInvalidArgument, "`orrery plan` needs a run file: orrery plan run.toml. One to start from: orrery examples llama-11m > run.toml. "
                                               "With `validate`, `compare` or `schedule` it does something else: orrery plan --help");
    if (!options->cluster.cluster_path.empty()) {
      options->cluster.run_path = options->path, options->cluster.overrides = options->overrides, options->cluster.json = options->json;
      plan_for_cluster(options->cluster);
      exit_code = 0;
      return;
    }
    if (!options->schedule_file.empty() && !std::filesystem::is_regular_file(options->schedule_file))
      throw Error(ErrorCode::kCorruptData, "--schedule-file {}: no such file; wanted lines like `rank 0: F0 F1 B0 B1`, one a rank", options->schedule_file);
    if (!options->schedule_file.empty()) options->overrides.push_back("parallel.schedule=" + options->schedule_file);
    const RunConfig config = load_run_config(options->path, options->overrides);
    const SetupNote note = [](std::string_view line) { fmt::print(stderr, "{}\n", line); };
    RunSetup setup = prepare_run(config, {options->num_threads, std::max(1, options->num_ranks)}, note);
    const LayoutChoice choice = choose_layout(setup, options->num_ranks > 0, note);
    const std::vector<Plan> plans = plan_run(setup);
    const auto num_plans = static_cast<int>(plans.size());
    if (options->rank >= num_plans) throw Error(ErrorCode::kInvalidArgument, "--rank {}: the plan has ranks 0 to {}", options->rank, num_plans - 1);
    const Plan& plan = plans[static_cast<size_t>(options->rank >= 0 ? options->rank : num_plans - 1)];
    const RunForecast forecast = forecast_run(setup, choice.prediction);
    if (options->json) {
      fmt::print("{}\n", plan_to_json(plan, &choice.prediction, &forecast));
    } else {
      fmt::print("{}{}{}", plan_to_text(plan), layout_choice_to_text(choice), forecast_to_text(forecast));
      if (options->schedule || !options->schedule_file.empty()) fmt::print("\n{}", schedules_to_text(plans));
      if (options->ops)
        for (Phase phase : {Phase::kForward, Phase::kBackward, Phase::kOptimizer}) fmt::print("\n{}\n{}", phase_name(phase), to_string(plan.stage, phase));
    }
    require_budget(config, forecast);
    if (!options->json) fmt::print(stderr, "next:  orrery train {}\n", options->path);
    exit_code = 0;
  });
}

}  // namespace orrery
