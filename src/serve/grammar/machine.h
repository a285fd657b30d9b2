// The pushdown automaton in motion: sets of stacks, made deterministic step by step and remembered. Internal to src/serve/grammar.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "serve/grammar/automaton.h"

namespace orrery::grammar {

/// A set of stacks is a number. Stacks share their lower frames; equal sets have equal numbers until clear().
class Machine {
 public:
  using SetId = int32_t;
  static constexpr SetId kDead = 0;
  static constexpr uint32_t kRoot = 0;     // the bottom of a whole answer
  static constexpr uint32_t kUnknown = 1;  // the bottom when only the top state is known

  struct Top {
    uint32_t state, stack;
    bool operator==(const Top&) const = default;
    auto operator<=>(const Top&) const = default;
  };
  struct Set {
    std::vector<Top> tops;      // states with edges, sorted
    bool can_finish = false;    // a whole answer ends here
    bool escaped = false;       // the unknown bottom was reached: what follows depends on what is below
    bool alive() const { return !tops.empty() || can_finish || escaped; }
  };
  /// A set with its stacks written out, which outlives clear(): each top state, then its frames from the top down.
  struct Written {
    std::vector<std::vector<uint32_t>> stacks;
    bool can_finish = false;
  };

  Machine(const Automaton& automaton, uint32_t depth_max) : automaton_(automaton), depth_max_(depth_max) { clear(); }

  SetId start();
  /// `state` alone on the unknown bottom, as a top: what it may call or return to is not added.
  SetId start_at(uint32_t state);
  SetId step(SetId set, uint8_t byte) {
    const int32_t known = (*next_[static_cast<size_t>(set)])[byte];
    return known >= 0 ? known : compute_step(set, byte);
  }
  const Set& at(SetId set) const { return sets_[static_cast<size_t>(set)]; }
  size_t size() const { return sets_.size(); }
  /// The set's stacks as classes of states (Automaton::State::mask_class): sets with equal keys allow the same tokens. Empty when long.
  std::vector<uint32_t> mask_key(SetId set) const;
  /// Frames of its deepest stack.
  uint32_t depth(SetId set) const;

  Written write(SetId set) const;
  SetId read(const Written& written);
  void clear();

 private:
  struct Frame {
    uint32_t parent, state, depth;
  };
  SetId compute_step(SetId set, uint8_t byte);
  uint32_t push(uint32_t stack, uint32_t state);
  void close(std::vector<Top> tops, Set* set);
  SetId intern(Set set);

  const Automaton& automaton_;
  uint32_t depth_max_;
  std::vector<Frame> frames_;
  std::unordered_map<uint64_t, uint32_t> frame_ids_;
  std::vector<Set> sets_;
  std::vector<std::unique_ptr<std::array<int32_t, 256>>> next_;
  std::unordered_multimap<uint64_t, SetId> set_ids_;
};

}  // namespace orrery::grammar
