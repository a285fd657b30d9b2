// `orrery config show|schema|docs`: the resolved value of a run file, and what its table of keys says to editors and readers.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "tools/commands.h"
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

}  // namespace

void add_config_command(CLI::App& app, int& exit_code) {
  CLI::App* command =
      app.add_subcommand("config", "check a run file, print the resolved value, the schema or the documentation");
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
}

}  // namespace orrery
