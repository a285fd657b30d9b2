// `orrery help WORD`: a key of run.toml, a section, or a command; and a search through all of them.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/nearest_name.h"
#include "tools/commands.h"
#include "train/run_config.h"

namespace orrery {
namespace {

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

void print_key(const KeyInfo& key) {
  fmt::print("[{}] {}\n  {}\n  {}\n", key.section, key.name, key.options.help, key.type_text());
  if (!key.options.requires_feature.empty())
    fmt::print("  needs {}; only the default is accepted\n", key.options.requires_feature);
  if (!key.options.also_called.empty()) fmt::print("  elsewhere called {}\n", fmt::join(key.options.also_called, ", "));
}

bool is_named(const KeyInfo& key, const std::string& word) {
  const auto& others = key.options.also_called;
  return key.name == word || key.path() == word || std::find(others.begin(), others.end(), word) != others.end();
}

void print_section(const std::string& section) {
  fmt::print("[{}]\n", section);
  for (const KeyInfo& key : run_schema().keys()) {
    if (key.section == section) fmt::print("  {:<26} {}\n", key.name, key.options.help);
  }
}

[[noreturn]] void unknown_word(const CLI::App& app, const std::string& word) {
  std::vector<std::string> storage;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    storage.push_back(command->get_name());
  for (const KeyInfo& key : run_schema().keys()) storage.push_back(key.name);
  const std::vector<std::string_view> names(storage.begin(), storage.end());
  const auto nearest = nearest_name(word, names);
  throw Error(ErrorCode::kInvalidArgument, "nothing is called `{}`{}\nkeys: orrery help; commands: orrery --help", word,
              nearest ? fmt::format(": did you mean `{}`?", *nearest) : "");
}

void explain(const CLI::App& app, const std::string& word) {
  bool found = false;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (command->get_name() != word) continue;
    fmt::print("{}", command->help(app.get_name()));
    found = true;
  }
  for (const std::string& section : run_schema().sections()) {
    if (section == word || "[" + section + "]" == word) print_section(section), found = true;
  }
  for (const KeyInfo& key : run_schema().keys()) {
    if (is_named(key, word)) print_key(key), found = true;
  }
  if (found) return;
  for (const KeyInfo& key : run_schema().keys()) {
    const std::string text = lower(key.path() + " " + std::string(key.options.help));
    if (word.size() >= 3 && text.find(lower(word)) != std::string::npos) print_key(key), found = true;
  }
  if (!found) unknown_word(app, word);
}

}  // namespace

void add_help_command(CLI::App& app, int& exit_code) {
  auto word = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("help", "explain a key of run.toml, a section or a command; search by any word");
  command->add_option("word", *word, "the name or a word of its description; without it, all keys");
  command->footer("Examples:\n  orrery help num_heads\n  orrery help optimizer\n  orrery help warm\n");
  command->callback([&app, word, &exit_code] {
    exit_code = 0;
    if (!word->empty()) return explain(app, *word);
    for (const std::string& section : run_schema().sections()) print_section(section);
  });
}

}  // namespace orrery
