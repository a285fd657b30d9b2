// `orrery plan RUN.toml`: everything that the run will do and where every byte will lie, before it starts.
#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "ir/block.h"
#include "tools/commands.h"
#include "train/run_setup.h"

namespace orrery {

void add_plan_command(CLI::App& app, int& exit_code) {
  struct Options {
    std::string path;
    std::vector<std::string> overrides;
    int threads = 0;
    bool json = false, ops = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("plan", "layout, bytes and schedule of a run, verified, before it starts");
  command->add_option("file", options->path, "the run file")->required();
  command->add_option("--set", options->overrides, "section.key=value over the file's value; may be repeated")->allow_extra_args(false);
  command->add_option("--threads", options->threads, "compute threads; 0 for every core");
  command->add_flag("--json", options->json, "the whole plan as JSON: blocks, schedule, every offset");
  command->add_flag("--ops", options->ops, "also print the ops of each block, one a line");
  command->footer("Examples:\n  orrery plan run.toml\n  orrery plan run.toml --set train.recompute=full --json > plan.json\n");
  command->callback([options, &exit_code] {
    const RunConfig config = load_run_config(options->path, options->overrides);
    const RunSetup setup = prepare_run(config, options->threads, [](std::string_view line) { fmt::print(stderr, "{}\n", line); });
    const Plan plan = plan_run(setup);
    if (options->json) {
      fmt::print("{}\n", plan_to_json(plan));
    } else {
      fmt::print("{}", plan_to_text(plan));
      if (options->ops)
        for (Phase phase : {Phase::kForward, Phase::kBackward, Phase::kOptimizer}) fmt::print("\n{}\n{}", phase_name(phase), to_string(plan.stage, phase));
      fmt::print(stderr, "next:  orrery train {}\n", options->path);
    }
    exit_code = 0;
  });
}

}  // namespace orrery
