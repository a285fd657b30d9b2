// From logits to a token: mask, bias and penalties, then temperature, then top_k, min_p, typical_p and top_p, then one draw. A draw is a
// function of (seed, position, adjusted logits) alone, so a request gives the same tokens alone and among others, and after any
// restart (NUMERICS rule 13).
//
// The draw is Gumbel-max: argmax over the kept ids of logit / temperature + G(seed, position, id), which has exactly the softmax
// distribution. The noise belongs to an id and not to a rank, so a draft model that draws with the same noise often draws the same
// token: that is what makes speculation pay at temperatures above 0.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace orrery {

struct SamplingOptions {
  double temperature = 0;         // 0: the most likely token
  int64_t top_k = 0;              // keep the k most likely; 0 or less: all
  double top_p = 1;               // last: the fewest tokens that hold this much of what the other filters kept
  uint64_t seed = 0;
  double min_p = 0;               // drop what is less likely than min_p times the most likely
  double typical_p = 1;           // locally typical sampling, arXiv:2202.00666
  double presence_penalty = 0;    // subtracted from every id of the answer so far
  double frequency_penalty = 0;   // subtracted once per occurrence in the answer
  double repetition_penalty = 1;  // divides positive and multiplies negative logits of ids in prompt and answer
  std::vector<std::pair<int32_t, double>> logit_bias;
  int top_logprobs = -1;          // -1: no log-probabilities; 0: the chosen token's; n: the n most likely too
  int64_t min_tokens = 0;         // before so many tokens none of end_ids is drawn, unless the mask leaves nothing else
  std::vector<int32_t> end_ids;
};

struct TokenLogprob {
  int32_t id = -1;
  float logprob = 0;
};

struct SampledToken {
  int32_t id = -1;                            // -1: nothing could be drawn (every allowed logit is NaN or -inf)
  float logprob = 0;                          // of the raw softmax, before mask, bias, penalties and filters
  std::span<const TokenLogprob> top_logprobs; // descending, ties by id; valid until the scratch is used again
};

/// Bit i % 64 of word i / 64 allows id i; ids beyond the last word are not allowed. Empty: every id.
using TokenMask = std::span<const uint64_t>;

/// The working memory of draws: one per thread, shared by all its requests. Grows to the vocabulary at its first use.
class SamplerScratch {
 public:
  SamplerScratch() = default;

 private:
  friend class Sampler;
  friend SampledToken token_logprobs(std::span<const float>, int32_t, int, SamplerScratch*);
  struct Candidate {
    float logit;
    int32_t id;
  };
  void resize(size_t vocab_size);
  std::vector<float> logits_, block_max_, weights_;
  std::vector<Candidate> candidates_;
  std::vector<TokenLogprob> top_;
};

/// One request's stream of draws: its options and, where a penalty asks for them, the counts of its tokens.
class Sampler {
 public:
  /// `tokens_max`: how many different ids prompt and answer can have; room for the counts is taken here, so that later calls
  /// make no heap call. 0: grow as needed.
  explicit Sampler(SamplingOptions options, int64_t tokens_max = 0);

  /// Prompt tokens count for the repetition penalty alone.
  void add_prompt(std::span<const int32_t> ids);

  /// The token for `position`. Ties go to the smaller id; NaN and -inf are never drawn. Does not change the sampler.
  /// Cost: a few passes over the vocabulary; never a full sort unless top_p keeps most of it.
  SampledToken sample(std::span<const float> logits, int64_t position, TokenMask mask, SamplerScratch* scratch) const;

  /// The token became part of the answer; forget() undoes the last accept of this id (a draft that was not taken).
  void accept(int32_t id);
  void forget(int32_t id);

  const SamplingOptions& options() const { return options_; }

 private:
  struct Count {
    int32_t id = -1;
    int32_t answer = 0;
    bool in_prompt = false;
  };
  Count& count_of(int32_t id);
  void rehash(size_t size);
  void adjust(std::span<float> logits, TokenMask mask, bool may_end) const;
  int32_t draw(int64_t position, SamplerScratch* scratch) const;
  void keep_likely(SamplerScratch* scratch, float top) const;

  SamplingOptions options_;
  bool counts_tokens_ = false;
  int64_t num_accepted_ = 0;
  std::vector<Count> counts_;  // open addressing, a power of two
  size_t num_counts_ = 0;
};

/// The log-probability of `id` under `logits`, and of the `num_top` most likely: for echoed prompts.
SampledToken token_logprobs(std::span<const float> logits, int32_t id, int num_top, SamplerScratch* scratch);

/// The seed of choice `index` of a request with n or best_of above 1: its own seed for index 0, else an independent one.
uint64_t choice_seed(uint64_t seed, int64_t index);

}  // namespace orrery
