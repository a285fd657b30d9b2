// How a subcommand joins the program. One file per subcommand:
//
//   src/tools/<name>_command.cpp    defines   void add_<name>_command(CLI::App& app, int& exit_code)
//   the list below                  names it, in the order of `orrery --help`
//
// add_<name>_command makes the CLI11 subcommand, binds its options to a struct that the callback owns (shared_ptr), and sets the
// callback, which runs after the whole command line has been accepted:
//
//   void add_example_command(CLI::App& app, int& exit_code) {
//     struct Options { std::string path; bool json = false; };
//     auto options = std::make_shared<Options>();
//     CLI::App* command = app.add_subcommand("example", "one line, lower case: what it gives the user");
//     command->add_option("path", options->path, "what it is")->required();
//     command->add_flag("--json", options->json, "print JSON");
//     command->footer("Examples:\n  orrery example run.toml\n");
//     command->callback([options, &exit_code] { exit_code = run_example(options->path, options->json); });
//   }
//
// The result goes to stdout, everything else to stderr. A failure is a thrown Error: main prints it and turns its code into the
// exit status (2 configuration, 3 environment, 4 data, 5 peer lost, 130 interrupted). Option names are spelt with '-'; main
// accepts '_' too. A subcommand with subcommands of its own calls require_subcommand(1).
#pragma once

namespace CLI {
class App;
}

namespace orrery {

// clang-format off
#define ORRERY_COMMANDS(X) \
  X(plan) \
  X(train) \
  X(eval) \
  X(generate) \
  X(chat) \
  X(serve) \
  X(examples) \
  X(convert) \
  X(quantize) \
  X(checkpoint) \
  X(bench) \
  X(probe) \
  X(doctor) \
  X(simulate) \
  X(data) \
  X(config) \
  X(help) \
  X(completion)
// clang-format on

#define ORRERY_DECLARE_COMMAND(name) void add_##name##_command(CLI::App& app, int& exit_code);
ORRERY_COMMANDS(ORRERY_DECLARE_COMMAND)
#undef ORRERY_DECLARE_COMMAND

}  // namespace orrery
