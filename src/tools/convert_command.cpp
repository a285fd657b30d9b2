// `orrery convert IN OUT`: a run, a checkpoint, a Hugging Face folder or a .gguf file as a Hugging Face folder or a .gguf file.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/stop_signals.h"
#include "base/units.h"
#include "checkpoint/model_source.h"
#include "tools/commands.h"

namespace orrery {
namespace {

struct Options {
  std::string input, output, to, type;
};

/// Empty `to`: the suffix of the output decides.
bool wants_gguf(const Options& options) {
  return options.to.empty() ? options.output.ends_with(".gguf") : options.to == "gguf";
}

/// The type that every tensor of the source has, if there is one that can be written as it is.
std::optional<DType> common_dtype(const ModelSource& source) {
  std::optional<DType> common;
  for (const SourceTensor& tensor : source.tensors()) {
    if (tensor.shape.size() < 2) continue;  // vectors are often kept in f32
    if (!tensor.dtype || (common && *common != *tensor.dtype)) return std::nullopt;
    common = tensor.dtype;
  }
  return common;
}

BlockType gguf_type(const std::string& type, const ModelSource& source) {
  if (type == "q8_0") return BlockType::kQ8_0;
  const DType dtype = !type.empty() ? *parse_dtype(type) : common_dtype(source).value_or(DType::kBF16);
  return dtype == DType::kF32 ? BlockType::kF32 : dtype == DType::kF16 ? BlockType::kF16 : BlockType::kBF16;
}

int run_convert(const Options& options) {
  const bool gguf = wants_gguf(options);
  if (!gguf && options.type == "q8_0") {
    throw Error(ErrorCode::kInvalidArgument,
                "a Hugging Face folder is written in f32, bf16 or f16, not q8_0; use --to gguf, or another --dtype");
  }
  const ModelSource source = open_model(options.input);
  for (const SkippedCheckpoint& skipped : source.skipped())
    fmt::print(stderr, "skipped {}: {}\n", skipped.path, skipped.reason);
  fmt::print(stderr, "{}: {}, {} parameters\n", source.path(), model_family_name(source.config().family),
             format_count(static_cast<double>(num_parameters(source.config()))));
  const StopSignals signals;
  const StopRequested stop_requested = [&] { return signals.requested() != 0; };
  if (gguf) {
    const BlockType type = gguf_type(options.type, source);
    write_gguf(source, options.output, type, stop_requested);
    fmt::print(stderr, "wrote {} in {}\nnext:  orrery generate {} --prompt \"...\"\n", options.output, block_type_name(type),
               options.output);
    if (source.config().sliding_window != 0) {
      // Seen: scripts/compare_exports.py. The key is in the file, and Orrery reads it.
      fmt::print(stderr, "note: llama.cpp has no sliding window for this architecture; beyond {} tokens it answers as if every token saw all before it\n",
                 source.config().sliding_window);
    }
  } else {
    HfFolderOptions folder;
    folder.stop_requested = stop_requested;
    if (!options.type.empty()) folder.dtype = parse_dtype(options.type);
    write_hf_folder(source, options.output, folder);
    fmt::print(stderr, "wrote {}\nnext:  orrery generate {} --prompt \"...\"\n", options.output, options.output);
  }
  fmt::print("{}\n", options.output);
  return 0;
}

}  // namespace

void add_convert_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("convert", "write a model as a Hugging Face folder or a .gguf file");
  command->add_option("in", options->input, "a run, a checkpoint, a Hugging Face folder or a .gguf file")->required();
  command->add_option("out", options->output, "the folder or file to make; it must not exist")->required();
  command->add_option("--to", options->to, "hf or gguf; without it the suffix of OUT decides")
      ->check(CLI::IsMember({"hf", "gguf"}));
  command->add_option("--dtype", options->type, "of the weights: f32, bf16, f16, or q8_0 (gguf); without it the source's own")
      ->check(CLI::IsMember({"f32", "bf16", "f16", "q8_0"}));
  command->footer(
      "Examples:\n  orrery convert runs/first first-hf --to hf\n  orrery convert first-hf first.gguf --dtype q8_0\n");
  command->callback([options, &exit_code] { exit_code = run_convert(*options); });
}

}  // namespace orrery
