// `orrery completion bash|zsh|fish`: completion scripts made from the same tree of options that parses the command line.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "tools/commands.h"

namespace orrery {
namespace {

/// A command with what may follow it. Paths are words joined by single spaces, the program first.
struct CommandNode {
  std::string path;
  std::string description;
  std::vector<std::string> subcommands;
  struct Option {
    std::vector<std::string> names;  // with dashes
    std::string description;
    bool takes_value = false;
  };
  std::vector<Option> options;
};

void collect(const CLI::App& app, const std::string& path, std::vector<CommandNode>& nodes) {
  CommandNode node{.path = path, .description = app.get_description(), .subcommands = {}, .options = {}};
  for (const CLI::Option* option : app.get_options()) {
    CommandNode::Option entry{
        .names = {}, .description = option->get_description(), .takes_value = option->get_items_expected_max() > 0};
    for (const std::string& name : option->get_snames()) entry.names.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) entry.names.push_back("--" + name);
    if (!entry.names.empty()) node.options.push_back(std::move(entry));
  }
  const auto children = app.get_subcommands([](const CLI::App*) { return true; });
  for (const CLI::App* child : children) node.subcommands.push_back(child->get_name());
  nodes.push_back(std::move(node));
  for (const CLI::App* child : children) collect(*child, path + " " + child->get_name(), nodes);
}

std::string words_after(const CommandNode& node) {
  std::vector<std::string> words = node.subcommands;
  for (const auto& option : node.options) words.insert(words.end(), option.names.begin(), option.names.end());
  return fmt::format("{}", fmt::join(words, " "));
}

/// The text between single quotes of a shell.
std::string shell_quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text.substr(0, text.find('\n'))) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

/// Walks the words typed so far down the tree: a word that is a subcommand of the path becomes part of it.
std::string path_cases(const std::vector<CommandNode>& nodes) {
  std::string cases;
  for (const CommandNode& node : nodes)
    cases += fmt::format("      {}) choices={} ;;\n", shell_quoted(node.path), shell_quoted(words_after(node)));
  return cases;
}

std::string path_names(const std::vector<CommandNode>& nodes) {
  std::string names;
  for (size_t i = 1; i < nodes.size(); ++i) names += (i > 1 ? "|" : "") + shell_quoted(nodes[i].path);
  return names;
}

std::string bash_script(const std::vector<CommandNode>& nodes) {
  return fmt::format(
      R"(# bash completion for orrery; install: orrery completion bash > ~/.local/share/bash-completion/completions/orrery
_orrery() {{
  local path=orrery choices='' current="${{COMP_WORDS[COMP_CWORD]}}" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "$path ${{COMP_WORDS[i]}}" in
      {}) path="$path ${{COMP_WORDS[i]}}" ;;
    esac
  done
  case "$path" in
{}  esac
  COMPREPLY=($(compgen -W "$choices" -- "$current"))
  [[ $current == -* ]] || COMPREPLY+=($(compgen -f -- "$current"))
}}
complete -o filenames -F _orrery orrery
)",
      path_names(nodes), path_cases(nodes));
}

std::string zsh_script(const std::vector<CommandNode>& nodes) {
  return fmt::format(R"(#compdef orrery
# zsh completion for orrery; install: orrery completion zsh > "${{fpath[1]}}/_orrery"
_orrery() {{
  local path_words=orrery choices='' word
  for word in "${{(@)words[2,CURRENT-1]}}"; do
    case "$path_words $word" in
      {}) path_words="$path_words $word" ;;
    esac
  done
  case "$path_words" in
{}  esac
  compadd -- ${{=choices}}
  [[ $words[CURRENT] == -* ]] || _files
}}
compdef _orrery orrery
)",
                     path_names(nodes), path_cases(nodes));
}

std::string fish_script(const std::vector<CommandNode>& nodes) {
  std::string script =
      "# fish completion for orrery; install: orrery completion fish > ~/.config/fish/completions/orrery.fish\n";
  for (const CommandNode& node : nodes) {
    // The condition: all words of the path were seen, and for the program itself none.
    std::string condition = "__fish_use_subcommand";
    if (node.path != "orrery") {
      condition.clear();
      std::string rest = node.path.substr(std::string("orrery ").size());
      for (size_t begin = 0; begin <= rest.size();) {
        const size_t end = std::min(rest.find(' ', begin), rest.size());
        condition += (condition.empty() ? "" : "; and ") +
                     fmt::format("__fish_seen_subcommand_from {}", rest.substr(begin, end - begin));
        begin = end + 1;
      }
    }
    for (const CommandNode& child : nodes) {
      if (child.path.rfind(' ') == std::string::npos || child.path.substr(0, child.path.rfind(' ')) != node.path) continue;
      script += fmt::format("complete -c orrery -n {} -a {} -d {}\n", shell_quoted(condition),
                            child.path.substr(node.path.size() + 1), shell_quoted(child.description));
    }
    for (const auto& option : node.options) {
      script += fmt::format("complete -c orrery -n {}", shell_quoted(condition));
      for (const std::string& name : option.names)
        script += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
      script += fmt::format("{} -d {}\n", option.takes_value ? " -r" : "", shell_quoted(option.description));
    }
  }
  return script;
}

}  // namespace

void add_completion_command(CLI::App& app, int& exit_code) {
  auto shell = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("completion", "print a shell's completion script");
  command->add_option("shell", *shell, "bash, zsh or fish")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->footer("Example:\n  source <(orrery completion bash)\n");
  command->callback([&app, shell, &exit_code] {
    std::vector<CommandNode> nodes;
    collect(app, app.get_name(), nodes);
    const std::string script = *shell == "bash" ? bash_script(nodes) : *shell == "zsh" ? zsh_script(nodes) : fish_script(nodes);
    std::fwrite(script.data(), 1, script.size(), stdout);
    exit_code = 0;
  });
}

}  // namespace orrery
