// `orrery bench serve --url URL`: what a server gives its clients: time to first token, time between tokens, throughput. It speaks OpenAI's
// API, so it measures any such server.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "serve/http/load_client.h"
#include "tools/commands.h"
#include "tools/number_checks.h"

namespace orrery {
namespace {

struct Summary {
  double mean = 0, p50 = 0, p90 = 0, p99 = 0;
};

Summary summarize(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) { return values[std::min(values.size() - 1, static_cast<size_t>(share * static_cast<double>(values.size())))]; };
  return {std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size()), at(0.5), at(0.9), at(0.99)};
}

int run_bench_serve(const LoadOptions& options, bool as_json) {
  const LoadResult result = run_load(options);
  const auto generated = static_cast<double>(result.generated_tokens);
  const std::pair<const char*, Summary> times[] = {{"time_to_first_token", summarize(result.first_token)}, {"inter_token_latency", summarize(result.between_tokens)}, {"request_latency", summarize(result.whole)}, {"refusal_latency", summarize(result.refused)}};
  if (as_json) {
    nlohmann::ordered_json report = {{"url", options.url}, {"rate", options.rate}, {"clients", options.rate > 0 ? 0 : options.clients}, {"requests", options.requests}, {"completed", result.completed},
                                     {"failures", result.failures}, {"seconds", result.seconds}, {"prompt_tokens", result.prompt_tokens}, {"generated_tokens", result.generated_tokens},
                                     {"tokens_per_second", generated / result.seconds}, {"requests_per_second", static_cast<double>(result.completed) / result.seconds}};
    for (const auto& [name, t] : times) report[std::string(name) + "_ms"] = {{"mean", 1e3 * t.mean}, {"p50", 1e3 * t.p50}, {"p90", 1e3 * t.p90}, {"p99", 1e3 * t.p99}};
    fmt::print("{}\n", report.dump());
  } else {
    fmt::print("completed   {} of {} requests in {:.1f} s, {:.2f} a second\n", result.completed, options.requests, result.seconds, static_cast<double>(result.completed) / result.seconds);
    for (const auto& [what, count] : result.failures) fmt::print("failed      {}: {}\n", count, what);
    fmt::print("tokens      {:.1f} generated a second; {} of prompts, {} generated\n\n{:<22}{:>10}{:>10}{:>10}{:>10}\n", generated / result.seconds, result.prompt_tokens, result.generated_tokens, "ms", "mean", "p50", "p90", "p99");
    for (const auto& [name, t] : times) fmt::print("{:<22}{:>10.1f}{:>10.1f}{:>10.1f}{:>10.1f}\n", name, 1e3 * t.mean, 1e3 * t.p50, 1e3 * t.p90, 1e3 * t.p99);
  }
  if (result.completed == 0) throw Error(ErrorCode::kIo, "no request was answered by {}", options.url);
  return 0;
}

}  // namespace

void add_bench_command(CLI::App& app, int& exit_code) {
  struct Options {
    LoadOptions load;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* bench = app.add_subcommand("bench", "measure a server");
  bench->require_subcommand(1);
  CLI::App* command = bench->add_subcommand("serve", "time to first token, time between tokens and throughput of any OpenAI-compatible server");
  LoadOptions& load = options->load;
  command->add_option("--url", load.url, "where it is; with a path other than /v1, that very path is asked")->capture_default_str();
  command->add_option("--model", load.model, "the model to name; without it the first of /v1/models");
  command->add_option("--api-key", load.api_key, "sent as Authorization: Bearer");
  command->add_flag("--chat", load.chat, "ask /v1/chat/completions");
  command->add_option("--rate", load.rate, "requests a second, at random times; without it --clients ask one after the other")->check(zero_or_more());
  command->add_option("--clients", load.clients, "that each send the next request when one is answered")->check(CLI::Range(1, 16384));
  command->add_option("--requests", load.requests, "in all")->check(above_zero())->capture_default_str();
  command->add_option("--prompt-words", load.prompt_words, "random words of a prompt, about a token each")->check(above_zero())->capture_default_str();
  command->add_option("--max-tokens", load.max_tokens, "tokens of an answer; ends of text are ignored where the server knows ignore_eos")->check(above_zero())->capture_default_str();
  command->add_option("--temperature", load.temperature, "of the answers")->check(zero_or_more())->capture_default_str();
  command->add_option("--seed", load.seed, "of arrivals, prompts and answers")->capture_default_str();
  command->add_option("--timeout", load.timeout_seconds, "seconds for one request")->check(above_zero())->capture_default_str();
  command->add_flag("--json", options->json, "print JSON");
  command->footer("Examples:\n  orrery bench serve --url http://127.0.0.1:8080 --rate 4\n  orrery bench serve --clients 16 --requests 200 --max-tokens 64 --json\n");
  command->callback([options, &exit_code] { exit_code = run_bench_serve(options->load, options->json); });
}

}  // namespace orrery
