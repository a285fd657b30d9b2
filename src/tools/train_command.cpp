// `orrery train RUN.toml`: trains, or goes on from the newest good checkpoint of the run's folder.
#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "tools/commands.h"
#include "train/launch_hosts.h"
#include "train/trainer.h"

namespace orrery {

void add_train_command(CLI::App& app, int& exit_code) {
  struct Options {
    std::string path;
    std::vector<std::string> overrides;
    std::string hosts;
    TrainOptions train;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("train", "train a model; started again, it goes on from its newest good checkpoint");
  command->add_option("file", options->path, "the run file")->required();
  command->add_option("--set", options->overrides, "section.key=value over the file's value; may be repeated")->allow_extra_args(false);
  command->add_flag("--fresh", options->train.fresh, "start over: what the run's folder holds moves into old-1, old-2, ...");
  command->add_flag("--accept-changes", options->train.accept_changes, "go on although settings that decide the bits have changed");
  command->add_option("--threads", options->train.num_threads, "compute threads of all ranks of a machine together; 0 for every core");
  command->add_option("--ranks", options->train.num_ranks, "ranks, as threads of this process; those that [parallel] does not assign are data parallel; absent: as the launcher (mpirun, srun) says")
      ->check(CLI::Range(1, 1024));
  command->add_option("--hosts", options->hosts, "start ranks over ssh on these machines, NAME or NAME:RANKS separated by commas; they share checkpoint.dir");
  command->add_flag("--json", options->train.json, "JSON lines on stdout, one a report");
  command->add_flag("--op-table", options->train.op_table, "at the end, print where each millisecond of a step went");
  command->footer(
      "Examples:\n  orrery train run.toml\n  orrery train run.toml --set train.steps=1k --set optimizer.lr=3e-4\n"
      "  orrery train run.toml --ranks 2            two ranks as threads\n"
      "  mpirun -n 4 orrery train run.toml          four as processes; srun likewise\n"
      "  orrery train run.toml --hosts node1,node2  one on each of two machines\n"
      "The first Ctrl-C saves a checkpoint and stops, the second stops at once.\n");
  command->callback([options, &exit_code] {
    const LoadRunConfig load = [&] { return load_run_config(options->path, options->overrides); };
    exit_code = options->hosts.empty() ? train_run(load, options->train) : launch_on_hosts(options->hosts, process_arguments(), load().checkpoint.dir);
  });
}

}  // namespace orrery
