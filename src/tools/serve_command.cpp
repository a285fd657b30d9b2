// `orrery serve MODEL`: an OpenAI-compatible server on one model.
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <string>
#include <thread>

#include "base/error.h"
#include "base/units.h"
#include "serve/http/api.h"
#include "tools/commands.h"
#include "tools/model_options.h"
#include "tools/number_checks.h"

namespace orrery {
namespace {

struct Options {
  std::string model, tokenizer, host = "127.0.0.1", api_key_file, served_model_name, kv_memory = "1GiB", kv_dtype = "auto", dtype = "bf16", tls_certificate, tls_key, max_body = "8MiB", draft;
  int port = 8080, threads = 0, http_threads = 2, grace_seconds = 30;
  int64_t max_queue = 256, max_model_len = 0, max_num_seqs = 64, max_num_batched_tokens = 512, prefill_chunk = 128, max_connections = 16384, speculative_tokens = 0, draft_tokens = 4;
  bool no_prefix_cache = false, strict_model_name = false;
};

volatile sig_atomic_t stop_signals = 0, loading = 1;

std::vector<std::string> read_api_keys(const std::string& path) {
  std::vector<std::string> keys;
  if (path.empty()) return keys;
  std::ifstream file(path);
  if (!file) throw Error(ErrorCode::kIo, "cannot read {}; --api-key-file names a file with one key a line", path);
  for (std::string line; std::getline(file, line);) {
    line.erase(line.find_last_not_of(" \t\r") + 1);
    if (!line.empty()) keys.push_back(line);
  }
  if (keys.empty()) throw Error(ErrorCode::kInvalidConfig, "{} has no key; write one a line, or leave --api-key-file out", path);
  return keys;
}

// Every idle connection holds a descriptor.
void raise_open_files() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

ServingModelOptions model_options(const ModelSource& source, const Options& options) {
  const auto kv_bytes = parse_bytes(options.kv_memory);
  if (!kv_bytes || *kv_bytes <= 0) throw Error(ErrorCode::kInvalidConfig, "--kv-memory {} is no amount of memory; write 2GiB or 500MB", options.kv_memory);
  if (options.max_model_len > source.config().max_seq_len)
    throw Error(ErrorCode::kInvalidConfig, "--max-model-len {}: the model was made for at most {}; ask for no more, or leave it out", options.max_model_len, source.config().max_seq_len);
  ServingModelOptions result;
  result.num_threads = options.threads;
  result.max_context = options.max_model_len;
  result.compute_dtype = *parse_dtype(options.dtype);
  result.kv_int8 = options.kv_dtype == "int8";
  result.max_sequences = options.max_num_seqs;
  result.max_tokens = std::max(options.max_num_batched_tokens, options.max_num_seqs);
  result.max_rows = options.max_num_seqs + (options.speculative_tokens > 0 || !options.draft.empty() ? 16 : 0);
  const int64_t block_bytes = kv_block_bytes(source, result);
  const int64_t context = options.max_model_len > 0 ? options.max_model_len : source.config().max_seq_len;
  const int64_t block_tokens = ServingPlanOptions{}.block_tokens, blocks_of_one = (context + block_tokens - 1) / block_tokens;
  // More than every sequence at its longest is of use to the prefix cache only: twice that at most.
  result.kv_blocks = std::min(*kv_bytes / block_bytes, 2 * blocks_of_one * options.max_num_seqs);
  if (result.kv_blocks < blocks_of_one)
    throw Error(ErrorCode::kInvalidConfig, "--kv-memory {} holds {} tokens and one sequence of this model may reach {}; give {} or more, or lower --max-model-len", options.kv_memory, result.kv_blocks * block_tokens, context, format_bytes(static_cast<double>(blocks_of_one * block_bytes)));
  return result;
}

// Places for as many sequences as a step has rows for drafts; it computes with the model's threads.
std::unique_ptr<ServingModel> load_draft(const Options& options, const Tokenizer& tokenizer, ServingModel& model) {
  if (options.draft.empty()) return nullptr;
  const ModelSource source = open_model(options.draft);
  const Tokenizer other = model_tokenizer(source);
  bool same = source.config().vocab_size == model.config().vocab_size && other.vocab_size() == tokenizer.vocab_size();
  for (int32_t id = 0; same && id < tokenizer.vocab_size(); ++id) same = other.token_bytes(id) == tokenizer.token_bytes(id);
  if (!same) throw Error(ErrorCode::kInvalidArgument, "--draft {}: its vocabulary is not that of {}, so its guesses would mean other words; give a smaller model of the same family", options.draft, options.model);
  constexpr int64_t kPlaces = 8;
  ServingModelOptions serving;
  serving.compute_dtype = *parse_dtype(options.dtype);
  serving.max_context = std::min(source.config().max_seq_len, model.plan().options.max_context);
  serving.max_sequences = std::min(kPlaces, options.max_num_seqs);
  return std::make_unique<ServingModel>(source, serving, &model.pool());
}

// The first real token: weights are read, threads run; only then is the server healthy.
void warm_up(Engine& engine) {
  std::promise<bool> done;
  GenerationRequest request;
  request.request_id = "warm-up";
  request.prompt = {0};
  request.max_tokens = 1;
  request.sink = [&done](TokenEvent&& event) {
    if (event.finish) done.set_value(*event.finish != FinishReason::kError);
  };
  uint64_t id = 0;
  if (engine.submit(std::move(request), &id) != Admission::kAccepted || !done.get_future().get())
    throw Error(ErrorCode::kCorruptData, "the model gives no finite logit; its weights are damaged");
}

int run_serve(const Options& options) {
  if (options.tls_certificate.empty() != options.tls_key.empty()) throw Error(ErrorCode::kInvalidConfig, "--tls-cert and --tls-key belong together");
  const auto max_body = parse_bytes(options.max_body);
  if (!max_body || *max_body <= 0) throw Error(ErrorCode::kInvalidConfig, "--max-body {} is no size; write 8MiB", options.max_body);
  raise_open_files();
  signal(SIGPIPE, SIG_IGN);
  struct sigaction action = {};
  action.sa_handler = [](int) {
    if (stop_signals > 0) _exit(130);
    // Nobody has been let in, so there is nothing to wait for.
    if (loading) _exit(0);
    stop_signals = 1;
  };
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);

