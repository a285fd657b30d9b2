// The engine: one thread that owns the batch. It asks the scheduler who runs, binds tokens, block tables and lengths, runs the model,
// draws, and hands tokens to each request's sink. It knows tokens only: text, stop strings and JSON are the front's, which keeps a
// request's prompt and answer so far and so could replay them to another engine.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "serve/draft_model.h"
#include "serve/grammar/grammar.h"
#include "serve/sampling/sampler.h"
#include "serve/scheduler.h"
#include "serve/serving_model.h"

namespace orrery {

/// A drawn token as the front gets it; log-probabilities when the request's sampling asks for them.
struct GeneratedToken {
  int32_t id = -1;
  float logprob = 0;
  std::vector<TokenLogprob> top_logprobs;
};

/// kError: no token could be drawn, because every logit that grammar and options allow is NaN or -inf.
enum class FinishReason : uint8_t { kStop, kLength, kCancelled, kError };

/// What a step gave one request.
struct TokenEvent {
  std::vector<GeneratedToken> tokens;
  std::optional<FinishReason> finish;  // the last event has it; for kStop by token the last of `tokens` is the stop token
  std::vector<float> embedding;        // of an embedding request, with finish
  std::vector<GeneratedToken> prompt;  // with prompt_logprobs, in the first event: the prompt's tokens but the first, and their logprobs
  int64_t cached_tokens = 0;           // prompt tokens that came from the prefix cache
  double queue_seconds = 0;            // from submission to the first step
};

struct GenerationRequest {
  std::string request_id;          // for logs
  std::vector<int32_t> prompt;     // not empty, shorter than the context unless `embed`
  int64_t max_tokens = 16;         // at least 1
  SamplingOptions sampling;
  std::vector<int32_t> stop_token_ids;
  std::shared_ptr<const Grammar> grammar;  // null: any text. Its end tokens must be among stop_token_ids
  bool embed = false;              // the last token's hidden state instead of tokens
  bool prompt_logprobs = false;    // also those of the prompt's tokens, as many as sampling.top_logprobs says
  int32_t priority = 0;
  std::string tenant, cache_salt;
  bool continues = false;  // a further part of a request that was let in before: admitted while the engine drains, too
  std::string adapter;             // empty: the model itself; the only value that is served today
  /// Called on the engine's thread; must not block and must not throw.
  std::function<void(TokenEvent&&)> sink;
};

enum class Admission : uint8_t { kAccepted, kQueueFull, kStopping };

struct EngineOptions {
  SchedulerOptions scheduler;  // bounds and cache size are taken from the model's plan
  ServingModel* draft = nullptr;  // of the same vocabulary: proposes tokens (draft_model.h); null: none
  int64_t draft_tokens = 4;       // most that it proposes for a sequence and step
  bool draft_always = false;      // also where it does not pay: for tests
  int64_t max_queue = 256;     // requests that wait, beside those for which a sequence of the batch is free
};

/// A consistent picture for /metrics and the page.
struct EngineStats {
  int64_t running = 0, waiting = 0, kv_blocks = 0, kv_blocks_used = 0;
  int64_t steps = 0, step_tokens = 0;
  double busy_seconds = 0;
  SchedulerCounters counters;
};

class Engine {
 public:
  /// `model` outlives the engine and is used by nobody else meanwhile. Errors: kInvalidConfig when one sequence of the context's
  /// length does not fit into the cache.
  Engine(ServingModel& model, const EngineOptions& options);
  ~Engine();

  /// Thread-safe, never waits for a step. On kAccepted `*id` names the request to cancel(), and the sink will get a last event.
  [[nodiscard]] Admission submit(GenerationRequest request, uint64_t* id);
  /// Frees its cache before the next step; the sink gets kCancelled, unless the request has ended already. Thread-safe.
  void cancel(uint64_t id);
  /// From now on submit() says kStopping; what runs goes on.
  void drain();
  /// Cancels what waits and runs and ends the thread; the other calls stay harmless.
  void stop();

  EngineStats stats() const;
  int64_t max_context() const { return model_.plan().options.max_context; }
  int64_t max_sequences() const { return model_.plan().options.max_sequences; }
  const ModelConfig& config() const { return model_.config(); }

 private:
  struct Live {
    GenerationRequest request;
    Sampler sampler;
    int64_t num_generated = 0;
    double submitted = 0, started = -1;
    TokenEvent event;  // of the present step
    std::optional<GrammarMatcher> matcher;
    std::vector<uint64_t> mask;
    std::vector<GeneratedToken> prompt;  // scored so far
  };
  void run();
  void take_commands();
  void run_step();
  bool propose_drafts();
  void bind(const std::vector<StepItem>& step);
  void score_prompt(const StepItem& item, int64_t first_row, SamplerScratch* scratch);
  void draw_item(const StepItem& item, int64_t first_row, SamplerScratch* scratch);
  void finish_item(const StepItem& item);
  void publish();

  ServingModel& model_;
  EngineOptions options_;
  Scheduler scheduler_;
  std::unordered_map<uint64_t, std::unique_ptr<Live>> live_;
  std::vector<SamplerScratch> scratch_;  // by compute thread
  std::optional<DraftModel> draft_;
  DraftGovernor governor_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::pair<uint64_t, std::unique_ptr<Live>>> submitted_;
  std::vector<uint64_t> cancelled_;
  bool stopping_ = false, draining_ = false;
  uint64_t next_id_ = 1;
  int64_t num_waiting_ = 0;
  EngineStats stats_;
  std::thread thread_;
};

}  // namespace orrery
