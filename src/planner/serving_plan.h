// The plan of a model that serves: one forward block with the paged cache, its bounds, and where every byte lies.
#pragma once

#include <functional>
#include <string>
#include <unordered_map>

#include "ir/memory_map.h"
#include "model/model_config.h"

namespace orrery {

struct ServingPlanOptions {
  ModelConfig model;
  DType compute_dtype = DType::kBF16;
  int64_t max_tokens = 512;     // rows of one forward: the prefill chunk
  int64_t max_sequences = 1;    // S
  int64_t max_rows = 0;         // M, rows whose logits are asked for; 0: max_sequences
  int64_t kv_blocks = 0;        // of the cache; 0: max_context for every sequence
  int64_t max_context = 0;      // tokens a sequence may reach; 0: model.max_seq_len
  int64_t block_tokens = 32;    // of a cache block
  bool kv_int8 = false;         // keys and values in 8 bits, not in the compute dtype
  /// Tensors (Hugging Face names) that stay quantized. A matrix is packed quantized when all of its tensors are named here.
  std::unordered_map<std::string, WeightFormat> weight_formats;
};

struct ServingPlan {
  ServingPlanOptions options;
  int64_t blocks_per_sequence = 0;
  Stage stage;
  MemoryMap memory;
};

/// Bytes of the packed form of a weight [n, k] on the machine that serves (backend kernel traits).
using PackedBytes = std::function<int64_t(DType dtype, int64_t n, int64_t k)>;

/// Every linear layer reads its weight packed, so that a few rows run at memory speed. Errors: kInvalidConfig when max_context is more
/// than the model's max_seq_len; kUnsupported when kv_int8 meets heads that are too wide for it.
ServingPlan make_serving_plan(const ServingPlanOptions& options, const WorkspaceBytes& workspace_bytes, const PackedBytes& packed_bytes);

}  // namespace orrery
