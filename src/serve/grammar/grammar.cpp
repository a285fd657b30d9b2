// Compiling and matching: the masks of single states, shared by all matchers of a grammar, and the masks of whole stacks, cached.
#include "serve/grammar/grammar.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <shared_mutex>

#include "base/error.h"
#include "serve/grammar/automaton.h"
#include "serve/grammar/machine.h"

namespace orrery {

using grammar::Automaton;
using grammar::Machine;
using grammar::Source;

namespace {

constexpr size_t kSetsMax = 8192;      // a matcher's remembered sets, about 1 KiB each
constexpr size_t kHistoryMax = 256;    // tokens that can be taken back

using Mask = std::vector<uint64_t>;

// What a state says about every token without knowing the stack below it, as in XGrammar (arXiv:2411.15100): accepted, refused, or
// dependent on what is below, because the token goes on behind the end of the state's rule.
struct StateMask {
  Mask accepted;
  std::vector<int32_t> dependent;  // first tokens of trie nodes, in the trie's order
};

void set_token(const GrammarVocabulary& vocabulary, int32_t token, uint64_t* mask) {
  for (; token >= 0; token = vocabulary.next_same(token)) mask[token / 64] |= uint64_t{1} << (token % 64);
}

}  // namespace

struct Grammar::Impl {
  Impl(Automaton a, std::shared_ptr<const GrammarVocabulary> v, const GrammarLimits& l)
      : automaton(std::move(a)), vocabulary(std::move(v)), limits(l), machine(automaton, l.depth_max) {}

  Automaton automaton;
  std::shared_ptr<const GrammarVocabulary> vocabulary;
  GrammarLimits limits;

  // Both caches are filled on demand, one thread at a time; what they hold never changes.
  std::shared_ptr<const StateMask> state_mask(uint32_t state) {
    std::lock_guard lock(mutex);
    const uint32_t mask_class = automaton.states[state].mask_class;
    if (const auto at = state_masks.find(mask_class); at != state_masks.end()) return at->second;
    auto mask = std::make_shared<StateMask>(make_state_mask(state));
    make_room(vocabulary->mask_words() * 8 + mask->dependent.size() * 4);
    state_masks.emplace(mask_class, mask);
    return mask;
  }
  std::shared_ptr<const Mask> stack_mask(const std::vector<uint32_t>& key) {
    std::lock_guard lock(mutex);
    const auto at = stack_masks.find(key);
    return at == stack_masks.end() ? nullptr : at->second;
  }
  void keep_stack_mask(std::vector<uint32_t> key, std::shared_ptr<const Mask> mask) {
    std::lock_guard lock(mutex);
    make_room(vocabulary->mask_words() * 8 + key.size() * 4);
    stack_masks.emplace(std::move(key), std::move(mask));
  }

 private:
  void make_room(size_t bytes) {
    cached_bytes += bytes;
    if (cached_bytes <= limits.mask_cache_bytes) return;
    stack_masks.clear();
    state_masks.clear();
    cached_bytes = bytes;
  }

  StateMask make_state_mask(uint32_t state) {
    if (machine.size() > kSetsMax) machine.clear();
    StateMask result;
    result.accepted.assign(vocabulary->mask_words(), 0);
    struct Level {
      Machine::SetId set;
      bool escaped;  // here or before
    };
    std::vector<Level> path(vocabulary->token_bytes_max() + 1);
    path[0] = {machine.start_at(state), false};
    const auto nodes = vocabulary->nodes();
    for (uint32_t i = 0; i < nodes.size();) {
      const GrammarVocabulary::Node& node = nodes[i];
      const Level& parent = path[node.depth - 1];
      const Machine::SetId set = machine.step(parent.set, node.byte);
      if (set == Machine::kDead) {
        if (parent.escaped)
          for (uint32_t n = i; n < node.end; ++n)
            if (nodes[n].token >= 0) result.dependent.push_back(nodes[n].token);
        i = node.end;
        continue;
      }
      path[node.depth] = {set, parent.escaped || machine.at(set).escaped};
      if (node.token >= 0) set_token(*vocabulary, node.token, result.accepted.data());
      ++i;
    }
    return result;
  }

