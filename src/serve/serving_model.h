// A model loaded to serve: its plan, the arena with weights and paged cache, the compute threads, and one forward pass over whatever
// batch was written into the batch fields. Who is in the batch is decided by the generator (one text) or the engine (many).
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/kernel.h"
#include "checkpoint/model_source.h"
#include "planner/serving_plan.h"
#include "runtime/arena.h"
#include "runtime/executor.h"

namespace orrery {

struct ServingModelOptions {
  int num_threads = 0;        // 0: every core
  int64_t max_context = 0;    // tokens a sequence may reach; 0: the model's
  DType compute_dtype = DType::kBF16;
  int64_t max_tokens = 512;   // rows of one forward
  int64_t max_sequences = 1;  // of one forward
  int64_t max_rows = 0;       // rows whose logits one forward gives; 0: max_sequences
  int64_t kv_blocks = 0;      // of the cache; 0: max_context for every sequence
  bool kv_int8 = false;       // keys and values in 8 bits, not in the compute dtype
};

class ServingModel {
 public:
  /// Plans, allocates, loads the weights. `pool`: threads to share with another model of this process; null: its own.
  /// Errors: those of the plan, the arena and the source.
  ServingModel(const ModelSource& source, const ServingModelOptions& options, ThreadPool* pool = nullptr);

  const ServingPlan& plan() const { return plan_; }
  const ModelConfig& config() const { return plan_.options.model; }
  Executor& executor() { return executor_; }
  ThreadPool& pool() { return *pool_; }
  int64_t arena_bytes() const { return arena_.bytes(); }

  /// A field of the next batch, to be filled before forward().
  template <typename T>
  T* field(BatchField name) const {
    return reinterpret_cast<T*>(arena_.data() + plan_.memory.batch_offset[static_cast<size_t>(name)]);
  }
  /// T tokens of S sequences; logits for M rows. The bits of a row do not depend on the other rows (NUMERICS rule 13).
  void forward(int64_t num_tokens, int64_t num_sequences, int64_t num_rows);
  /// Logits of the row-th gathered row, [vocab_size], valid until the next forward().
  std::span<const float> logits(int64_t row) const;
  /// What the head read for that row: the final hidden state, [hidden_size], as f32 in `out`.
  void hidden(int64_t row, std::span<float> out) const;

 private:
  struct Machine;
  ServingModel(const ModelSource& source, const ServingModelOptions& options, ThreadPool* pool, const Machine& machine);
  void load_weights(const ModelSource& source, const KernelContext& context);
  void load_quantized(const ModelSource& source, const ParameterSpec& spec, const std::vector<PackedSegment>& segments, std::byte* packed);

  ServingPlan plan_;
  std::unique_ptr<ThreadPool> own_pool_;
  ThreadPool* pool_;
  Arena arena_;
  Executor executor_;
  ActionBinding binding_;
  ValueId hidden_ = kNoValue;
};

/// Bytes of one cache block of this model under these options.
int64_t kv_block_bytes(const ModelSource& source, const ServingModelOptions& options);

}  // namespace orrery
