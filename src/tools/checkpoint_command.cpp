// `orrery checkpoint list|verify|hash`: what a run has saved, whether every byte of it is still there, and its digest.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "base/units.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/model_source.h"
#include "tools/commands.h"

namespace orrery {
namespace {

struct Options {
  std::string path, as;
  bool json = false, state = false;
};

std::vector<std::string> checkpoints_of(const std::string& path) {
  if (is_checkpoint(path)) return {path};
  std::vector<std::string> checkpoints = list_checkpoints(path);
  if (checkpoints.empty()) {
    const char* what = !path_exists(path) ? "it does not exist" : is_directory(path) ? "the folder holds none" : "it is a file";
    throw Error(ErrorCode::kCorruptData,
                "wanted a run's folder or a checkpoint at {}: {}; a checkpoint is a folder step-... with a manifest.json", path,
                what);
  }
  return checkpoints;
}

uint64_t total_bytes(const Manifest& manifest) {
  uint64_t sum = 0;
  for (const ManifestFile& file : manifest.files) sum += file.bytes;
  return sum;
}

nlohmann::ordered_json to_json(const std::string& path, const Manifest& manifest) {
  return {{"path", path},
          {"step", manifest.step},
          {"bytes", total_bytes(manifest)},
          {"digest", manifest.digest},
          {"state_digest", manifest.state_digest}};
}

int run_list(const Options& options) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const std::string& path : checkpoints_of(options.path)) {
    try {
      const Manifest manifest = manifest_from_text(read_small_file(join_path(path, "manifest.json"), kMaxManifestBytes), path);
      rows.push_back(to_json(path, manifest));
      if (!options.json)
        fmt::print("{}  step {}  {}  {}\n", path, manifest.step, format_bytes(static_cast<double>(total_bytes(manifest))),
                   manifest.digest);
    } catch (const Error& error) {
      rows.push_back({{"path", path}, {"error", error.what()}});
      if (!options.json) fmt::print("{}  not whole: {}\n", path, error.what());
    }
  }
  if (options.json) fmt::print("{}\n", rows.dump(2));
  return 0;
}

/// All are verified, also behind a damaged one; one that is damaged makes the status that of corrupt data.
int run_verify(const Options& options) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  int status = 0;
  for (const std::string& path : checkpoints_of(options.path)) {
    try {
      const Manifest manifest = verify_checkpoint(path);
      rows.push_back(to_json(path, manifest));
      if (!options.json)
        fmt::print("{}  ok  {} in {} files\n", path, format_bytes(static_cast<double>(total_bytes(manifest))),
                   manifest.files.size());
    } catch (const Error& error) {
      status = exit_status(error.code());
      rows.push_back({{"path", path}, {"error", error.what()}});
      if (!options.json) fmt::print("{}  DAMAGED: {}\n", path, error.what());
    }
  }
  if (options.json) fmt::print("{}\n", rows.dump(2));
  return status;
}

/// Of the weights of any model; with --state of a checkpoint, or of the newest of a run that verifies. All bytes are read and
/// verified: a digest of damaged data is none.
int run_hash(const Options& options) {
  const ModelSource source = open_model(options.path);
  for (const SkippedCheckpoint& skipped : source.skipped())
    fmt::print(stderr, "skipped {}: {}\n", skipped.path, skipped.reason);
  if (!options.state) {
    fmt::print("{}\n", model_digest(source, options.as.empty() ? std::nullopt : parse_dtype(options.as)));
    return 0;
  }
  if (source.form() != ModelForm::kCheckpoint) {
    throw Error(ErrorCode::kInvalidArgument, "{} holds weights only; --state needs a checkpoint or a run", options.path);
  }
  if (!options.as.empty())
    throw Error(ErrorCode::kInvalidArgument, "--state and --as exclude each other: the state has types of its own");
  fmt::print("{}\n", verify_checkpoint(source.path()).state_digest);
  return 0;
}

}  // namespace

void add_checkpoint_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("checkpoint", "list, verify and hash what a run has saved");
  command->require_subcommand(1);
  CLI::App* list = command->add_subcommand("list", "the checkpoints of a run, newest first");
  CLI::App* verify = command->add_subcommand("verify", "read every byte and compare it with its checksum");
  CLI::App* hash = command->add_subcommand("hash", "one digest of the logical weights, the same for every layout");
  for (CLI::App* child : {list, verify}) {
    child->add_option("path", options->path, "a run's folder or a checkpoint")->required();
  }
  hash->add_option("path", options->path, "a run, a checkpoint, a Hugging Face folder or a .gguf file")->required();
  hash->add_option("--as", options->as, "convert the weights first, to compare files of different types: bf16, f32, f16")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  for (CLI::App* child : {list, verify}) child->add_flag("--json", options->json, "print JSON");
  hash->add_flag("--state", options->state, "with the moments, the step and the data position");
  command->footer(
      "Examples:\n  orrery checkpoint list runs/first\n  orrery checkpoint verify runs/first\n  orrery checkpoint hash --state "
      "runs/first\n");
  list->callback([options, &exit_code] { exit_code = run_list(*options); });
  verify->callback([options, &exit_code] { exit_code = run_verify(*options); });
  hash->callback([options, &exit_code] { exit_code = run_hash(*options); });
}

}  // namespace orrery
