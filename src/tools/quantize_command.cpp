// `orrery quantize MODEL [OUT] --to TYPE`: a model's matrices in blocks of 4 to 8 bits, as a .gguf file; with --check what that costs.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "base/stop_signals.h"
#include "base/thread_pool.h"
#include "base/units.h"
#include "checkpoint/model_source.h"
#include "compress/quantize_recipe.h"
#include "runtime/machine_facts.h"
#include "serve/model_comparison.h"
#include "tools/commands.h"
#include "tools/model_options.h"
#include "tools/number_checks.h"

namespace orrery {
namespace {

struct Options {
  std::string input, output, to, text;
  bool check = false, json = false;
  int threads = 0;
  int64_t tokens = 4096;
};

/// What one block type holds of the file, and how far its weights are from the source's.
struct TypeTotal {
  int64_t tensors = 0, elements = 0, bytes = 0;
  double error = 0, norm = 0;  // sums of squares
  double relative() const { return norm > 0 ? std::sqrt(error / norm) : 0; }
};

class WeightLoss {
 public:
  explicit WeightLoss(std::string path) : path_(std::move(path)) {}

  void add(const GgufSpec& spec, std::span<const float> values, std::span<const std::byte> encoded) {
    decoded_.resize(values.size());
    decode_blocks(spec.type, encoded.data(), static_cast<int64_t>(values.size()), decoded_.data());
    TypeTotal& total = totals_[block_type_info(spec.type).name];
    total.tensors += spec.name != last_;
    last_ = spec.name;
    total.elements += static_cast<int64_t>(values.size());
    total.bytes += static_cast<int64_t>(encoded.size());
    for (size_t i = 0; i < values.size(); ++i) {
      if (!std::isfinite(values[i])) throw Error(ErrorCode::kCorruptData, "{}: tensor {} holds a number that is not finite; there is no scale for its block", path_, spec.name);
      const double difference = static_cast<double>(values[i]) - decoded_[i];
      total.error += difference * difference;
      total.norm += static_cast<double>(values[i]) * values[i];
    }
  }
  const std::map<std::string_view, TypeTotal>& totals() const { return totals_; }

