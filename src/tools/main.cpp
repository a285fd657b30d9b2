// The program: registers the subcommands, parses the command line, runs one of them, and turns what went wrong into one message
// and an exit status. The commands themselves are in *_command.cpp; commands.h says how to add one.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <new>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "base/nearest_name.h"
#include "base/version.h"
#include "comm/discovery.h"
#include "tools/commands.h"

namespace orrery {
namespace {

constexpr int kUsageStatus = 2;

void add_all_commands(CLI::App& app, int& exit_code) {
#define ORRERY_ADD_COMMAND(name) add_##name##_command(app, exit_code);
  ORRERY_COMMANDS(ORRERY_ADD_COMMAND)
#undef ORRERY_ADD_COMMAND
}

/// `--log_every=2` means `--log-every=2`: the name only, never the value, and nothing behind a bare `--`.
std::vector<std::string> read_arguments(int argc, char** argv) {
  std::vector<std::string> arguments;
  bool options_ended = false;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    options_ended = options_ended || argument == "--";
    if (!options_ended && argument.starts_with("--")) {
      for (size_t k = 2; k < argument.size() && argument[k] != '='; ++k) {
        if (argument[k] == '_') argument[k] = '-';
      }
    }
    arguments.push_back(std::move(argument));
  }
  return arguments;
}

CLI::App* innermost_command(CLI::App& app) {
  CLI::App* command = &app;
  while (!command->get_subcommands().empty()) command = command->get_subcommands().back();
  return command;
}

std::string command_path(const CLI::App* command) {
  std::string path = command->get_name();
  for (const CLI::App* parent = command->get_parent(); parent != nullptr; parent = parent->get_parent()) {
    path = parent->get_name() + " " + path;
  }
  return path;
}

/// Long and short option names, with their dashes; the views point into `storage`.
std::vector<std::string_view> option_names(const CLI::App& command, std::vector<std::string>& storage) {
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) storage.push_back("--" + name);
    for (const std::string& name : option->get_snames()) storage.push_back("-" + name);
  }
  return {storage.begin(), storage.end()};
}

std::vector<std::string_view> subcommand_names(const CLI::App& command, std::vector<std::string>& storage) {
  for (const CLI::App* child : command.get_subcommands([](const CLI::App*) { return true; }))
    storage.push_back(child->get_name());
  return {storage.begin(), storage.end()};
}

/// "unknown option `--jsn` ...: did you mean `--json`?" for the first argument that nothing took; empty when all were taken.
std::string unknown_argument_message(CLI::App& app) {
  std::vector<std::string> extras = app.remaining(true);
  if (extras.empty()) return {};
  CLI::App* command = innermost_command(app);
  const std::string path = command_path(command);
  // A misspelt option is the cause; the words after it are its values.
  std::string word = extras.front();
  for (const std::string& extra : extras) {
    if (!extra.starts_with("-") || extra == "--") continue;
    word = extra;
    break;
  }
  const bool is_option = word.starts_with("-");
  word = is_option ? word.substr(0, word.find('=')) : word;
  std::vector<std::string> storage;
  const std::vector<std::string_view> names = is_option ? option_names(*command, storage) : subcommand_names(*command, storage);
  const bool expects_command = !is_option && !names.empty();
  const char* what = is_option ? "option" : expects_command ? "command" : "argument";
  std::string message = fmt::format("unknown {} `{}` for `{}`", what, word, path);
  if (const auto nearest = nearest_name(word, names)) message += fmt::format(": did you mean `{}`?", *nearest);
  return message + fmt::format("\nsee: {} --help", path);
}

int report_usage_error(CLI::App& app, const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
  if (!first_rank_of_host()) {  // all ranks of a host have one command line
    let_first_rank_speak();
    return kUsageStatus;
  }
  std::string message = unknown_argument_message(app);
  if (message.empty()) {
    CLI::App* command = innermost_command(app);
    if (!command->get_subcommands([](const CLI::App*) { return true; }).empty()) {
      std::fputs(command->help().c_str(), stderr);
      message = fmt::format("`{}` needs a command", command_path(command));
    } else {
      message = fmt::format("{}\nsee: {} --help", error.what(), command_path(command));
    }
  }
  fmt::print(stderr, "error: {}\n", message);
  return kUsageStatus;
}

/// A result that never reached the disk or the pipe is not a result.
int checked_flush(int exit_code) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return exit_code;
  fmt::print(stderr, "error: cannot write the result to standard output (disk full, or the reader is gone)\n");
  return exit_code == 0 ? exit_status(ErrorCode::kIo) : exit_code;
}

int run_program(int argc, char** argv) {
  int exit_code = 0;
  CLI::App app("Orrery trains and serves language models, and says before it starts where every byte and second will go.",
               "orrery");
  app.set_version_flag("--version", fmt::format("orrery {}", program_version()));
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  app.footer(
      "Exit status: 0 done, 2 configuration, 3 environment, 4 data, 5 peer lost, 130 interrupted.\n"
      "Start here:  orrery examples llama-11m > run.toml && orrery config show run.toml\n");
  add_all_commands(app, exit_code);
  try {
    std::vector<std::string> arguments = read_arguments(argc, argv);
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::ParseError& error) {
    exit_code = report_usage_error(app, error);
  } catch (const Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    exit_code = exit_status(error.code());
  } catch (const std::system_error& error) {
    // A folder that cannot be listed or renamed, a thread that the system refuses: the standard library's own text.
    fmt::print(stderr, "error: the system refused: {}\n", error.what());
    exit_code = exit_status(ErrorCode::kIo);
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "error: out of memory; give this process more, or use a smaller model, batch or data.seq_len\n");
    exit_code = exit_status(ErrorCode::kOutOfMemory);
  }
  return checked_flush(exit_code);
}

}  // namespace
}  // namespace orrery

int main(int argc, char** argv) { return orrery::run_program(argc, argv); }
