// `orrery eval MODEL`: loss and perplexity on text, accuracy on multiple-choice questions.
#include <CLI/CLI.hpp>
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/stop_signals.h"
#include "data/data_builder.h"
#include "data/multiple_choice.h"
#include "data/tokenizer_encoder.h"
#include "tools/commands.h"
#include "tools/model_options.h"
#include "tools/number_checks.h"
#include "train/evaluator.h"
#include "train/run_setup.h"

namespace orrery {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string model, tokenizer, multiple_choice, dtype = "bf16";
  std::vector<std::string> data;
  int64_t seq_len = 0;
  int threads = 0;
  bool json = false;
};

// Shards of the text that is evaluated, gone when the command ends, by Ctrl-C too.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (fs::temp_directory_path() / "orrery-eval-XXXXXX").string();
    if (!mkdtemp(pattern.data())) throw_io_error(errno, "cannot make a folder in " + fs::temp_directory_path().string());
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// Positions behind the model's longest sequence have no row in its tables.
void check_seq_len(const ModelSource& source, int64_t seq_len) {
  if (seq_len >= 2 && seq_len <= source.config().max_seq_len) return;
  if (source.config().max_seq_len < 2) throw Error(ErrorCode::kInvalidArgument, "{} was made for sequences of one token: there is no next one whose loss could be taken", source.path());
  throw Error(ErrorCode::kInvalidArgument, "--seq-len {}: wanted 2 to {}, the longest sequence that {} was made for", seq_len, source.config().max_seq_len,
              source.path());
}

Evaluator make_evaluator(const ModelSource& source, const Options& options, int64_t seq_len, int64_t segments) {
  const auto dtype = parse_dtype(options.dtype);
  if (!dtype || (*dtype != DType::kBF16 && *dtype != DType::kF32)) throw Error(ErrorCode::kInvalidArgument, "--dtype {}: wanted bf16 or f32", options.dtype);
  check_seq_len(source, seq_len);
  EvaluatorOptions evaluator;
  evaluator.num_threads = options.threads;
  evaluator.compute_dtype = *dtype;
  evaluator.sequence_tokens = seq_len;
  evaluator.segments_per_sequence = segments;
  return Evaluator(source, evaluator);
}

// The held-out part of the run that `folder` holds.
std::unique_ptr<Dataset> run_validation(const std::string& folder) {
  const fs::path file = fs::path(folder) / "run.toml";
  if (!fs::exists(file)) throw Error(ErrorCode::kInvalidArgument, "{} is not a run folder with held-out data; name text with --data", folder);
  RunConfig config = load_run_config(file.string());
  config.checkpoint.dir = folder;
  config.parallel = {};  // of the ranks that trained; what is held out does not depend on them
  RunSetup setup = prepare_run(config, {.num_threads = 1}, [](std::string_view) {});
  if (!setup.validation) throw Error(ErrorCode::kInvalidArgument, "the run in {} holds nothing out (data.val_fraction, data.validation); name text with --data", folder);
  return std::move(setup.validation);
}

void progress_line(int64_t done, int64_t total) {
  if (isatty(STDERR_FILENO)) fmt::print(stderr, "\r{} of {} windows{}", done, total, done == total ? "\r\033[K" : "");
}

int evaluate_loss(const ModelSource& source, const Options& options, const TokenEncoder& encoder) {
  const int64_t seq_len = options.seq_len > 0 ? options.seq_len : std::min<int64_t>(source.config().max_seq_len, 2048);
  check_seq_len(source, seq_len);
  std::unique_ptr<Dataset> dataset;
  const StopSignals signals;
  const auto check_stop = [&] { throw_if_stopped([&] { return signals.requested() != 0; }, "the text was not evaluated"); };
  std::optional<TemporaryFolder> temporary;
  if (options.data.empty()) {
    dataset = run_validation(options.model);
  } else {
    temporary.emplace();
    PrepareOptions prepare;
    for (const std::string& path : options.data) prepare.train.push_back({path});
    prepare.cache_folder = temporary->path().string();
    const PreparedData prepared = prepare_data(prepare, encoder, [&](const BuildProgress&) {
      check_stop();
      return true;
    });
    Dataset::Options data_options;
    data_options.seq_len = static_cast<int>(seq_len);
    data_options.vocab_size = static_cast<uint32_t>(source.config().vocab_size);
    data_options.sequential = true;
    dataset = std::make_unique<Dataset>(prepared.train, data_options);
  }
  Evaluator evaluator = make_evaluator(source, options, dataset->seq_len(), dataset->max_segments_per_sample());
  const Evaluator::Loss loss = evaluator.evaluate(*dataset, [&](int64_t done, int64_t total) {
    check_stop();
    progress_line(done, total);
  });
  if (loss.num_tokens == 0) throw Error(ErrorCode::kInvalidArgument, "the text holds no token that follows another; there is nothing to score");
  if (options.json)
    fmt::print("{}\n", nlohmann::json{{"model", source.path()}, {"loss", loss.mean()}, {"perplexity", std::exp(loss.mean())}, {"tokens", loss.num_tokens}}.dump());
  else
    fmt::print("loss {:.4f}  perplexity {:.3f}  over {} tokens\n", loss.mean(), std::exp(loss.mean()), loss.num_tokens);
  return 0;
}

