// `orrery config show|schema|docs|cluster-docs`: the resolved value of a run file, and what the tables of keys of run and cluster files say to
// editors and readers.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "tools/commands.h"
#include "topology/cluster.h"
#include "train/run_config.h"

namespace orrery {
namespace {

constexpr std::string_view kDocsHead =
    "# run.toml\n\n"
    "<!-- Made by `orrery config docs`; tests/cli_test.sh checks that it is current. -->\n\n"
    "A run is one TOML file of two levels: sections and keys. `--set section.key=value` puts a value over the file's. Numbers "
    "may be\n"
    "written `\"4k\"`, `\"4Ki\"`, `\"1.5B\"`, durations `\"30m\"`, bytes `\"2GiB\"`. An unknown key, a wrong type or a "
    "contradiction ends with status 2\n"
    "and file:line:column. The resolved value is saved with the run and reads back to the same run. `orrery help KEY` explains "
    "a key,\n"
    "`orrery examples` prints files to start from, `orrery config schema` is the JSON Schema for editors.\n";

constexpr std::string_view kClusterDocsHead =
    "# cluster.toml\n\n"
    "<!-- Made by `orrery config cluster-docs`; tests/cli_test.sh checks that it is current. -->\n\n"
    "The cluster that `orrery plan RUN.toml --cluster CLUSTER.toml` searches a layout for and `orrery simulate` runs a step of. It need not be\n"
    "there. What is left out comes from the catalogue below, whose figures are the vendors'; units and mistakes are as in [run.toml](run_toml.md).\n"
    "Examples: [h100x1024.toml](../examples/clusters/h100x1024.toml), [mixed-h100-a100.toml](../examples/clusters/mixed-h100-a100.toml),\n"
    "[mixed-h200-a100-40gb.toml](../examples/clusters/mixed-h200-a100-40gb.toml).\n\n"
    "Hosts of one kind are written `[devices]`; where there are several kinds, each is a `[[devices]]`, at most 4 of them. The plan then may leave a\n"
    "kind out, put whole replicas on each kind (all as slow as the slowest and no larger than the smallest allows), or put stages of every pipeline on\n"
    "several kinds, in the order that is best, with layers by their speed as far as they fit into their memory. `--explain` says which ranks are where.\n\n"
    "What the run file gives stays: sizes of `[parallel]`, `zero_stage`, `hybrid_shard_size`, `schedule`, `sequence_parallel`, `context_method`, the optimizer in\n"
    "`offload`, `train.micro_batch_size` and `train.recompute` where they are not the default, and with `parallel.layout = \"manual\"` also where they are; the rest is\n"
    "searched. With `context_method = \"ulysses\"` a context-parallel size must divide the heads and kv heads that tensor ranks leave.\n\n"
    "`budget.memory`, where the run file gives it, bounds what a rank's tensors may take of its device: bytes, or a share of the memory of each kind. Without\n"
    "it, and at most, they take 92 % of a device's memory less 2.5 GiB for its context and the collectives' buffers: the 80 % that is the default of a run here\n"
    "leaves room for whatever else a machine does, and a device of a cluster does nothing else.\n";

}  // namespace

void add_config_command(CLI::App& app, int& exit_code) {
  CLI::App* command =
      app.add_subcommand("config", "check a run file, print the resolved value, the schema or the documentation of run and cluster files");
  command->require_subcommand(1);

  struct Options {
    std::string path;
    std::vector<std::string> overrides;
  };
  auto options = std::make_shared<Options>();
  CLI::App* show = command->add_subcommand("show", "check a run file and print its resolved value");
  show->add_option("file", options->path, "the run file")->required();
  show->add_option("--set", options->overrides, "section.key=value over the file's value; may be repeated")
      ->allow_extra_args(false);
  show->footer(
      "Examples:\n  orrery config show run.toml\n  orrery config show run.toml --set train.steps=1k --set train.dtype=f32\n");
  show->callback([options, &exit_code] {
    fmt::print("{}", run_config_to_toml(load_run_config(options->path, options->overrides)));
    exit_code = 0;
  });

  command->add_subcommand("schema", "print the JSON Schema of a run file")->callback([&exit_code] {
    fmt::print("{}", run_schema().json_schema("Orrery run file"));
    exit_code = 0;
  });
  command->add_subcommand("docs", "print docs/run_toml.md")->callback([&exit_code] {
    fmt::print("{}{}", kDocsHead, run_schema().markdown());
    exit_code = 0;
  });
  command->add_subcommand("cluster-docs", "print docs/cluster_toml.md")->callback([&exit_code] {
    fmt::print("{}{}\n## The catalogue\n\nDense peak rates; links in one direction, of one device.\n\n{}", kClusterDocsHead, cluster_schema().markdown(), device_table());
    exit_code = 0;
  });
}

}  // namespace orrery
