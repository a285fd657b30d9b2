// Builds the forward block of a decoder from its ModelConfig: the only entrance to the model families. Each family is one file
// (gpt2.cpp, llama.cpp) on top of the parts they share (decoder_parts.h); see docs/adding_a_model.md.
#pragma once

#include "ir/block.h"
#include "ir/parallel_context.h"
#include "model/model_config.h"

namespace orrery {

/// kLoss: ids and targets in, token losses out (training and evaluation). kServe: keys and values go through the paged cache, and
/// logits are made for the rows that are asked for.
enum class ForwardMode : uint8_t { kLoss, kServe };

/// The part of a model that one pipeline stage computes; by default all of it.
struct ModelPart {
  bool embedding = true, head = true;  // head: the final norm and the loss
  int64_t first_layer = 0, end_layer = -1;  // layers [first, end); end -1: to the model's last
  bool operator==(const ModelPart&) const = default;
};

struct ForwardOptions {
  ForwardMode mode = ForwardMode::kLoss;
  ModelPart part;
  int64_t max_tokens = 0;    // bound of T
  int64_t max_segments = 0;  // bound of S
  ParallelContext parallel;  // kLoss only
  int64_t sequence_tokens = 0;  // of each sequence on this rank; where `parallel` shares tokens
  // kServe only.
  int64_t max_rows = 0;                 // bound of M: rows whose logits are wanted
  int64_t kv_blocks = 0;                // blocks of the cache
  int64_t kv_block_tokens = 0;          // tokens a block
  int64_t max_blocks_per_segment = 0;   // columns of the block table
  bool kv_int8 = false;                 // keys and values in 8 bits (ir/kv_format.h)
};

/// Errors: kInvalidConfig where the model or a sequence of `sequence_tokens` cannot be cut so: says which number does not divide, and what would.
void check_parallel(const ModelConfig& config, const ParallelContext& parallel, int64_t sequence_tokens);

/// Appends the forward of `config` to `phase` of `stage`, creating parameters, or, when the stage has them already (a second
/// phase of the same stage), reusing them by name. A part without embedding or head begins or ends at Stage::boundaries, in both phases
/// with the same values. Errors: kInvalidConfig from validate().
void build_forward(const ModelConfig& config, const ForwardOptions& options, Stage& stage, Phase phase);

}  // namespace orrery
