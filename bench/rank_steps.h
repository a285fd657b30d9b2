// What the benches of training steps on several ranks share: small models, batches of random tokens, and some timed steps of one rank's engine.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "base/philox.h"
#include "train/engine.h"

namespace orrery::bench {

struct TestModel {
  const char* name;
  ModelFamily family;
  int64_t layers, width, heads, kv_heads, ffn, vocab, tokens, batch;
};

/// The model in bf16 with a tied head, in 4 lanes.
inline TrainingPlanOptions plan_options(const TestModel& test) {
  TrainingPlanOptions options;
  ModelConfig& model = options.model;
  model = default_model_config(test.family);
  model.num_layers = test.layers, model.hidden_size = test.width, model.num_heads = test.heads, model.num_kv_heads = test.kv_heads;
  model.intermediate_size = test.ffn, model.vocab_size = test.vocab, model.max_seq_len = test.tokens, model.tie_embeddings = true;
  resolve(model);
  options.sequence_tokens = test.tokens, options.global_batch_size = test.batch, options.lanes = 4;
  options.recompute = Recompute::kNone;
  return options;
}

/// Random tokens, each sequence one document.
inline void fill_batch(TrainingEngine& engine, int copy, uint32_t step) {
  const BatchView batch = engine.batch(copy);
  const TrainingPlanOptions& options = engine.plan().options;
  const auto vocab = static_cast<uint64_t>(options.model.vocab_size);
  const auto tokens = static_cast<size_t>(options.sequence_tokens), local_tokens = static_cast<size_t>(options.local_tokens());
  for (size_t i = 0; i < batch.ids.size(); ++i) {
    const auto words = philox4x32({static_cast<uint32_t>(i), step, 7, 0}, {1, 2});
    batch.ids[i] = static_cast<int32_t>(words[0] % vocab), batch.targets[i] = static_cast<int32_t>(words[1] % vocab);
    batch.positions[i] = static_cast<int32_t>(i % local_tokens);
  }
  for (size_t s = 0; s < batch.segment_counts.size(); ++s) batch.segment_counts[s] = 1, batch.segment_starts[s] = static_cast<int32_t>(s * tokens);
}

/// Connects the engine and takes a step that is not counted, then `num_steps`: the seconds of each from one `together` to the next, which
/// waits for all ranks. Every rank calls it.
inline std::vector<double> timed_steps(TrainingEngine& engine, int num_steps, const std::function<void()>& together) {
  OptimizerHyper hyper;
  hyper.lr = 1e-4f, hyper.beta1 = 0.9f, hyper.beta2 = 0.95f, hyper.eps = 1e-8f, hyper.weight_decay = 0.1f, hyper.clip = 1;
  hyper.bias_correction1 = 0.1f, hyper.bias_correction2 = 0.05f;
  set_floating_point_mode();
  engine.connect();
  std::vector<double> seconds;
  // Where steps carry, a step works on the batch of the next one too.
  const int copies = training_copies(engine.plan()), ahead = engine.plan().schedule.carries ? 1 : 0;
  for (int step = 0; step < ahead; ++step) fill_batch(engine, step, static_cast<uint32_t>(step));
  for (int step = 0; step <= num_steps; ++step) {
    fill_batch(engine, (step + ahead) % copies, static_cast<uint32_t>(step + ahead));
    if (step == 1) engine.reset_op_table();
    together();
    const auto begin = std::chrono::steady_clock::now();
    engine.step(step % copies, hyper);
    together();
    if (step > 0) seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return seconds;
}

/// Other work on the machine only makes a step longer: the lower quarter is nearer to what it takes than the middle.
inline double lower_quartile(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 4];
}

}  // namespace orrery::bench
