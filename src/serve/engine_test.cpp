// NUMERICS rule 13 at the engine: a request with a seed gets the same tokens alone and among others, with 1 and 2 threads, whatever is
// chunked, cached, drafted or preempted. The model is the golden tiny_llama.gguf (one layer, 48 tokens, a context of 64).
#include "serve/engine.h"

#include <gtest/gtest.h>

#include <future>

#include "base/golden.h"

namespace orrery {
namespace {

struct Answer {
  std::vector<int32_t> tokens;
  FinishReason finish = FinishReason::kCancelled;
  bool operator==(const Answer&) const = default;
};

struct Conditions {
  int threads = 2;
  int64_t max_sequences = 16, max_tokens = 64, prefill_chunk = 32, kv_blocks = 0, speculative_tokens = 0;
  bool prefix_cache = true, draft = false, kv_int8 = false;
};

const ModelSource& source() {
  static const ModelSource model = open_model(golden_path("tiny_llama.gguf"));
  return model;
}

struct Server {
  ServingModel model;
  std::unique_ptr<ServingModel> draft;  // the same weights: what it proposes is mostly right
  Engine engine;

  explicit Server(const Conditions& conditions)
      : model(source(), {.num_threads = conditions.threads, .max_tokens = conditions.max_tokens, .max_sequences = conditions.max_sequences, .max_rows = conditions.max_sequences + 16, .kv_blocks = conditions.kv_blocks, .kv_int8 = conditions.kv_int8}),
        draft(conditions.draft ? std::make_unique<ServingModel>(source(), ServingModelOptions{.max_tokens = 40, .max_sequences = 4}, &model.pool()) : nullptr),
        engine(model, engine_options(conditions, draft.get())) {}

  static EngineOptions engine_options(const Conditions& conditions, ServingModel* draft) {
    EngineOptions options;
    options.draft = draft;
    options.draft_tokens = 3;
    options.draft_always = true;
    options.scheduler.prefill_chunk = conditions.prefill_chunk;
    options.scheduler.prefix_cache = conditions.prefix_cache;
    options.scheduler.speculative_tokens = conditions.speculative_tokens;
    options.max_queue = 1000;
    return options;
  }

