// What a change of a model's weights costs: both forms read the same tokens and their next-token distributions are compared. Not a benchmark
// of answers; that is `orrery eval`.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "checkpoint/model_source.h"

namespace orrery {

struct ModelComparison {
  int64_t num_tokens = 0;
  double reference_loss = 0, candidate_loss = 0;  // mean cross-entropy of the next token, nats
  double divergence = 0;  // mean Kullback-Leibler divergence of the candidate's distribution from the reference's, nats
  double same_top = 0;    // share of positions at which both have the same most probable token
};

struct ComparisonOptions {
  int num_threads = 0;
  int64_t window_tokens = 512;  // tokens read in one context; the second half of each window is scored, as llama-perplexity does
};

/// Reads `ids` in windows, each alone; a last window that is not full is left out. `bos`: replaces the first token of a window (-1: nothing does).
/// Errors: kInvalidArgument: vocabularies differ, or there is no whole window.
ModelComparison compare_models(const ModelSource& reference, const ModelSource& candidate, std::span<const int32_t> ids, int32_t bos, const ComparisonOptions& options);

/// `count` tokens that `source` writes itself at temperature 1, in texts of `window_tokens` that begin with `start`: something to compare on where
/// no text is at hand.
std::vector<int32_t> sample_own_text(const ModelSource& source, int32_t start, int64_t count, uint64_t seed, const ComparisonOptions& options);

}  // namespace orrery
