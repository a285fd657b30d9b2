// `orrery data build | tokenizer | inspect`: from files of text to a folder of token shards, and a look into one.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/stop_signals.h"
#include "data/data_builder.h"
#include "data/input_stream.h"
#include "data/token_file.h"
#include "data/tokenizer_encoder.h"
#include "tokenizer/tokenizer.h"
#include "tools/commands.h"
#include "tools/number_checks.h"

namespace orrery {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr double kBytesPerMb = 1e6;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// A line that is rewritten in place, on a terminal only; and Ctrl-C, which ends what it tells of.
class ProgressLine {
 public:
  BuildCallback callback() {
    return [this](const BuildProgress& progress) {
      if (signals_.requested() != 0) return false;
      if (!is_terminal_ || seconds_since(shown_) < 0.2) return true;
      shown_ = Clock::now();
      const double seconds = seconds_since(begin_);
      fmt::print(stderr, "\r\x1b[K{:3.0f} %  {} documents, {} tokens, {:.1f} MB of text, {:.1f} MB/s",
                 100.0 * static_cast<double>(progress.input_bytes) /
                     static_cast<double>(std::max<uint64_t>(progress.input_bytes_total, 1)),
                 progress.documents, progress.tokens, static_cast<double>(progress.text_bytes) / kBytesPerMb,
                 static_cast<double>(progress.text_bytes) / kBytesPerMb / seconds);
      std::fflush(stderr);
      return true;
    };
  }
  ~ProgressLine() {
    if (is_terminal_) fmt::print(stderr, "\r\x1b[K");
  }
  double seconds() const { return seconds_since(begin_); }

