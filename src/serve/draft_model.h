// Drafts from a smaller model: it reads what the target has and goes on with the request's own noise, so its guesses are often the target's
// draws (NUMERICS rule 13: they only count where they are). It has a cache of its own, a place per sequence; its bits matter to nobody.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "serve/sampling/sampler.h"
#include "serve/serving_model.h"

namespace orrery {

/// Whether drafting pays, learnt from the steps themselves: seconds per token with and without, each tried anew from time to time, because load
/// and texts change. Decides about speed alone.
class DraftGovernor {
 public:
  /// For the next step.
  bool use() const;
  /// A step that decoded: with or without drafts, what it and its drafts took, the tokens it gave.
  void record(bool drafted, double seconds, int64_t tokens);

 private:
  static constexpr int64_t kTrialSteps = 4, kStepsBetweenTrials = 64;
  double seconds_per_token_[2] = {0, 0};  // exponential means
  int64_t steps_[2] = {0, 0};
};

class DraftModel {
 public:
  /// `model` was made with max_sequences places of max_context tokens each and outlives this.
  explicit DraftModel(ServingModel& model);

  struct Request {
    uint64_t id = 0;
    const std::vector<int32_t>* tokens = nullptr;  // prompt and answer so far
    const Sampler* sampler = nullptr;
    int64_t limit = 0;  // most tokens to propose
  };
  int64_t num_places() const { return static_cast<int64_t>(places_.size()); }
  /// At most num_places() requests; a draft for each, perhaps empty. Tokens that a place has not read yet are read first, a whole prompt
  /// for a new one.
  std::vector<std::vector<int32_t>> propose(std::span<const Request> requests);

 private:
  struct Place {
    uint64_t id = 0;
    bool taken = false;
    std::vector<int32_t> read;  // tokens whose keys and values are in the cache
  };
  struct Piece {
    size_t place = 0;
    std::vector<int32_t> tokens;
  };
  size_t place_of(uint64_t id, std::span<const Request> requests);
  void forward(std::span<const Piece> pieces);

  ServingModel& model_;
  std::vector<Place> places_;
  SamplerScratch scratch_;
};

}  // namespace orrery
