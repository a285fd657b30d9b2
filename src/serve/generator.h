// One sequence at a time through the serving block: prompt in chunks, then token by token, over the paged cache. The engine batches
// many requests through the same model (serving_model.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "serve/serving_model.h"

namespace orrery {

struct GeneratorOptions {
  int num_threads = 0;       // 0: every core
  int64_t max_context = 0;   // 0: the model's
  DType compute_dtype = DType::kBF16;
};

class Generator {
 public:
  /// Plans, allocates, loads the weights. Errors: those of the plan, the arena and the source.
  Generator(const ModelSource& source, const GeneratorOptions& options);

  /// Tokens so far, and how many there can be.
  int64_t length() const { return length_; }
  int64_t max_context() const { return plan().options.max_context; }
  void clear() { length_ = 0; }
  /// Forgets all but the first `length` tokens.
  void truncate(int64_t length) { length_ = std::min(length_, length); }

  /// Appends tokens and returns the logits after the last of them, [vocab_size], valid until the next call. Needs at least one
  /// token. The bits do not depend on how the tokens are cut into calls (NUMERICS rule 13).
  /// Errors: kInvalidArgument when the context is full.
  std::span<const float> append(std::span<const int32_t> tokens);

  const ServingPlan& plan() const { return model_.plan(); }
  Executor& executor() { return model_.executor(); }

 private:
  void forward(std::span<const int32_t> tokens);

  ServingModel model_;
  int64_t length_ = 0;
};

}  // namespace orrery
