// A decoder of a few thousand parameters, for tests of plans.
#pragma once

#include "planner/plan.h"

namespace orrery {

inline TrainingPlanOptions small_plan_options(ModelFamily family, int64_t num_layers, int64_t vocab_size) {
  TrainingPlanOptions options;
  options.model = default_model_config(family);
  options.model.hidden_size = 64;
  options.model.num_layers = num_layers;
  options.model.num_heads = 4;
  options.model.num_kv_heads = family == ModelFamily::kGpt2 ? 4 : 2;
  options.model.intermediate_size = 96;
  options.model.vocab_size = vocab_size;
  options.model.max_seq_len = options.sequence_tokens = 32;
  resolve(options.model);
  options.global_batch_size = 8;
  options.evaluates = true;
  return options;
}

}  // namespace orrery
