// Loss of a model over token files, and likelihoods of given continuations: what `orrery eval` measures. Forward only; the same
// blocks and kernels as training.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "checkpoint/model_source.h"
#include "data/dataset.h"
#include "train/engine.h"

namespace orrery {

struct EvaluatorOptions {
  int num_threads = 0;
  DType compute_dtype = DType::kBF16;
  int64_t sequence_tokens = 0;        // window; at most the model's max_seq_len
  int64_t micro_batch_size = 4;       // windows of one forward
  int64_t segments_per_sequence = 1;
};

class Evaluator {
 public:
  /// Errors: those of the arena and the source.
  Evaluator(const ModelSource& source, const EvaluatorOptions& options);

  struct Loss {
    double sum = 0;
    int64_t num_tokens = 0;
    double mean() const { return sum / static_cast<double>(num_tokens); }
  };
  /// Every window of a sequential data set. `progress` gets windows done and in all.
  Loss evaluate(const Dataset& dataset, const std::function<void(int64_t, int64_t)>& progress = {});

  /// Log-likelihood of `continuation` after `context` (at least one token); what is too long is cut at the context's front.
  double log_likelihood(std::span<const int32_t> context, std::span<const int32_t> continuation);

 private:
  template <typename T>
  T* field(BatchField name) const;

  EvaluatorOptions options_;
  EngineOptions engine_;
  Stage stage_;
  MemoryMap memory_;
  ThreadPool pool_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Executor> executor_;
};

}  // namespace orrery
