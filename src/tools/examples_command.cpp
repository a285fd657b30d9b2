// `orrery examples [name]`: run files to start from.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/nearest_name.h"
#include "tools/commands.h"
#include "tools/example_files.h"

namespace orrery {
namespace {

/// The comment that an example begins with is its description.
std::string_view first_comment_line(std::string_view text) {
  const std::string_view line = text.substr(0, text.find('\n'));
  return line.starts_with("# ") ? line.substr(2) : std::string_view{};
}

void print_example(const std::string& name) {
  std::vector<std::string_view> names;
  for (const ExampleFile& example : example_files()) {
    names.push_back(example.name);
    if (example.name != name) continue;
    std::fwrite(example.text.data(), 1, example.text.size(), stdout);
    return;
  }
  const auto nearest = nearest_name(name, names);
  throw Error(ErrorCode::kInvalidArgument, "unknown example `{}`{}; the examples are {}", name,
              nearest ? fmt::format(": did you mean `{}`?", *nearest) : "", fmt::join(names, ", "));
}

}  // namespace

void add_examples_command(CLI::App& app, int& exit_code) {
  auto name = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("examples", "print a run.toml to start from");
  command->add_option("name", *name, "the example; without it, the list");
  command->footer("Examples:\n  orrery examples\n  orrery examples llama-11m > run.toml\n");
  command->callback([name, &exit_code] {
    exit_code = 0;
    if (!name->empty()) return print_example(*name);
    for (const ExampleFile& example : example_files())
      fmt::print("{:<14} {}\n", example.name, first_comment_line(example.text));
  });
}

}  // namespace orrery
