// Which window a global sample index reads: a keyed permutation of the windows of a source, and the rule that mixes sources.
// Both are functions of integers with no state to save (NUMERICS rules 10 and 12).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace orrery {

/// A permutation of [0, count): eight Feistel rounds over the smallest even number of bits that holds count - 1, walking the
/// cycle until the value falls below count (at most four steps in the mean). Round r maps (left, right) to
/// (right, left ^ F_r(right)), F_r(x) = the low half-width bits of word 0 of Philox group (r << 32 | x) of the stream
/// (seed, kDataOrder, op id = source, step = epoch).
class WindowPermutation {
 public:
  struct Key {
    uint64_t seed = 0;
    uint32_t source = 0;
    uint32_t epoch = 0;
  };
  WindowPermutation(uint64_t count, Key key);
  /// Needs index < count.
  uint64_t operator()(uint64_t index) const;

 private:
  uint64_t round_trip(uint64_t value) const;
  uint64_t count_;
  Key key_;
  int half_bits_;
};

/// Mixes K sources by fixed shares so that for every prefix of g samples, source k has been taken within
/// 1 - 1/(2K-2) of g * share_k times (less than one sample).
///
/// Rule  Shares are units/period, integers. Within a period, step t = 1..period takes, among the sources whose debt
///       t*units_k - taken_k*period is at least period/(2K-2), the one whose next deadline, the time t' at which
///       t'*units_k reaches (taken_k + 1 - 1/(2K-2))*period, is earliest (ties: the lower k). After a period every source has
///       been taken exactly units_k times, so the answer for any g is the one for g mod period plus whole periods: a table, no
///       state.
/// Source  Tijdeman 1980, "The chairman assignment problem", Discrete Mathematics 32, which proves the bound.
class Mixture {
 public:
  /// Weights are turned into units: exactly, when all are multiples of 1e-6 and the reduced period is at most 131,072; else
  /// rounded to a period of 65,536 (largest remainder, each source at least one).
  /// Errors  kInvalidConfig: a weight that is not finite and positive, or more than 1,024 sources.
  explicit Mixture(std::span<const double> weights);

  struct Pick {
    uint32_t source;
    uint64_t ordinal;  // how many samples of this source came before
  };
  Pick pick(uint64_t global_sample) const;
  std::span<const uint64_t> units() const { return units_; }
  uint64_t period() const { return period_; }

 private:
  void fill_table();
  struct Step {
    uint32_t source;
    uint32_t ordinal;
  };
  std::vector<uint64_t> units_;
  uint64_t period_ = 0;
  std::vector<Step> steps_;
};

}  // namespace orrery