 private:
  std::string path_, last_;
  std::vector<float> decoded_;
  std::map<std::string_view, TypeTotal> totals_;
};

/// models/smol.gguf and q4_0: smol-q4_0.gguf.
std::string default_output(const Options& options) {
  std::filesystem::path input = options.input;
  if (!input.has_filename()) input = input.parent_path();
  const std::filesystem::path name = input.extension() == ".gguf" ? input.stem() : input.filename();
  return fmt::format("{}-{}.gguf", name.string(), options.to);
}

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (text.empty()) throw Error(ErrorCode::kCorruptData, "{}: no text can be read there", path);
  return text;
}

/// What --check reads.
struct CheckText {
  std::vector<int32_t> ids;
  int32_t bos = -1;
};

CheckText check_text(const ModelSource& source, const Options& options) {
  if (options.tokens < 1) throw Error(ErrorCode::kInvalidArgument, "--tokens {}: wanted at least 1", options.tokens);
  const std::string words = options.text.empty() ? "" : read_text(options.text);
  const Tokenizer tokenizer = model_tokenizer(source);
  // The model's own text carries its beginnings.
  if (words.empty()) return {sample_own_text(source, tokenizer.bos_id() >= 0 ? tokenizer.bos_id() : std::max(0, tokenizer.eos_id()), options.tokens, 1, {options.threads}), -1};
  CheckText text{tokenizer.encode(words), -1};
  if (static_cast<int64_t>(text.ids.size()) > options.tokens) text.ids.resize(static_cast<size_t>(options.tokens));
  const auto begun = tokenizer.encode("a", {.add_special = true});
  if (!begun.empty() && begun.front() == tokenizer.bos_id()) text.bos = tokenizer.bos_id();
  return text;
}

nlohmann::ordered_json report_json(const Options& options, const WeightLoss& loss, const ModelComparison* cost) {
  nlohmann::ordered_json report = {{"model", options.input}, {"output", options.output}, {"types", nlohmann::ordered_json::object()}};
  for (const auto& [name, total] : loss.totals())
    report["types"][std::string(name)] = {{"tensors", total.tensors}, {"elements", total.elements}, {"bytes", total.bytes}, {"relative_error", total.relative()}};
  if (cost)
    report["check"] = {{"tokens", cost->num_tokens}, {"loss", cost->reference_loss}, {"quantized_loss", cost->candidate_loss}, {"divergence", cost->divergence}, {"same_top", cost->same_top}};
  return report;
}

int run_quantize(const Options& options) {
  const QuantizeRecipe recipe = *find_quantize_recipe(options.to);
  const ModelSource source = open_model(options.input);
  for (const SkippedCheckpoint& skipped : source.skipped()) fmt::print(stderr, "skipped {}: {}\n", skipped.path, skipped.reason);
  for (const SourceTensor& tensor : source.tensors()) {
    if (!tensor.blocks) continue;
    fmt::print(stderr, "note: {} is quantized already ({}); what was lost then is not counted\n", source.path(), tensor.type_name);
    break;
  }
  if (path_exists(options.output)) throw Error(ErrorCode::kInvalidArgument, "{}: it exists; give a new name", options.output);
  const CheckText text = options.check ? check_text(source, options) : CheckText{};
  WeightLoss loss(source.path());
  ThreadPool pool(options.threads > 0 ? options.threads : usable_cores());
  GgufWriteOptions write;
  write.type_of = [&](const GgufTensorMapping& mapping, int64_t columns) { return tensor_type(recipe, source.config(), mapping.tensor, columns); };
  write.file_type = recipe.file_type;
  write.pool = &pool;
  write.on_piece = [&](const GgufSpec& spec, std::span<const float> values, std::span<const std::byte> encoded) { loss.add(spec, values, encoded); };
  {
    const StopSignals signals;
    write.stop_requested = [&] { return signals.requested() != 0; };
    write_gguf(source, options.output, write);
  }
  for (const auto& [name, total] : loss.totals())
    fmt::print(stderr, "{:<5} {:>4} tensors {:>9} weights {:>10}  relative error {:.4f}\n", name, total.tensors, format_count(static_cast<double>(total.elements)),
               format_bytes(static_cast<double>(total.bytes)), total.relative());
  std::optional<ModelComparison> cost;
  if (options.check) {
    cost = compare_models(source, open_model(options.output), text.ids, text.bos, {options.threads});
    fmt::print(stderr, "loss {:.4f} -> {:.4f} ({:+.2f} % perplexity), divergence {:.4f}, same first choice {:.1f} %, over {} tokens of {}\n", cost->reference_loss,
               cost->candidate_loss, 100 * std::expm1(cost->candidate_loss - cost->reference_loss), cost->divergence, 100 * cost->same_top, cost->num_tokens,
               options.text.empty() ? "the model's own text" : options.text);
  }
  fmt::print(stderr, "wrote {}\nnext:  orrery serve {}\n", options.output, options.output);
  if (options.json)
    fmt::print("{}\n", report_json(options, loss, cost ? &*cost : nullptr).dump());
  else
    fmt::print("{}\n", options.output);
  return 0;
}

}  // namespace

void add_quantize_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("quantize", "write a model's weights in 4 to 8 bits, as a .gguf file");
  command->add_option("in", options->input, kModelHelp)->required();
  command->add_option("out", options->output, "the .gguf file to make; it must not exist; without it MODEL's name and the type, in this folder");
  command->add_option("--to", options->to, "the type, or mixture of types: " + CLI::detail::join(quantize_recipe_names()))->required()->check(CLI::IsMember(quantize_recipe_names()));
  command->add_flag("--check", options->check, "measure what it costs: loss, divergence and agreement of both forms");
  command->add_option("--text", options->text, "what --check reads; without it the model writes a text itself");
  command->add_option("--tokens", options->tokens, "how many tokens --check reads")->capture_default_str();
  command->add_option("--threads", options->threads, "threads; 0: every core")->check(zero_or_more());
  command->add_flag("--json", options->json, "print sizes, errors and the check as JSON");
  command->footer("Examples:\n  orrery quantize runs/first first.gguf --to q4_k_m --check\n  orrery quantize my-model my-model.gguf --to q8_0 --check --text book.txt\n");
  command->callback([options, &exit_code] {
    if (options->output.empty()) options->output = default_output(*options);
    exit_code = run_quantize(*options);
  });
}

}  // namespace orrery
