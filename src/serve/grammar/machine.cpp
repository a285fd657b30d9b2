#include "serve/grammar/machine.h"

#include <algorithm>
#include <set>

namespace orrery::grammar {
namespace {

// An ambiguous grammar may hold many stacks at once. Beyond this the later ones are dropped: each stack can reach an end by itself, so
// fewer texts are allowed, never more, and never none.
constexpr size_t kStacksMax = 512;
constexpr size_t kMaskKeyMax = 512;

}  // namespace

void Machine::clear() {
  frames_.assign(2, Frame{0, 0, 0});
  frame_ids_.clear();
  sets_.clear();
  next_.clear();
  set_ids_.clear();
  intern({});  // kDead
}

uint32_t Machine::push(uint32_t stack, uint32_t state) {
  const uint64_t key = uint64_t{stack} << 32 | state;
  const auto [at, added] = frame_ids_.try_emplace(key, static_cast<uint32_t>(frames_.size()));
  if (added) frames_.push_back({stack, state, frames_[stack].depth + 1});
  return at->second;
}

// Follows calls and returns until every top reads a byte next.
void Machine::close(std::vector<Top> work, Set* set) {
  std::set<Top> seen;
  while (!work.empty()) {
    const Top top = work.back();
    work.pop_back();
    const Automaton::State& state = automaton_.states[top.state];
    if (frames_[top.stack].depth + state.need_depth > depth_max_ || seen.size() >= kStacksMax || !seen.insert(top).second) continue;
    if (state.num_edges > 0) set->tops.push_back(top);
    if (state.accepts) {
      if (top.stack == kRoot)
        set->can_finish = true;
      else if (top.stack == kUnknown)
        set->escaped = true;
      else
        work.push_back({frames_[top.stack].state, frames_[top.stack].parent});
    }
    for (const Automaton::Call& call : automaton_.calls_of(top.state))
      work.push_back({automaton_.starts[call.rule], call.tail ? top.stack : push(top.stack, call.target)});
  }
  std::sort(set->tops.begin(), set->tops.end());
}

Machine::SetId Machine::intern(Set set) {
  uint64_t hash = set.can_finish * 2 + set.escaped;
  for (const Top& top : set.tops) {
    hash = (hash ^ (uint64_t{top.state} << 32 | top.stack)) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 31;
  }
  const auto [begin, end] = set_ids_.equal_range(hash);
  for (auto at = begin; at != end; ++at) {
    const Set& other = this->at(at->second);
    if (other.tops == set.tops && other.can_finish == set.can_finish && other.escaped == set.escaped) return at->second;
  }
  const auto id = static_cast<SetId>(sets_.size());
  sets_.push_back(std::move(set));
  next_.push_back(std::make_unique<std::array<int32_t, 256>>());
  next_.back()->fill(-1);
  set_ids_.emplace(hash, id);
  return id;
}

Machine::SetId Machine::start() {
  Set set;
  close({{automaton_.starts[0], kRoot}}, &set);
  return intern(std::move(set));
}

Machine::SetId Machine::start_at(uint32_t state) {
  Set set;
  set.tops.push_back({state, kUnknown});
  return intern(std::move(set));
}

Machine::SetId Machine::compute_step(SetId from, uint8_t byte) {
  std::vector<Top> work;
  for (const Top& top : at(from).tops) {
    for (const Automaton::Edge& edge : automaton_.edges_of(top.state)) {
      if (byte < edge.low) break;
      if (byte > edge.high) continue;
      work.push_back({edge.target, top.stack});
      break;
    }
  }
  SetId to = kDead;
  if (!work.empty()) {
    Set set;
    close(std::move(work), &set);
    if (set.alive()) to = intern(std::move(set));
  }
  return (*next_[static_cast<size_t>(from)])[byte] = to;
}

std::vector<uint32_t> Machine::mask_key(SetId id) const {
  const Set& set = at(id);
  std::vector<std::vector<uint32_t>> stacks;
  size_t total = 0;
  for (const Top& top : set.tops) {
    std::vector<uint32_t> classes = {automaton_.states[top.state].mask_class};
    for (uint32_t stack = top.stack; stack != kRoot; stack = frames_[stack].parent) classes.push_back(automaton_.states[frames_[stack].state].mask_class);
    total += classes.size() + 1;
    if (total > kMaskKeyMax) return {};
    stacks.push_back(std::move(classes));
  }
  std::sort(stacks.begin(), stacks.end());
  stacks.erase(std::unique(stacks.begin(), stacks.end()), stacks.end());
  std::vector<uint32_t> key = {set.can_finish};
  for (const auto& stack : stacks) {
    key.push_back(static_cast<uint32_t>(stack.size()));
    key.insert(key.end(), stack.begin(), stack.end());
  }
  return key;
}

uint32_t Machine::depth(SetId set) const {
  uint32_t deepest = 0;
  for (const Top& top : at(set).tops) deepest = std::max(deepest, frames_[top.stack].depth);
  return deepest;
}

Machine::Written Machine::write(SetId id) const {
  Written written;
  written.can_finish = at(id).can_finish;
  for (const Top& top : at(id).tops) {
    std::vector<uint32_t> states = {top.state};
    for (uint32_t stack = top.stack; stack != kRoot; stack = frames_[stack].parent) states.push_back(frames_[stack].state);
    written.stacks.push_back(std::move(states));
  }
  return written;
}

Machine::SetId Machine::read(const Written& written) {
  Set set;
  set.can_finish = written.can_finish;
  for (const auto& states : written.stacks) {
    uint32_t stack = kRoot;
    for (size_t i = states.size(); i-- > 1;) stack = push(stack, states[i]);
    set.tops.push_back({states[0], stack});
  }
  std::sort(set.tops.begin(), set.tops.end());
  return intern(std::move(set));
}

}  // namespace orrery::grammar