 private:
  StopSignals signals_;
  bool is_terminal_ = ::isatty(STDERR_FILENO) != 0;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point shown_ = begin_;
};

struct BuildCommand {
  BuildOptions build;
  std::string tokenizer_path;
  std::string chat_format = "auto";
  bool json = false;
};

Json split_json(const SplitSummary& split) {
  return {{"shards", split.shards},
          {"tokens", split.tokens},
          {"documents", split.documents},
          {"masked_tokens", split.masked_tokens}};
}

std::string split_line(const char* name, const SplitSummary& split) {
  std::string line = fmt::format("{:<11} {} tokens in {} document{}, {} shard{}", name, split.tokens, split.documents,
                                 split.documents == 1 ? "" : "s", split.shards.size(), split.shards.size() == 1 ? "" : "s");
  if (split.masked_tokens > 0) line += fmt::format("; the loss is on {} tokens", split.tokens - split.masked_tokens);
  return line;
}

int run_build(const BuildCommand& command) {
  const Tokenizer tokenizer = load_tokenizer(command.tokenizer_path);
  BuildOptions options = command.build;
  options.chat_renderer = chat_renderer(tokenizer, command.chat_format);
  options.add_files = [&](const std::string& folder) { save_tokenizer_json(tokenizer, folder); };
  BuildResult result;
  double seconds = 0;
  {
    ProgressLine progress;
    result = build_data(options, token_encoder(tokenizer), progress.callback());
    seconds = progress.seconds();
  }
  const DataManifest& manifest = result.manifest;
  if (command.json) {
    const Json json{{"folder", options.output_folder},
                    {"up_to_date", result.was_up_to_date},
                    {"inputs_hash", manifest.inputs_hash},
                    {"tokenizer_hash", manifest.tokenizer_hash},
                    {"inputs", manifest.inputs},
                    {"text_bytes", result.totals.text_bytes},
                    {"seconds", seconds},
                    {"train", split_json(manifest.train)},
                    {"validation", split_json(manifest.validation)}};
    fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
    return 0;
  }
  constexpr size_t kInputsShown = 5;
  for (size_t i = 0; i < std::min(manifest.inputs.size(), kInputsShown); ++i)
    fmt::print("read        {}\n", manifest.inputs[i]);
  if (manifest.inputs.size() > kInputsShown)
    fmt::print("            and {} more files\n", manifest.inputs.size() - kInputsShown);
  fmt::print("{}\n", split_line("train", manifest.train));
  if (manifest.validation.tokens > 0) fmt::print("{}\n", split_line("validation", manifest.validation));
  if (result.was_up_to_date)
    fmt::print("{} is up to date: same inputs, tokenizer and options; nothing was written\n", options.output_folder);
  else if (result.totals.text_bytes == 0)
    fmt::print("{} written in {:.1f} s from tokens\n", options.output_folder, seconds);
  else
    fmt::print(
        "{} written in {:.1f} s: {:.1f} MB of text, {:.1f} MB/s, {:.2f} bytes a token\n", options.output_folder, seconds,
        static_cast<double>(result.totals.text_bytes) / kBytesPerMb,
        static_cast<double>(result.totals.text_bytes) / kBytesPerMb / seconds,
        static_cast<double>(result.totals.text_bytes) / static_cast<double>(std::max<uint64_t>(result.totals.tokens, 1)));
  return 0;
}

void add_build(CLI::App& parent, int& exit_code) {
  auto command = std::make_shared<BuildCommand>();
  BuildOptions& build = command->build;
  CLI::App* app = parent.add_subcommand("build", "tokenize text into a folder of shards");
  app->add_option("inputs", build.inputs, "globs, files or folders: .txt, .jsonl, each also .gz or .zst; Megatron .bin; shards")
      ->required();
  app->add_option("-o,--output", build.output_folder, "the folder to make")->required();
  app->add_option("-t,--tokenizer", command->tokenizer_path, "tokenizer folder or file")->required();
  app->add_option("--val-fraction", build.val_fraction, "share of the documents to hold out")->capture_default_str();
  app->add_option("--seed", build.seed, "of the choice of documents to hold out")->capture_default_str();
  app->add_option("--max-document-bytes", build.max_document_bytes, "cut longer text documents at an empty line; 0: never")
      ->capture_default_str();
  app->add_option("--shard-tokens", build.shard_tokens_max, "start a new shard beyond this many tokens")
      ->check(above_zero())
      ->capture_default_str();
  app->add_option("--threads", build.num_threads, "1 or 2; the result is the same")
      ->check(CLI::Range(1, 2))
      ->capture_default_str();
  app->add_option("--chat-format", command->chat_format, "how chats become text: auto or chatml")->capture_default_str();
  app->add_flag("--json", command->json, "print JSON");
  app->footer(
      "Examples:\n  orrery data build 'corpus/*.txt' -o shards -t tokenizer --val-fraction 0.05\n"
      "  orrery data build chats.jsonl.zst -o shards/chats -t model\n");
  app->callback([command, &exit_code] { exit_code = run_build(*command); });
}

struct TokenizerCommand {
  TrainTokenizerOptions train;
  std::string output;
  bool json = false;
};

int run_tokenizer(const TokenizerCommand& command) {
  if (std::filesystem::exists(std::filesystem::path(command.output) / "tokenizer.json"))
    throw Error(ErrorCode::kInvalidArgument, "{}/tokenizer.json exists; remove it or name another folder", command.output);
  const Clock::time_point begin = Clock::now();
  // Both files are there or neither: a signal that comes while they are written comes too late.
  const StopSignals signals;
  TrainTokenizerOptions train = command.train;
  train.stop_requested = [&] { return signals.requested() != 0; };
  const Tokenizer tokenizer = train_tokenizer(train);
  std::error_code error;
  std::filesystem::create_directories(command.output, error);
  if (error) throw_io_error(error.value(), fmt::format("cannot create {}", command.output));
  save_tokenizer_json(tokenizer, command.output);
  const double seconds = seconds_since(begin);
  if (command.json)
    fmt::print("{}\n", Json{{"folder", command.output},
                            {"vocab_size", tokenizer.vocab_size()},
                            {"hash", tokenizer.content_hash()},
                            {"seconds", seconds}}
                           .dump(2));
  else
    fmt::print("{} written in {:.1f} s: {} tokens\n", command.output, seconds, tokenizer.vocab_size());
  if (!command.json && tokenizer.vocab_size() < command.train.vocab_size)
    fmt::print(stderr, "fewer than the {} asked for: the text has no more pairs that repeat\n", command.train.vocab_size);
  return 0;
}

void add_tokenizer(CLI::App& parent, int& exit_code) {
  auto command = std::make_shared<TokenizerCommand>();
  CLI::App* app = parent.add_subcommand("tokenizer", "train a byte-level BPE tokenizer");
  app->add_option("inputs", command->train.inputs, "globs, files or folders of text")->required();
  app->add_option("-o,--output", command->output, "the folder for tokenizer.json")->required();
  app->add_option("--vocab-size", command->train.vocab_size, "entries, special tokens and bytes included")
      ->capture_default_str();
  app->add_option("--pattern", command->train.pattern,
                  "how text is cut into words: gpt2, cl100k, o200k, llama3, qwen2, tekken, digits+gpt2")
      ->capture_default_str();
  app->add_option("--max-bytes", command->train.text_bytes_max, "read no more text than this")->capture_default_str();
  app->add_option("--threads", command->train.num_threads, "threads")->check(CLI::Range(1, 256))->capture_default_str();
  app->add_flag("--json", command->json, "print JSON");
  app->footer("Examples:\n  orrery data tokenizer 'corpus/*.txt' -o tokenizer --vocab-size 4096\n");
  app->callback([command, &exit_code] { exit_code = run_tokenizer(*command); });
}

struct InspectCommand {
  std::string path;
  std::string tokenizer_path;
  int num_documents = 0;
  bool verify = false;
  bool json = false;
};

std::vector<std::string> files_of(const std::string& path) {
  if (!std::filesystem::is_directory(path)) return {path};
  std::vector<std::string> files;
  const DataManifest manifest = load_manifest(path);
  for (const SplitSummary* split : {&manifest.train, &manifest.validation})
    for (const std::string& shard : split->shards) files.push_back(path + "/" + shard);
  return files;
}

// The first documents, cut to a few lines; without a tokenizer as ids.
void print_documents(const TokenFile& file, const std::optional<Tokenizer>& tokenizer, int count) {
  constexpr uint64_t kTokensShown = 120;
  for (uint64_t d = 0; d < std::min<uint64_t>(static_cast<uint64_t>(count), file.num_documents()); ++d) {
    const uint64_t begin = file.document_offsets()[d], size = file.document_offsets()[d + 1] - begin;
    std::vector<int32_t> ids(std::min(size, kTokensShown));
    file.read_tokens(begin, ids.size(), ids.data());
    fmt::print("--- document {}: {} tokens\n{}{}\n", d, size,
               tokenizer ? tokenizer->decode(ids) : fmt::format("{}", fmt::join(ids, " ")), size > ids.size() ? " ..." : "");
  }
}

int run_inspect(const InspectCommand& command) {
  std::optional<Tokenizer> tokenizer;
  if (!command.tokenizer_path.empty())
    tokenizer = load_tokenizer(command.tokenizer_path);
  else if (command.num_documents > 0 && std::filesystem::exists(std::filesystem::path(command.path) / "tokenizer.json"))
    tokenizer = load_tokenizer(command.path);
  Json list = Json::array();
  for (const std::string& path : files_of(command.path)) {
    const auto file = TokenFile::open(path);
    if (command.verify) file->verify_all();
    if (command.json) {
      Json json{{"file", path},
                {"tokens", file->num_tokens()},
                {"documents", file->num_documents()},
                {"token_bytes", file->token_bytes()},
                {"has_mask", file->has_mask()},
                {"content_hash", file->content_hash().hex()},
                {"verified", command.verify}};
      if (file->max_token_id()) json["max_token_id"] = *file->max_token_id();
      if (file->vocab_size()) json["vocab_size"] = *file->vocab_size();
      if (file->tokenizer_hash()) json["tokenizer_hash"] = file->tokenizer_hash()->hex();
      list.push_back(std::move(json));
      continue;
    }
    fmt::print(
        "{}: {} tokens of {} bytes in {} documents{}{}{}\n", path, file->num_tokens(), file->token_bytes(),
        file->num_documents(),
        file->vocab_size() ? fmt::format(", vocabulary {}, largest id {}", *file->vocab_size(), *file->max_token_id()) : "",
        file->has_mask() ? ", with a loss mask" : "", command.verify ? ", verified" : "");
    print_documents(*file, tokenizer, command.num_documents);
  }
  if (command.json) fmt::print("{}\n", list.dump(2, ' ', false, Json::error_handler_t::replace));
  return 0;
}

void add_inspect(CLI::App& parent, int& exit_code) {
  auto command = std::make_shared<InspectCommand>();
  CLI::App* app = parent.add_subcommand("inspect", "what a folder of shards or a token file holds");
  app->add_option("path", command->path, "folder of shards, .orrtok, or Megatron .bin")->required();
  app->add_option("--documents", command->num_documents, "print the first N documents of each file")
      ->check(zero_or_more());
  app->add_option("-t,--tokenizer", command->tokenizer_path, "to print text; default: the one in the folder");
  app->add_flag("--verify", command->verify, "read everything and check every block");
  app->add_flag("--json", command->json, "print JSON");
  app->footer("Examples:\n  orrery data inspect shards --documents 2\n  orrery data inspect shards --verify --json\n");
  app->callback([command, &exit_code] { exit_code = run_inspect(*command); });
}

}  // namespace

void add_data_command(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("data", "train a tokenizer, build token shards, look into them");
  command->require_subcommand(1);
  add_build(*command, exit_code);
  add_tokenizer(*command, exit_code);
  add_inspect(*command, exit_code);
}

}  // namespace orrery
