// From logits to a token. A draw is a function of (seed, position) alone, so a request gives the same tokens alone and among
// others, and after any restart (NUMERICS rule 13).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace orrery {

struct SamplingOptions {
  double temperature = 0;  // 0: the most likely token
  int64_t top_k = 0;       // keep the k most likely; 0: all
  double top_p = 1;        // then the fewest tokens that hold this much probability
  uint64_t seed = 0;
};

/// The scratch of one stream of draws, reused between tokens.
class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options) : options_(options) {}
  /// The token for position `position`. Ties go to the smaller id; logits that are NaN are never drawn.
  /// Cost: linear in the vocabulary, plus a partial sort when top_k or top_p cut.
  int32_t draw(std::span<const float> logits, int64_t position);

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };
  SamplingOptions options_;
  std::vector<Candidate> candidates_;
};

}  // namespace orrery
