// Expressions to nondeterministic automata (Thompson), subset construction per rule, removal of dead states, left recursion, and the
// classes of states that masks share.
#include "serve/grammar/automaton.h"

#include <algorithm>
#include <map>
#include <queue>
#include <unordered_map>

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace orrery::grammar {
namespace {

constexpr uint32_t kNone = ~0u;

struct Nfa {
  struct Edge {
    uint8_t low, high;
    uint32_t target;
  };
  struct State {
    std::vector<Edge> edges;
    std::vector<std::pair<uint32_t, uint32_t>> calls;  // rule, target
    std::vector<uint32_t> empty;
  };
  std::vector<State> states;
};

class Builder {
 public:
  Builder(const Source& source, const GrammarVocabulary& vocabulary) : source_(source), vocabulary_(vocabulary), limits_(source.limits()) {
    for (const Source::Rule& rule : source.rules()) {
      if (rule.expression < 0) throw Error(ErrorCode::kInvalidArgument, "grammar: the rule '{}' is used and not defined", rule.name);
      bodies_.push_back(rule.expression);
    }
  }

  Automaton build() {
    for (size_t rule = 0; rule < bodies_.size(); ++rule) {  // bodies_ grows: repeated parts become rules
      Nfa nfa;
      nfa_ = &nfa;
      const uint32_t start = new_state(), end = new_state();
      emit(bodies_[rule], start, end, 0);
      determinize(nfa, start, end);
    }
    trim();
    reject_left_recursion();
    classify();
    return std::move(automaton_);
  }

 private:
  uint32_t new_state() {
    if (++num_nfa_states_ > limits_.states_max)
      throw Error(ErrorCode::kUnsupported, "the grammar needs more than {} states; use smaller repeat counts or fewer alternatives", limits_.states_max);
    nfa_->states.emplace_back();
    return static_cast<uint32_t>(nfa_->states.size()) - 1;
  }

  void emit(int index, uint32_t from, uint32_t to, int depth) {
    if (depth > 2000) throw Error(ErrorCode::kUnsupported, "the grammar is nested deeper than 2000 expressions");
    const Expression& e = source_.at(index);
    switch (e.kind) {
      case Expression::Kind::kBytes: {
        if (e.bytes.empty()) return link(from, to);
        for (size_t i = 0; i < e.bytes.size(); ++i) {
          const uint32_t next = i + 1 == e.bytes.size() ? to : new_state();
          const auto byte = static_cast<uint8_t>(e.bytes[i]);
          nfa_->states[from].edges.push_back({byte, byte, next});
          from = next;
        }
        return;
      }
      case Expression::Kind::kSet:
        for (const auto& [low, high] : e.set) emit_range(low, high, from, to);
        return;
      case Expression::Kind::kSequence: {
        if (e.children.empty()) return link(from, to);
        for (size_t i = 0; i < e.children.size(); ++i) {
          const uint32_t next = i + 1 == e.children.size() ? to : new_state();
          emit(e.children[i], from, next, depth + 1);
          from = next;
        }
        return;
      }
      case Expression::Kind::kChoice:
        for (const int child : e.children) {
          // A start of its own: a loop inside one alternative must not lead into another.
          const uint32_t begin = new_state();
          link(from, begin);
          emit(child, begin, to, depth + 1);
        }
        return;
      case Expression::Kind::kRepeat: return emit_repeat(e, from, to, depth);
      case Expression::Kind::kRule: nfa_->states[from].calls.push_back({static_cast<uint32_t>(e.rule), to}); return;
    }
  }

  // What is copied often and is not small becomes a rule, and the copies are calls of it.
  int repeated(const Expression& e) {
    const int child = e.children[0];
    const Expression& body = source_.at(child);
    const uint32_t copies = e.max == kUnbounded ? e.min + 1 : e.max;
    const bool small = body.kind == Expression::Kind::kRule || (body.kind == Expression::Kind::kSet && (body.set.empty() || body.set.back().second < 0x80)) ||
                       (body.kind == Expression::Kind::kBytes && body.bytes.size() < 4);
    if (copies <= 4 || small) return -1;
    const auto [at, added] = rule_of_repeated_.try_emplace(child, static_cast<int>(bodies_.size()));
    if (added) bodies_.push_back(child);
    return at->second;
  }

  void emit_repeat(const Expression& e, uint32_t from, uint32_t to, int depth) {
    const int rule = repeated(e);
    const auto copy = [&](uint32_t begin, uint32_t end) {
      if (rule >= 0)
        nfa_->states[begin].calls.push_back({static_cast<uint32_t>(rule), end});
      else
        emit(e.children[0], begin, end, depth + 1);
    };
    for (uint32_t i = 0; i < e.min; ++i) {
      const uint32_t next = new_state();
      copy(from, next);
      from = next;
    }
    if (e.max == kUnbounded) {
      const uint32_t loop = new_state(), back = new_state();
      link(from, loop);
      copy(loop, back);
      link(back, loop);
      link(loop, to);
      return;
    }
    for (uint32_t i = e.min; i < e.max; ++i) {
      link(from, to);
      const uint32_t begin = new_state(), next = new_state();
      link(from, begin);
      copy(begin, next);
      from = next;
    }
    link(from, to);
  }

  void link(uint32_t from, uint32_t to) { nfa_->states[from].empty.push_back(to); }

  // A range of code points as ranges of UTF-8 bytes: cut until all bytes but the last prefix run over their full width.
  void emit_range(uint32_t low, uint32_t high, uint32_t from, uint32_t to) {
    static constexpr uint32_t kLengthMax[] = {0x7F, 0x7FF, 0xFFFF, 0x10FFFF};
    for (const uint32_t limit : kLengthMax) {
      if (low <= limit && limit < high) {
        emit_range(low, limit, from, to);
        return emit_range(limit + 1, high, from, to);
      }
    }
    for (uint32_t bits = 6; bits <= 18 && high > 0x7F; bits += 6) {
      const uint32_t mask = (1u << bits) - 1;
      if ((low & ~mask) == (high & ~mask)) continue;
      if ((low & mask) != 0) {
        emit_range(low, low | mask, from, to);
        return emit_range((low | mask) + 1, high, from, to);
      }
      if ((high & mask) != mask) {
        emit_range(low, (high & ~mask) - 1, from, to);
        return emit_range(high & ~mask, high, from, to);
      }
    }
    std::string first, last;
    append_utf8(&first, low);
    append_utf8(&last, high);
    for (size_t i = 0; i < first.size(); ++i) {
      const uint32_t next = i + 1 == first.size() ? to : new_state();
      nfa_->states[from].edges.push_back({static_cast<uint8_t>(first[i]), static_cast<uint8_t>(last[i]), next});
      from = next;
    }
  }

  void spend(size_t steps) {
    work_ += steps;
    if (work_ > limits_.work_max) throw Error(ErrorCode::kUnsupported, "the grammar takes more than {} steps to compile; its repeats or alternatives overlap too much", limits_.work_max);
  }

  void determinize(const Nfa& nfa, uint32_t start, uint32_t end) {
    std::map<std::vector<uint32_t>, uint32_t> ids;
    std::vector<std::vector<uint32_t>> subsets;
    std::vector<bool> seen(nfa.states.size());
    const auto base = static_cast<uint32_t>(automaton_.states.size());
    // The closure by empty links; only states with edges, calls or the end tell subsets apart.
    const auto id_of = [&](std::vector<uint32_t> states) {
      std::vector<uint32_t> visited;
      while (!states.empty()) {
        const uint32_t s = states.back();
        states.pop_back();
        if (seen[s]) continue;
        seen[s] = true;
        visited.push_back(s);
        for (const uint32_t next : nfa.states[s].empty) states.push_back(next);
      }
      spend(visited.size());
      std::vector<uint32_t> subset;
      for (const uint32_t s : visited) {
        seen[s] = false;
        if (s == end || !nfa.states[s].edges.empty() || !nfa.states[s].calls.empty()) subset.push_back(s);
      }
      std::sort(subset.begin(), subset.end());
      const auto [at, added] = ids.try_emplace(subset, base + static_cast<uint32_t>(subsets.size()));
      if (added) {
        if (at->second >= limits_.states_max)
          throw Error(ErrorCode::kUnsupported, "the grammar needs more than {} states; use smaller repeat counts or fewer alternatives", limits_.states_max);
        subsets.push_back(std::move(subset));
      }
      return at->second;
    };
    automaton_.starts.push_back(id_of({start}));
    for (size_t i = 0; i < subsets.size(); ++i) {
      const std::vector<uint32_t> subset = subsets[i];
      Automaton::State state;
      state.first_edge = static_cast<uint32_t>(automaton_.edges.size());
      state.first_call = static_cast<uint32_t>(automaton_.calls.size());
      std::vector<Nfa::Edge> edges;
      std::map<uint32_t, std::vector<uint32_t>> calls;
      for (const uint32_t s : subset) {
        state.accepts = state.accepts || s == end;
        edges.insert(edges.end(), nfa.states[s].edges.begin(), nfa.states[s].edges.end());
        for (const auto& [rule, target] : nfa.states[s].calls) calls[rule].push_back(target);
      }
      std::vector<bool> cut(257);
      for (const Nfa::Edge& edge : edges) cut[edge.low] = cut[edge.high + 1u] = true;
      for (unsigned low = 0; low < 256 && !edges.empty();) {
        unsigned high = low;
        while (high < 255 && !cut[high + 1]) ++high;
        std::vector<uint32_t> targets;
        spend(edges.size() / 8 + 1);
        for (const Nfa::Edge& edge : edges)
          if (edge.low <= low && high <= edge.high) targets.push_back(edge.target);
        if (!targets.empty()) {
          const uint32_t target = id_of(std::move(targets));
          Automaton::Edge* last = automaton_.edges.size() > state.first_edge ? &automaton_.edges.back() : nullptr;
          if (last != nullptr && last->target == target && last->high + 1u == low)
            last->high = static_cast<uint8_t>(high);
          else
            automaton_.edges.push_back({static_cast<uint8_t>(low), static_cast<uint8_t>(high), target});
        }
        low = high + 1;
      }
      for (auto& [rule, targets] : calls) automaton_.calls.push_back({rule, id_of(std::move(targets)), false});
      state.num_edges = static_cast<uint32_t>(automaton_.edges.size()) - state.first_edge;
      state.num_calls = static_cast<uint32_t>(automaton_.calls.size()) - state.first_call;
      automaton_.states.push_back(state);
    }
  }

  // Removes edges on bytes that are no token by themselves, then everything from which no end can be reached.
  void trim() {
    Automaton& a = automaton_;
    std::vector<Automaton::Edge> covered;
    for (Automaton::State& state : a.states) {
      const auto first = static_cast<uint32_t>(covered.size());
      for (const Automaton::Edge& edge : std::vector<Automaton::Edge>(a.edges.begin() + state.first_edge, a.edges.begin() + state.first_edge + state.num_edges)) {
        for (unsigned byte = edge.low; byte <= edge.high; ++byte) {
          if (!vocabulary_.has_byte(static_cast<uint8_t>(byte))) continue;
          if (covered.size() > first && covered.back().target == edge.target && covered.back().high + 1u == byte)
            covered.back().high = static_cast<uint8_t>(byte);
          else
            covered.push_back({static_cast<uint8_t>(byte), static_cast<uint8_t>(byte), edge.target});
        }
      }
      state.first_edge = first;
      state.num_edges = static_cast<uint32_t>(covered.size()) - first;
    }
    a.edges = std::move(covered);
    for (Automaton::Call& call : a.calls) {
      const Automaton::State& target = a.states[call.target];
      call.tail = target.accepts && target.num_edges == 0 && target.num_calls == 0;
    }
    find_need_depth();
    if (need_[a.starts[0]] == kNone || need_[a.starts[0]] > limits_.depth_max)
      throw Error(ErrorCode::kInvalidArgument, "the grammar matches no text (that this vocabulary can write within {} nested rules)", limits_.depth_max);
    Automaton live;
    live.starts = a.starts;
    live.states = a.states;
    for (size_t s = 0; s < a.states.size(); ++s) {
      Automaton::State& state = live.states[s];
      state.need_depth = need_[s];
      state.first_edge = static_cast<uint32_t>(live.edges.size());
      state.first_call = static_cast<uint32_t>(live.calls.size());
      for (const Automaton::Edge& edge : a.edges_of(static_cast<uint32_t>(s)))
        if (need_[edge.target] != kNone) live.edges.push_back(edge);
      for (const Automaton::Call& call : a.calls_of(static_cast<uint32_t>(s)))
        if (need_[call.target] != kNone && need_[a.starts[call.rule]] != kNone) live.calls.push_back(call);
      state.num_edges = static_cast<uint32_t>(live.edges.size()) - state.first_edge;
      state.num_calls = static_cast<uint32_t>(live.calls.size()) - state.first_call;
    }
    a = std::move(live);
  }

  // The least over all ways to the end of the rule of the most frames on the way, smallest first (a minimax Dijkstra). kNone: no way.
  void find_need_depth() {
    const Automaton& a = automaton_;
    const size_t count = a.states.size();
    std::vector<std::vector<uint32_t>> before(count);  // by edge
    std::vector<std::vector<std::pair<uint32_t, uint32_t>>> before_call(count), call_sites(a.starts.size());  // state, call
    for (uint32_t s = 0; s < count; ++s) {
      for (const Automaton::Edge& edge : a.edges_of(s)) before[edge.target].push_back(s);
      for (uint32_t c = a.states[s].first_call; c < a.states[s].first_call + a.states[s].num_calls; ++c) {
        before_call[a.calls[c].target].push_back({s, c});
        call_sites[a.calls[c].rule].push_back({s, c});
      }
    }
    std::unordered_map<uint32_t, std::vector<uint32_t>> rules_of_start;
    for (uint32_t rule = 0; rule < a.starts.size(); ++rule) rules_of_start[a.starts[rule]].push_back(rule);
    need_.assign(count, kNone);
    using Entry = std::pair<uint32_t, uint32_t>;
    std::priority_queue<Entry, std::vector<Entry>, std::greater<>> queue;
    for (uint32_t s = 0; s < count; ++s)
      if (a.states[s].accepts) queue.push({0, s});
    const auto offer_call = [&](const std::pair<uint32_t, uint32_t>& site) {
      const Automaton::Call& call = a.calls[site.second];
      const uint32_t callee = need_[a.starts[call.rule]], rest = need_[call.target];
      if (callee != kNone && rest != kNone && need_[site.first] == kNone) queue.push({std::max(callee + (call.tail ? 0 : 1), rest), site.first});
    };
    while (!queue.empty()) {
      const auto [need, s] = queue.top();
      queue.pop();
      if (need_[s] != kNone) continue;
      need_[s] = need;
      for (const uint32_t p : before[s])
        if (need_[p] == kNone) queue.push({need, p});
      for (const auto& site : before_call[s]) offer_call(site);
      if (const auto at = rules_of_start.find(s); at != rules_of_start.end())
        for (const uint32_t rule : at->second)
          for (const auto& site : call_sites[rule]) offer_call(site);
    }
  }

  // A rule that may call itself before it has read a byte would push frames for ever.
  void reject_left_recursion() {
    const Automaton& a = automaton_;
    std::vector<bool>& nullable = nullable_;
    nullable.assign(a.starts.size(), false);
    std::vector<uint32_t> stamp(a.states.size());
    uint32_t now = 0;
    const auto reached = [&](uint32_t rule) {
      std::vector<uint32_t> states = {a.starts[rule]};
      stamp[a.starts[rule]] = ++now;
      for (size_t i = 0; i < states.size(); ++i) {
        for (const Automaton::Call& call : a.calls_of(states[i])) {
          if (!nullable[call.rule] || stamp[call.target] == now) continue;
          stamp[call.target] = now;
          states.push_back(call.target);
        }
      }
      spend(states.size());
      return states;
    };
    for (bool changed = true; changed;) {
      changed = false;
      for (uint32_t rule = 0; rule < a.starts.size(); ++rule) {
        if (nullable[rule]) continue;
        const auto states = reached(rule);
        if (!std::any_of(states.begin(), states.end(), [&](uint32_t s) { return a.states[s].accepts; })) continue;
        nullable[rule] = changed = true;
      }
    }
    std::vector<std::vector<uint32_t>> first_calls(a.starts.size());
    for (uint32_t rule = 0; rule < a.starts.size(); ++rule) {
      for (const uint32_t s : reached(rule))
        for (const Automaton::Call& call : a.calls_of(s)) first_calls[rule].push_back(call.rule);
    }
    std::vector<int> color(a.starts.size());  // 1: on the path, 2: done
    for (uint32_t root = 0; root < a.starts.size(); ++root) {
      std::vector<std::pair<uint32_t, size_t>> path;
      if (color[root] == 0) path.push_back({root, 0}), color[root] = 1;
      while (!path.empty()) {
        auto& [rule, next] = path.back();
        if (next == first_calls[rule].size()) {
          color[rule] = 2;
          path.pop_back();
          continue;
        }
        const uint32_t callee = first_calls[rule][next++];
        if (color[callee] == 1) {
          const std::string name = callee < source_.rules().size() ? source_.rules()[callee].name : "a repeated part";
          throw Error(ErrorCode::kUnsupported, "grammar: '{}' can begin with itself (left recursion); write it with a repeat, e.g. a ::= b (\"x\" b)*", name);
        }
        if (color[callee] == 0) color[callee] = 1, path.push_back({callee, 0});
      }
    }
  }

  // Rounds of refinement, one per byte of the longest token: states still together then allow the same tokens. A state with a call that
  // may read nothing stays alone, because the round count would not bound what happens behind that call.
  void classify() {
    Automaton& a = automaton_;
    const size_t count = a.states.size(), rounds = vocabulary_.token_bytes_max() + 1;
    const auto mix = [](uint64_t hash, uint64_t value) {
      hash = (hash ^ value) * 0x9E3779B97F4A7C15ull;
      return hash ^ (hash >> 29);
    };
    std::vector<uint32_t> current(count), next(count);
    std::vector<bool> alone(count);
    std::unordered_map<uint64_t, uint32_t> ids;
    for (uint32_t s = 0; s < count; ++s) {
      for (const Automaton::Call& call : a.calls_of(s)) alone[s] = alone[s] || nullable_[call.rule];
      const uint64_t key = alone[s] ? mix(1, s + 1) : mix(2, uint64_t{a.states[s].need_depth} * 2 + a.states[s].accepts);
      current[s] = ids.try_emplace(key, static_cast<uint32_t>(ids.size())).first->second;
    }
    size_t num_classes = ids.size();
    for (size_t round = 0; round < rounds; ++round) {
      ids.clear();
      for (uint32_t s = 0; s < count; ++s) {
        uint64_t key = mix(3, current[s]);
        if (!alone[s]) {
          for (const Automaton::Edge& edge : a.edges_of(s)) key = mix(mix(key, edge.low * 256u + edge.high), current[edge.target]);
          for (const Automaton::Call& call : a.calls_of(s)) key = mix(mix(key, 0x10000ull + call.rule * 2 + call.tail), current[call.target]);
        }
        next[s] = ids.try_emplace(key, static_cast<uint32_t>(ids.size())).first->second;
      }
      current.swap(next);
      if (ids.size() == num_classes) break;
      num_classes = ids.size();
      // Large automata: every state for itself rather than seconds of refinement.
      work_ += count;
      if (work_ > limits_.work_max) {
        for (uint32_t s = 0; s < count; ++s) current[s] = s;
        break;
      }
    }
    for (uint32_t s = 0; s < count; ++s) a.states[s].mask_class = current[s];
  }

  const Source& source_;
  const GrammarVocabulary& vocabulary_;
  const GrammarLimits& limits_;
  std::vector<int> bodies_;
  std::unordered_map<int, int> rule_of_repeated_;
  Nfa* nfa_ = nullptr;
  size_t num_nfa_states_ = 0, work_ = 0;
  Automaton automaton_;
  std::vector<uint32_t> need_;
  std::vector<bool> nullable_;
};

}  // namespace

Automaton build_automaton(const Source& source, const GrammarVocabulary& vocabulary) { return Builder(source, vocabulary).build(); }

}  // namespace orrery::grammar