  std::string name = options.served_model_name;
  if (name.empty()) name = std::filesystem::path(options.model).lexically_normal().filename().string();
  if (name.empty()) name = "model";
  Api api({.model_name = name, .api_keys = read_api_keys(options.api_key_file), .any_model_name = !options.strict_model_name});
  HttpServerOptions http;
  http.host = options.host;
  http.port = static_cast<uint16_t>(options.port);
  http.num_threads = options.http_threads;
  http.max_body_bytes = *max_body;
  http.max_connections = options.max_connections;
  http.tls_certificate = options.tls_certificate;
  http.tls_key = options.tls_key;
  // Declared before the server, so that its threads end first.
  std::unique_ptr<ServingModel> model, draft;
  std::unique_ptr<Engine> engine;
  HttpServer server(http, api);
  const std::string host = options.host.find(':') == std::string::npos ? options.host : "[" + options.host + "]";
  fmt::print(stderr, "listening {}://{}:{}\n", options.tls_key.empty() ? "http" : "https", host, server.port());
  const ModelSource source = open_model(options.model);
  const Tokenizer tokenizer = model_tokenizer(source, options.tokenizer);
  if (tokenizer.vocab_size() > source.config().vocab_size)
    throw Error(ErrorCode::kInvalidArgument, "the tokenizer has {} tokens, the model {}: they do not belong together; leave --tokenizer out, or give the model's own", tokenizer.vocab_size(), source.config().vocab_size);
  model = std::make_unique<ServingModel>(source, model_options(source, options));
  EngineOptions engine_options;
  engine_options.max_queue = options.max_queue;
  engine_options.scheduler.prefill_chunk = options.prefill_chunk;
  engine_options.scheduler.prefix_cache = !options.no_prefix_cache;
  engine_options.scheduler.speculative_tokens = options.speculative_tokens;
  draft = load_draft(options, tokenizer, *model);
  engine_options.draft = draft.get();
  engine_options.draft_tokens = options.draft_tokens;
  engine = std::make_unique<Engine>(*model, engine_options);
  warm_up(*engine);
  const ServingPlanOptions& plan = model->plan().options;
  // The front's own class: what connections and the queue may come to hold, beside the arena.
  const int64_t front_bytes = options.max_connections * (http.max_header_bytes + 8192) + options.max_queue * plan.max_context * static_cast<int64_t>(sizeof(int32_t)) * 2;
  if (draft) fmt::print(stderr, "memory    draft model {}\n", format_bytes(static_cast<double>(draft->arena_bytes())));
  fmt::print(stderr, "memory    arena {}, of it {} for keys and values: {} tokens; front at most {} ({} connections, {} waiting requests), streams apart\n", format_bytes(static_cast<double>(model->arena_bytes())),
             format_bytes(static_cast<double>(model->plan().memory.class_bytes[static_cast<size_t>(MemoryClass::kKvCache)])), plan.kv_blocks * plan.block_tokens, format_bytes(static_cast<double>(front_bytes)), options.max_connections, options.max_queue);
  api.attach(*engine, tokenizer, end_tokens(source, tokenizer), model->arena_bytes());
  loading = 0;
  fmt::print(stderr, "ready     {} with a context of {} tokens\n", name, plan.max_context);