// The choice with the largest log-likelihood wins; acc_norm divides it by the choice's bytes.
int evaluate_choices(const ModelSource& source, const Options& options, const TokenEncoder& encoder) {
  const std::vector<TokenizedQuestion> questions = load_multiple_choice(options.multiple_choice, encoder);
  const int64_t seq_len = options.seq_len > 0 ? options.seq_len : std::min<int64_t>(source.config().max_seq_len, 512);
  Options one = options;
  Evaluator evaluator = make_evaluator(source, one, seq_len, 1);
  int64_t right = 0, right_normalized = 0;
  for (size_t q = 0; q < questions.size(); ++q) {
    const TokenizedQuestion& question = questions[q];
    size_t best = 0, best_normalized = 0;
    std::vector<double> scores;
    std::vector<int32_t> context = question.context_ids;
    if (context.empty()) throw Error(ErrorCode::kCorruptData, "{}: question {} has an empty context", options.multiple_choice, q + 1);
    for (size_t i = 0; i < question.choice_ids.size(); ++i) {
      scores.push_back(evaluator.log_likelihood(context, question.choice_ids[i]));
      const auto per_byte = [&](size_t k) { return scores[k] / std::max(1u, question.choice_bytes[k]); };
      if (scores[i] > scores[best]) best = i;
      if (per_byte(i) > per_byte(best_normalized)) best_normalized = i;
    }
    right += static_cast<int>(best) == question.answer;
    right_normalized += static_cast<int>(best_normalized) == question.answer;
    progress_line(static_cast<int64_t>(q) + 1, static_cast<int64_t>(questions.size()));
  }
  const auto count = static_cast<double>(questions.size());
  if (options.json)
    fmt::print("{}\n", nlohmann::json{{"model", source.path()}, {"questions", questions.size()}, {"acc", static_cast<double>(right) / count}, {"acc_norm", static_cast<double>(right_normalized) / count}}.dump());
  else
    fmt::print("acc {:.4f}  acc_norm {:.4f}  over {} questions\n", static_cast<double>(right) / count, static_cast<double>(right_normalized) / count, questions.size());
  return 0;
}

}  // namespace

void add_eval_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("eval", "loss and perplexity on text, or accuracy on multiple-choice questions");
  command->add_option("model", options->model, kModelHelp)->required();
  command->add_option("--data", options->data, "text, JSON lines or token shards; without it, the held-out part of a run folder");
  command->add_option("--multiple-choice", options->multiple_choice, "JSON lines of context, choices and answer")->excludes("--data");
  command->add_option("--tokenizer", options->tokenizer, "a tokenizer folder or file, when the model brings none");
  command->add_option("--seq-len", options->seq_len, "tokens of a window; 0 for the model's, at most 2048")->check(zero_or_more());
  command->add_option("--dtype", options->dtype, "bf16 or f32");
  command->add_option("--threads", options->threads, "compute threads; 0 for every core")->check(zero_or_more());
  command->add_flag("--json", options->json, "print JSON");
  command->footer("Examples:\n  orrery eval runs/first\n  orrery eval model.gguf --data book.txt --json\n  orrery eval runs/first --multiple-choice questions.jsonl\n");
  command->callback([options, &exit_code] {
    const ModelSource source = open_model(options->model);
    const TokenEncoder encoder = token_encoder(model_tokenizer(source, options->tokenizer));
    exit_code = options->multiple_choice.empty() ? evaluate_loss(source, *options, encoder) : evaluate_choices(source, *options, encoder);
  });
}

}  // namespace orrery