  std::mutex mutex;
  Machine machine;  // for state masks
  std::map<uint32_t, std::shared_ptr<const StateMask>> state_masks;
  std::map<std::vector<uint32_t>, std::shared_ptr<const Mask>> stack_masks;
  size_t cached_bytes = 0;
};

namespace {

int choices(Source& source, std::string_view text) {
  const nlohmann::json list = nlohmann::json::parse(text, nullptr, false);
  if (!list.is_array() || list.empty() || !std::all_of(list.begin(), list.end(), [](const auto& item) { return item.is_string(); }))
    throw Error(ErrorCode::kInvalidArgument, "choice: wanted a non-empty JSON array of strings");
  std::vector<int> alternatives;
  for (const auto& item : list) alternatives.push_back(source.bytes(item.template get<std::string>()));
  return source.choice(std::move(alternatives));
}

}  // namespace

std::shared_ptr<const Grammar> Grammar::compile(GrammarKind kind, std::string_view text, std::shared_ptr<const GrammarVocabulary> vocabulary, const GrammarLimits& limits) {
  if (text.size() > limits.text_bytes_max)
    throw Error(ErrorCode::kUnsupported, "the grammar's text has {} bytes; at most {} are taken", text.size(), limits.text_bytes_max);
  Source source(limits);
  switch (kind) {
    case GrammarKind::kJsonSchema: source.define(0, grammar::parse_schema(source, text)); break;
    case GrammarKind::kJsonObject: source.define(0, grammar::any_object(source)); break;
    case GrammarKind::kRegex: source.define(0, grammar::parse_regex(source, text, false, grammar::plain_set)); break;
    case GrammarKind::kGbnf: grammar::parse_gbnf(source, text); break;
    case GrammarKind::kChoice: source.define(0, choices(source, text)); break;
  }
  Automaton automaton = grammar::build_automaton(source, *vocabulary);
  return std::shared_ptr<const Grammar>(new Grammar(std::make_unique<Impl>(std::move(automaton), std::move(vocabulary), limits)));
}

std::shared_ptr<const Grammar> Grammar::compile_tool_calls(std::span<const Tool> tools, const ToolForm& form, std::shared_ptr<const GrammarVocabulary> vocabulary,
                                                           const GrammarLimits& limits) {
  if (tools.empty()) throw Error(ErrorCode::kInvalidArgument, "a forced tool call needs tools");
  Source source(limits);
  std::vector<int> alternatives;
  for (const Tool& tool : tools) {
    int arguments = -1;
    try {
      arguments = tool.parameters.empty() ? grammar::any_object(source) : grammar::parse_schema(source, tool.parameters);
    } catch (const Error& error) {
      throw Error(error.code(), "tool '{}': parameters: {}", tool.name, error.what());
    }
    alternatives.push_back(source.sequence({source.bytes(fmt::format("{}{{{}: {}, {}: ", form.begin, grammar::json_quoted(form.name_key), grammar::json_quoted(tool.name), grammar::json_quoted(form.arguments_key))),
                                            arguments, source.bytes("}" + form.end)}));
  }
  int calls = source.choice(std::move(alternatives));
  if (form.parallel) {
    const int rule = source.add_rule("call");
    source.define(rule, calls);
    calls = source.sequence({source.rule(rule), source.repeat(source.sequence({source.bytes(form.separator), source.rule(rule)}), 0, 15)});
  }
  source.define(0, source.sequence({source.bytes(form.open), calls, source.bytes(form.close)}));
  Automaton automaton = grammar::build_automaton(source, *vocabulary);
  return std::shared_ptr<const Grammar>(new Grammar(std::make_unique<Impl>(std::move(automaton), std::move(vocabulary), limits)));
}

Grammar::Grammar(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Grammar::~Grammar() = default;
const GrammarVocabulary& Grammar::vocabulary() const { return *impl_->vocabulary; }
size_t Grammar::num_states() const { return impl_->automaton.states.size(); }

struct GrammarMatcher::Impl {
  explicit Impl(std::shared_ptr<const Grammar> g)
      : grammar(std::move(g)), shared(*grammar->impl_), machine(shared.automaton, shared.limits.depth_max), history{machine.start()} {}

  std::shared_ptr<const Grammar> grammar;
  Grammar::Impl& shared;
  Machine machine;
  // The set after each token, the present one last; a token that ended the answer repeats it.
  std::vector<Machine::SetId> history;
  size_t num_ends = 0;  // end tokens at the end of the history
  std::vector<Machine::SetId> path;

  Machine::SetId current() const { return history.back(); }

  // Forgets remembered sets when there are many; the history is carried over.
  void bound_memory() {
    if (history.size() > 2 * kHistoryMax) history.erase(history.begin(), history.end() - static_cast<ptrdiff_t>(kHistoryMax) - 1);
    if (machine.size() <= kSetsMax) return;
    std::vector<Machine::Written> written;
    for (const Machine::SetId set : history) written.push_back(machine.write(set));
    machine.clear();
    for (size_t i = 0; i < history.size(); ++i) history[i] = machine.read(written[i]);
  }

  // Near the nesting limit, or with very many stacks, what a single state allows is not all there is to know: every token is tried.
  bool needs_every_token() const { return machine.depth(current()) + 128 > shared.limits.depth_max || machine.at(current()).tops.size() > 64; }

  void add_every_token(uint64_t* mask) {
    const auto nodes = shared.vocabulary->nodes();
    path.resize(shared.vocabulary->token_bytes_max() + 1);
    path[0] = current();
    for (uint32_t i = 0; i < nodes.size();) {
      const GrammarVocabulary::Node& node = nodes[i];
      path[node.depth] = machine.step(path[node.depth - 1], node.byte);
      if (path[node.depth] == Machine::kDead) {
        i = node.end;
        continue;
      }
      if (node.token >= 0) set_token(*shared.vocabulary, node.token, mask);
      ++i;
    }
  }

  // Walks tokens, in the trie's order, from the current set; each shares its path with the one before.
  void add_dependent(const std::vector<int32_t>& tokens, uint64_t* mask) {
    const GrammarVocabulary& vocabulary = *shared.vocabulary;
    path.resize(vocabulary.token_bytes_max() + 1);
    path[0] = current();
    size_t known = 0;  // bytes of `previous` that path covers; the last may be dead
    std::string_view previous;
    for (const int32_t token : tokens) {
      if (mask[token / 64] >> (token % 64) & 1) continue;
      const std::string_view bytes = vocabulary.token_bytes(token);
      size_t depth = 0;
      while (depth < known && depth < bytes.size() && bytes[depth] == previous[depth]) ++depth;
      while (depth < bytes.size() && path[depth] != Machine::kDead) {
        path[depth + 1] = machine.step(path[depth], static_cast<uint8_t>(bytes[depth]));
        ++depth;
      }
      if (depth == bytes.size() && path[depth] != Machine::kDead) set_token(vocabulary, token, mask);
      known = depth;
      previous = bytes;
    }
  }
};

GrammarMatcher::GrammarMatcher(std::shared_ptr<const Grammar> grammar) : impl_(std::make_unique<Impl>(std::move(grammar))) {}
GrammarMatcher::~GrammarMatcher() = default;
GrammarMatcher::GrammarMatcher(GrammarMatcher&&) noexcept = default;
GrammarMatcher& GrammarMatcher::operator=(GrammarMatcher&&) noexcept = default;

void GrammarMatcher::fill_mask(std::span<uint64_t> mask) {
  Impl& m = *impl_;
  const GrammarVocabulary& vocabulary = *m.shared.vocabulary;
  ORRERY_CHECK(mask.size() >= vocabulary.mask_words(), "{} words for {} tokens", mask.size(), vocabulary.size());
  std::fill(mask.begin(), mask.end(), 0);
  if (m.num_ends == 0) {
    m.bound_memory();
    const bool every_token = m.needs_every_token();
    std::vector<uint32_t> key;
    if (!every_token) key = m.machine.mask_key(m.current());
    std::shared_ptr<const Mask> known = key.empty() ? nullptr : m.shared.stack_mask(key);
    if (known) {
      std::copy(known->begin(), known->end(), mask.begin());
    } else if (every_token) {
      m.add_every_token(mask.data());
    } else {
      std::vector<std::shared_ptr<const StateMask>> parts;
      const auto tops = m.machine.at(m.current()).tops;
      for (size_t i = 0; i < tops.size(); ++i) {
        if (i > 0 && tops[i].state == tops[i - 1].state) continue;
        parts.push_back(m.shared.state_mask(tops[i].state));
        for (size_t word = 0; word < vocabulary.mask_words(); ++word) mask[word] |= parts.back()->accepted[word];
      }
      for (const auto& part : parts) m.add_dependent(part->dependent, mask.data());
      if (!key.empty()) m.shared.keep_stack_mask(std::move(key), std::make_shared<Mask>(mask.begin(), mask.begin() + static_cast<ptrdiff_t>(vocabulary.mask_words())));
    }
  }
  if (can_finish())
    for (const int32_t id : vocabulary.end_ids()) mask[static_cast<size_t>(id) / 64] |= uint64_t{1} << (id % 64);
}

bool GrammarMatcher::accept(int32_t token) {
  Impl& m = *impl_;
  const GrammarVocabulary& vocabulary = *m.shared.vocabulary;
  if (token < 0 || token >= vocabulary.size()) return false;
  if (vocabulary.is_end(token)) {
    if (!can_finish()) return false;
    m.history.push_back(m.current());
    ++m.num_ends;
    return true;
  }
  const std::string_view bytes = vocabulary.token_bytes(token);
  return !bytes.empty() && accept_bytes(bytes);
}

bool GrammarMatcher::accept_bytes(std::string_view bytes) {
  Impl& m = *impl_;
  if (m.num_ends > 0) return false;
  m.bound_memory();
  Machine::SetId set = m.current();
  for (const char byte : bytes) {
    set = m.machine.step(set, static_cast<uint8_t>(byte));
    if (set == Machine::kDead) return false;
  }
  m.history.push_back(set);
  return true;
}

void GrammarMatcher::rollback(int num_tokens) {
  Impl& m = *impl_;
  ORRERY_CHECK(num_tokens >= 0 && static_cast<size_t>(num_tokens) < m.history.size(), "{} of {} tokens", num_tokens, m.history.size() - 1);
  m.history.resize(m.history.size() - static_cast<size_t>(num_tokens));
  m.num_ends -= std::min(m.num_ends, static_cast<size_t>(num_tokens));
}

bool GrammarMatcher::can_finish() const { return impl_->machine.at(impl_->current()).can_finish; }

bool GrammarMatcher::is_finished() const { return impl_->num_ends > 0 || (can_finish() && impl_->machine.at(impl_->current()).tops.empty()); }

}  // namespace orrery