  std::future<Answer> ask(GenerationRequest request, uint64_t* id = nullptr) {
    auto promise = std::make_shared<std::promise<Answer>>();
    auto answer = std::make_shared<Answer>();
    request.sink = [promise, answer](TokenEvent&& event) {
      for (const GeneratedToken& token : event.tokens) answer->tokens.push_back(token.id);
      if (!event.finish) return;
      answer->finish = *event.finish;
      promise->set_value(*answer);
    };
    uint64_t ignored = 0;
    EXPECT_EQ(engine.submit(std::move(request), id ? id : &ignored), Admission::kAccepted);
    return promise->get_future();
  }
};

// Prompts share beginnings and repeat themselves, so that the prefix cache and lookup drafts have work.
GenerationRequest request_of(uint64_t seed) {
  GenerationRequest request;
  const auto length = static_cast<int64_t>(1 + seed * 7 % 45);
  for (int64_t i = 0; i < length; ++i) request.prompt.push_back(static_cast<int32_t>((i % 6 + static_cast<int64_t>(seed % 3)) % 48));
  request.max_tokens = 4 + static_cast<int64_t>(seed % 13);
  request.sampling.seed = seed;
  request.sampling.temperature = seed % 4 == 0 ? 0 : 0.3 * static_cast<double>(seed % 4);
  request.sampling.top_k = seed % 5 == 0 ? 8 : 0;
  request.sampling.frequency_penalty = seed % 7 == 0 ? 0.5 : 0;
  return request;
}

// What /metrics shows once nothing waits or runs any more, which is a moment after the last answer.
EngineStats stats_at_rest(const Engine& engine) {
  while (true) {
    if (EngineStats stats = engine.stats(); stats.running == 0 && stats.waiting == 0) return stats;
    std::this_thread::yield();
  }
}

constexpr uint64_t kNumSeeds = 100;

std::vector<Answer> alone(bool kv_int8) {
  Conditions conditions;
  conditions.kv_int8 = kv_int8;
  conditions.threads = 1;
  conditions.prefix_cache = false;
  Server server(conditions);
  std::vector<Answer> answers;
  for (uint64_t seed = 0; seed < kNumSeeds; ++seed) answers.push_back(server.ask(request_of(seed)).get());
  return answers;
}

std::vector<Answer> together(const Conditions& conditions, SchedulerCounters* counters) {
  Server server(conditions);
  std::vector<std::future<Answer>> pending;
  for (uint64_t seed = 0; seed < kNumSeeds; ++seed) pending.push_back(server.ask(request_of(seed)));
  std::vector<Answer> answers;
  for (auto& answer : pending) answers.push_back(answer.get());
  const EngineStats stats = stats_at_rest(server.engine);
  *counters = stats.counters;
  EXPECT_EQ(stats.kv_blocks_used, 0);
  return answers;
}

class EngineCache : public testing::TestWithParam<bool> {};  // keys and values in 8 bits

TEST_P(EngineCache, SameTokensAloneAndUnderLoad) {
  const std::vector<Answer> expected = alone(GetParam());
  const auto check = [&](const char* what, Conditions conditions) {
    SCOPED_TRACE(what);
    conditions.kv_int8 = GetParam();
    SchedulerCounters counters;
    EXPECT_EQ(together(conditions, &counters), expected);
    return counters;
  };
  Conditions conditions;
  conditions.max_sequences = 64;
  EXPECT_GT(check("64 at a time, prefix cache", conditions).prefix_hit_tokens, 0);
  conditions.threads = 1;
  conditions.prefix_cache = false;
  check("one thread", conditions);
  Conditions chunks;
  chunks.max_tokens = 16;
  chunks.prefill_chunk = 3;
  check("chunks of three", chunks);
  Conditions scarce;
  scarce.kv_blocks = 3;
  scarce.max_sequences = 8;
  EXPECT_GT(check("too few blocks", scarce).preemptions, 0);
  Conditions drafts;
  drafts.speculative_tokens = 5;
  drafts.max_sequences = 4;
  const SchedulerCounters drafted = check("drafts", drafts);
  EXPECT_GT(drafted.draft_tokens, 0);
  drafts.draft = true;
  const SchedulerCounters guessed = check("a draft model", drafts);
  EXPECT_GT(guessed.accepted_tokens, guessed.draft_tokens / 2);
}
INSTANTIATE_TEST_SUITE_P(Types, EngineCache, testing::Bool(), [](const auto& instance) { return instance.param ? "int8" : "compute_dtype"; });

// The arm that is faster is used, the other one tried from time to time, and a change of speed is noticed.
TEST(DraftGovernor, FollowsWhatPays) {
  DraftGovernor governor;
  const auto run = [&](double with, double without, int steps) {
    int used = 0;
    for (int i = 0; i < steps; ++i) {
      const bool use = governor.use();
      used += use;
      governor.record(use, use ? with : without, 1);
    }
    return used;
  };
  EXPECT_GT(run(1, 2, 640), 540);
  EXPECT_LT(run(2, 1, 640), 200);
}

// Scored prompts: every token but the first, once, whatever was chunked or preempted; the same numbers alone and among others.
TEST(Engine, PromptLogprobsDoNotDependOnTheBatch) {
  const auto scores = [](const Conditions& conditions, bool others) {
    Server server(conditions);
    std::vector<std::future<Answer>> pending;
    for (uint64_t seed = 0; others && seed < 20; ++seed) pending.push_back(server.ask(request_of(seed)));
    std::vector<std::pair<int32_t, float>> result;
    std::promise<void> done;
    GenerationRequest request = request_of(13);
    request.prompt_logprobs = true;
    request.sampling.top_logprobs = 2;
    const std::vector<int32_t> prompt = request.prompt;
    request.sink = [&](TokenEvent&& event) {
      for (const GeneratedToken& token : event.prompt) {
        result.emplace_back(token.id, token.logprob);
        EXPECT_EQ(token.top_logprobs.size(), 2u);
      }
      if (event.finish) done.set_value();
    };
    uint64_t id = 0;
    EXPECT_EQ(server.engine.submit(std::move(request), &id), Admission::kAccepted);
    done.get_future().get();
    for (auto& answer : pending) answer.get();
    EXPECT_EQ(result.size() + 1, prompt.size());
    for (size_t i = 0; i < result.size(); ++i) EXPECT_EQ(result[i].first, prompt[i + 1]);
    return result;
  };
  const auto expected = scores({}, false);
  Conditions chunks;
  chunks.max_tokens = 16;
  chunks.prefill_chunk = 3;
  EXPECT_EQ(scores(chunks, true), expected);
  Conditions scarce;
  scarce.kv_blocks = 3;
  scarce.max_sequences = 8;
  EXPECT_EQ(scores(scarce, true), expected);
}

TEST(Engine, CancelFreesBlocksAndTheQueueIsBounded) {
  Conditions conditions;
  conditions.max_sequences = 2;
  Server server(conditions);
  std::vector<uint64_t> ids(20);
  std::vector<std::future<Answer>> pending;
  for (uint64_t& id : ids) {
    GenerationRequest request = request_of(5);
    request.max_tokens = 1 << 20;  // until the context is full
    pending.push_back(server.ask(std::move(request), &id));
  }
  for (const uint64_t id : ids) server.engine.cancel(id);
  for (auto& answer : pending) {
    const FinishReason finish = answer.get().finish;
    EXPECT_TRUE(finish == FinishReason::kCancelled || finish == FinishReason::kLength);
  }
  EXPECT_EQ(stats_at_rest(server.engine).kv_blocks_used, 0);
  server.engine.drain();
  GenerationRequest late = request_of(1);
  late.sink = [](TokenEvent&&) {};
  uint64_t id = 0;
  EXPECT_EQ(server.engine.submit(std::move(late), &id), Admission::kStopping);
}

TEST(Engine, EmbeddingDoesNotDependOnTheBatch) {
  Server server({});
  const auto embed = [&] {
    GenerationRequest request = request_of(9);
    request.embed = true;
    auto promise = std::make_shared<std::promise<std::vector<float>>>();
    request.sink = [promise](TokenEvent&& event) {
      if (event.finish) promise->set_value(event.embedding);
    };
    uint64_t id = 0;
    EXPECT_EQ(server.engine.submit(std::move(request), &id), Admission::kAccepted);
    return promise->get_future();
  };
  const std::vector<float> single = embed().get();
  EXPECT_EQ(single.size(), static_cast<size_t>(source().config().hidden_size));
  std::vector<std::future<Answer>> others;
  for (uint64_t seed = 0; seed < 8; ++seed) others.push_back(server.ask(request_of(seed)));
  EXPECT_EQ(embed().get(), single);
  for (auto& other : others) other.get();
}

}  // namespace
}  // namespace orrery
