// `orrery generate MODEL --prompt TEXT` and `orrery chat MODEL`: text from a model, streamed to the terminal.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "serve/chat/chat_template.h"
#include "serve/generator.h"
#include "serve/sampling/sampler.h"
#include "tools/commands.h"
#include "tools/model_options.h"
#include "tools/number_checks.h"

namespace orrery {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string model, tokenizer, prompt, system;
  int64_t max_tokens = 256, max_context = 0;
  std::string dtype = "bf16";
  int threads = 0;
  SamplingOptions sampling;
  bool timing = false;
};

void add_shared_options(CLI::App* command, Options* options) {
  command->add_option("model", options->model, kModelHelp)->required();
  command->add_option("--tokenizer", options->tokenizer, "a tokenizer folder or file, when the model brings none");
  command->add_option("--max-tokens", options->max_tokens, "most tokens of an answer")->check(above_zero());
  command->add_option("--max-context", options->max_context, "tokens of prompt and answers that fit; 0 for the model's own")->check(zero_or_more());
  command->add_option("--temperature", options->sampling.temperature, "0 takes the most likely token")->check(zero_or_more());
  command->add_option("--top-k", options->sampling.top_k, "draw from the k most likely; 0 for all")->check(zero_or_more());
  command->add_option("--top-p", options->sampling.top_p, "then from the fewest that hold this probability")->check(from_zero_to_one());
  command->add_option("--seed", options->sampling.seed, "the same seed gives the same text");
  command->add_option("--dtype", options->dtype, "what weights and activations are computed in; f32 is slower and more exact")
      ->check(CLI::IsMember({"bf16", "f32"}));
  command->add_option("--threads", options->threads, "compute threads; 0 for every core")->check(zero_or_more());
  command->add_flag("--timing", options->timing, "print tokens per second and where the time went to stderr");
}

// One model being talked to: appends ids, draws until an end token, streams text.
class Conversation {
 public:
  explicit Conversation(const Options& options)
      : options_(options),
        source_(open_model(options.model)),
        tokenizer_(model_tokenizer(source_, options.tokenizer)),
        generator_(source_, {.num_threads = options.threads, .max_context = options.max_context, .compute_dtype = *parse_dtype(options.dtype)}),
        sampler_(options.sampling),
        ends_(end_tokens(source_, tokenizer_)) {
    for (const SkippedCheckpoint& skipped : source_.skipped()) fmt::print(stderr, "skipped   {}: {}\n", skipped.path, skipped.reason);
    if (tokenizer_.vocab_size() > source_.config().vocab_size)
      throw Error(ErrorCode::kInvalidArgument, "the tokenizer has {} tokens, the model {}: they do not belong together; leave --tokenizer out, or give the model's own", tokenizer_.vocab_size(), source_.config().vocab_size);
  }

  const Tokenizer& tokenizer() const { return tokenizer_; }

  /// Errors: kInvalidArgument when the text is longer than the context.
  void check_fits(const std::vector<int32_t>& ids) const {
    const auto wanted = static_cast<int64_t>(ids.size());
    if (wanted <= generator_.max_context()) return;
    throw Error(ErrorCode::kInvalidArgument, "the text has {} tokens, the context holds {}; {}", wanted, generator_.max_context(),
                generator_.max_context() < source_.config().max_seq_len
                    ? fmt::format("shorten it, or raise --max-context (the model's own is {})", source_.config().max_seq_len)
                    : "shorten it: the model was made for no more");
  }

  /// Streams what follows `ids` to stdout, and returns it. What `ids` share with the last text and its answer is not read again.
  /// Errors: kInvalidArgument when they do not fit.
  std::string answer(const std::vector<int32_t>& ids) {
    check_fits(ids);
    const auto shared = std::mismatch(ids.begin(), ids.end() - 1, read_.begin(), read_.end()).first - ids.begin();
    generator_.truncate(shared);
    read_ = ids;
    return go_on(std::vector<int32_t>(ids.begin() + shared, ids.end()));
  }

 private:
  std::string go_on(const std::vector<int32_t>& ids) {
    const auto begin = Clock::now();
    std::span<const float> logits = generator_.append(ids);
    const auto prefilled = Clock::now();
    StreamDecoder decoder(tokenizer_, {.skip_special = true});
    int64_t count = 0;
    std::string said;
    const auto say = [&](const std::string& text) {
      said += text;
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    };
    while (count < options_.max_tokens) {
      const int32_t id = sampler_.sample(logits, generator_.length(), {}, &scratch_).id;
      if (id < 0) throw Error(ErrorCode::kCorruptData, "every logit after {} tokens is NaN: the weights of {} are damaged", generator_.length(), options_.model);
      sampler_.accept(id);
      ++count;
      if (std::binary_search(ends_.begin(), ends_.end(), id)) break;
      say(decoder.push(id));
      if (generator_.length() >= generator_.max_context()) {
        fmt::print(stderr, "\nthe context of {} tokens is full\n", generator_.max_context());
        break;
      }
      logits = generator_.append(std::span(&id, 1));
      read_.push_back(id);
    }
    say(decoder.finish());
    std::fputc('\n', stdout);
    std::fflush(stdout);
    if (options_.timing) print_timing(static_cast<int64_t>(ids.size()), count, begin, prefilled);
    return said;
  }