  while (stop_signals == 0) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  fmt::print(stderr, "stopping  open requests have {} s; once more to stop now\n", options.grace_seconds);
  api.drain();
  engine->drain();
  // Answers are what is waited for: between the choices of a long list the engine itself may be idle.
  const auto wait_for_answers = [&server](std::chrono::milliseconds limit) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (server.num_answering() > 0 && std::chrono::steady_clock::now() < deadline) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
  wait_for_answers(std::chrono::seconds(options.grace_seconds));
  engine->stop();
  server.stop_accepting();
  wait_for_answers(std::chrono::milliseconds(500));  // those that are left are told so
  fmt::print(stderr, "stopped\n");
  return 0;
}

}  // namespace

void add_serve_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("serve", "answer requests over HTTP, as OpenAI's API");
  command->add_option("model", options->model, kModelHelp)->required();
  command->add_option("--tokenizer", options->tokenizer, "a tokenizer folder or file, when the model brings none");
  command->add_option("--host", options->host, "the address to listen on");
  command->add_option("--port", options->port, "0 for any free one")->check(CLI::Range(0, 65535));
  command->add_option("--api-key-file", options->api_key_file, "a file with one key a line; every route but /health then needs one");
  command->add_option("--served-model-name", options->served_model_name, "the name clients see");
  command->add_flag("--strict-model-name", options->strict_model_name, "404 for requests that name another model");
  command->add_option("--max-model-len", options->max_model_len, "tokens of prompt and answer; 0 for the model's own")->check(zero_or_more());
  command->add_option("--kv-memory", options->kv_memory, "memory for keys and values");
  command->add_option("--kv-dtype", options->kv_dtype, "auto: keys and values as they are computed; int8: half the memory, at a small loss")->check(CLI::IsMember({"auto", "int8"}));
  command->add_option("--max-queue", options->max_queue, "requests that may wait; more get 429")->check(above_zero());
  command->add_option("--max-num-seqs", options->max_num_seqs, "requests that run at a time")->check(CLI::Range(1, 1024));
  command->add_option("--max-num-batched-tokens", options->max_num_batched_tokens, "tokens of a step")->check(CLI::Range(1, 65536));
  command->add_option("--prefill-chunk", options->prefill_chunk, "prompt tokens of a step while others decode")->check(CLI::Range(1, 65536));
  command->add_flag("--no-prefix-cache", options->no_prefix_cache, "compute every prompt anew");
  command->add_option("--speculate", options->speculative_tokens, "draft up to so many tokens by prompt lookup; the answer stays the same")->check(CLI::Range(0, 15));
  command->add_option("--draft", options->draft, "a smaller model of the same vocabulary that proposes tokens; the answer stays the same, and it rests where it does not pay");
  command->add_option("--draft-tokens", options->draft_tokens, "most tokens that it proposes at a time")->check(CLI::Range(1, 15));
  command->add_option("--threads", options->threads, "compute threads; 0 for every core")->check(zero_or_more());
  command->add_option("--dtype", options->dtype, "what weights and activations are computed in")->check(CLI::IsMember({"bf16", "f32"}));
  command->add_option("--http-threads", options->http_threads, "threads for HTTP, JSON and text")->check(CLI::Range(1, 64));
  command->add_option("--max-connections", options->max_connections, "open at a time")->check(above_zero());
  command->add_option("--max-body", options->max_body, "bytes of a request's body");
  command->add_option("--grace", options->grace_seconds, "seconds for open requests after SIGTERM")->check(zero_or_more());
  command->add_option("--tls-cert", options->tls_certificate, "PEM certificate chain");
  command->add_option("--tls-key", options->tls_key, "PEM private key");
  command->footer("Examples:\n  orrery serve model.gguf --port 8080\n  curl localhost:8080/v1/chat/completions -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}'\n");
  command->callback([options, &exit_code] { exit_code = run_serve(*options); });
}

}  // namespace orrery
