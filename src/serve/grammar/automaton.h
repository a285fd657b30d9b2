// Rules as deterministic automata over bytes and calls of other rules; together a pushdown automaton. Internal to src/serve/grammar.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "serve/grammar/expression.h"

namespace orrery::grammar {

/// States of all rules in one numbering. From each, an accepting state can be reached.
struct Automaton {
  struct Edge {
    uint8_t low, high;
    uint32_t target;
  };
  struct Call {
    uint32_t rule;
    uint32_t target;  // where it goes on when the rule is done
    bool tail;        // target accepts and has nothing after it: no frame is needed
  };
  struct State {
    uint32_t first_edge = 0, num_edges = 0, first_call = 0, num_calls = 0;
    uint32_t need_depth = 0;  // frames that the shortest-stacked way to the end of the rule pushes
    uint32_t mask_class = 0;  // equal for states that no text of a token's length tells apart
    bool accepts = false;
  };
  std::vector<State> states;
  std::vector<Edge> edges;
  std::vector<Call> calls;
  std::vector<uint32_t> starts;  // by rule

  std::span<const Edge> edges_of(uint32_t state) const { return {edges.data() + states[state].first_edge, states[state].num_edges}; }
  std::span<const Call> calls_of(uint32_t state) const { return {calls.data() + states[state].first_call, states[state].num_calls}; }
};

/// Errors: kInvalidArgument for a grammar that matches nothing or a rule without a body, kUnsupported for left recursion and limits.
Automaton build_automaton(const Source& source, const GrammarVocabulary& vocabulary);

}  // namespace orrery::grammar