  void print_timing(int64_t prompt_tokens, int64_t answer_tokens, Clock::time_point begin, Clock::time_point prefilled) const {
    const double prefill = std::chrono::duration<double>(prefilled - begin).count();
    const double decode = std::chrono::duration<double>(Clock::now() - prefilled).count();
    fmt::print(stderr, "prompt {} tokens in {:.0f} ms, {:.0f} tokens/s; answer {} tokens, {:.1f} tokens/s\n", prompt_tokens, 1e3 * prefill,
               static_cast<double>(prompt_tokens) / prefill, answer_tokens, static_cast<double>(answer_tokens) / decode);
  }

  Options options_;
  ModelSource source_;
  Tokenizer tokenizer_;
  Generator generator_;
  Sampler sampler_;
  SamplerScratch scratch_;
  std::vector<int32_t> ends_;  // ascending
  std::vector<int32_t> read_;  // the tokens behind the generator's keys and values
};

int run_generate(const Options& options) {
  Conversation conversation(options);
  std::vector<int32_t> ids = conversation.tokenizer().encode(options.prompt, {.allow_special = true});
  if (ids.empty()) {
    const int32_t start = conversation.tokenizer().bos_id() >= 0 ? conversation.tokenizer().bos_id() : conversation.tokenizer().eos_id();
    if (start < 0) throw Error(ErrorCode::kInvalidArgument, "the prompt is empty and the tokenizer has no begin token; give --prompt");
    ids.push_back(start);
  }
  conversation.check_fits(ids);
  fmt::print("{}", options.prompt);
  conversation.answer(ids);
  return 0;
}

// The whole conversation is rendered each time, by the model's own template; what the cache holds of it already is not read again.
int run_chat(const Options& options) {
  Conversation conversation(options);
  const Tokenizer& tokenizer = conversation.tokenizer();
  if (tokenizer.chat_template().empty() && tokenizer.token_id("<|im_start|>") < 0)
    throw Error(ErrorCode::kUnsupported, "{} has no chat template and no ChatML tokens (<|im_start|>, <|im_end|>), so it was not trained to chat; use: orrery generate {} --prompt ...", options.model, options.model);
  if (tokenizer.chat_template().empty()) fmt::print(stderr, "note      the model brings no chat template: ChatML is used; without training on chats it only goes on with the text\n");
  const ChatTemplate chat(tokenizer.chat_template().empty() ? chatml_template() : std::string_view(tokenizer.chat_template()));
  const auto name = [&](int32_t id) { return id >= 0 ? tokenizer.token_text(id) : std::string(); };
  nlohmann::ordered_json variables = {{"messages", nlohmann::ordered_json::array()}, {"add_generation_prompt", true}, {"bos_token", name(tokenizer.bos_id())}, {"eos_token", name(tokenizer.eos_id())}};
  nlohmann::ordered_json& messages = variables["messages"];
  if (!options.system.empty()) messages.push_back({{"role", "system"}, {"content", options.system}});
  const bool terminal = isatty(STDIN_FILENO);
  if (terminal) fmt::print(stderr, "type a message; an empty line or Ctrl-D ends the chat\n");
  std::string line;
  while (true) {
    if (terminal) fmt::print(stderr, "> ");
    if (!std::getline(std::cin, line) || line.empty()) return 0;
    messages.push_back({{"role", "user"}, {"content", line}});
    const std::string answer = conversation.answer(encode_prompt(tokenizer, chat.render(variables)));
    messages.push_back({{"role", "assistant"}, {"content", answer}});
  }
}

}  // namespace

void add_generate_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("generate", "go on with a text");
  add_shared_options(command, options.get());
  command->add_option("--prompt", options->prompt, "the text to go on with");
  command->footer("Examples:\n  orrery generate runs/first --prompt \"The hacker\" --temperature 0.8 --seed 1\n  orrery generate model.gguf --prompt \"Once\" --max-tokens 64\n");
  command->callback([options, &exit_code] { exit_code = run_generate(*options); });
}

void add_chat_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("chat", "talk to a model that was trained on chats");
  add_shared_options(command, options.get());
  command->add_option("--system", options->system, "a system message before the first one");
  command->footer("Examples:\n  orrery chat model.gguf --temperature 0.7\n  echo 'What is a mutex?' | orrery chat model.gguf\n");
  command->callback([options, &exit_code] { exit_code = run_chat(*options); });
}

}  // namespace orrery
