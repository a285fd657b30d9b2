// Structured output: a JSON schema, regex, GBNF grammar or list of choices becomes one pushdown automaton over bytes, and that, for a
// tokenizer's vocabulary, a mask of the tokens that may come next. Compiling is done once per text and its result shared; a matcher is
// one request's place in it.
//
// Nothing fails open: what the front ends cannot express exactly is an error that names the place, and every limit is an error that
// names the limit. Nothing dead-ends: states from which no end can be reached are removed when compiling, so wherever a matcher
// stands, some token or the end is allowed.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace orrery {

enum class GrammarKind {
  kJsonSchema,  // the text of a schema (docs/serving_text.md lists the keywords)
  kJsonObject,  // any JSON object; the text is ignored
  kRegex,       // the whole output matches
  kGbnf,        // llama.cpp's grammars; the rule "root"
  kChoice,      // a JSON array of strings
};

struct GrammarLimits {
  size_t text_bytes_max = 1 << 18;
  size_t states_max = 400'000;          // of the nondeterministic and of the final automaton
  size_t work_max = 20'000'000;         // steps of the subset construction, about a second
  uint32_t depth_max = 256;             // nesting of rules in the output
  size_t mask_cache_bytes = 64 << 20;
};

/// A tokenizer's tokens as a trie of bytes; built once per tokenizer and shared.
class GrammarVocabulary {
 public:
  /// `end_ids`: the tokens that end an answer; the tokenizer's EOS is always one. Other special tokens are never allowed.
  explicit GrammarVocabulary(const Tokenizer& tokenizer, std::vector<int32_t> end_ids = {});
  /// For tests: token i is tokens[i]; an empty one is never allowed.
  explicit GrammarVocabulary(std::vector<std::string> tokens, std::vector<int32_t> end_ids);

  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }
  /// Words of a mask.
  size_t mask_words() const { return (tokens_.size() + 63) / 64; }
  std::string_view token_bytes(int32_t id) const { return tokens_[static_cast<size_t>(id)]; }
  std::span<const int32_t> end_ids() const { return end_ids_; }
  bool is_end(int32_t id) const;
  /// Whether `byte` is a token by itself; a grammar may only need bytes that are.
  bool has_byte(uint8_t byte) const { return has_byte_[byte]; }
  size_t token_bytes_max() const { return token_bytes_max_; }

  /// The trie in preorder, the root left out: node i's subtree is [i, end).
  struct Node {
    uint32_t end;
    int32_t token;   // the first token that ends here, -1: none
    uint32_t depth;  // from 1
    uint8_t byte;
  };
  std::span<const Node> nodes() const { return nodes_; }
  /// The next token with the same bytes, -1: none.
  int32_t next_same(int32_t id) const { return next_same_[static_cast<size_t>(id)]; }

 private:
  void build();
  std::vector<std::string> tokens_;
  std::vector<int32_t> end_ids_, next_same_;
  std::vector<Node> nodes_;
  size_t token_bytes_max_ = 0;
  bool has_byte_[256] = {};
};

class Grammar {
 public:
  /// Cost    bounded by `limits`; milliseconds for usual schemas.
  /// Errors  kInvalidArgument: malformed text. kUnsupported: a keyword or construct that is not supported, or a limit passed; the message
  ///         names the JSON pointer or the offset.
  static std::shared_ptr<const Grammar> compile(GrammarKind kind, std::string_view text, std::shared_ptr<const GrammarVocabulary> vocabulary,
                                                const GrammarLimits& limits = {});

  /// An answer that is a call of one of `tools`, in the text form of `format`: see tool_calls.h.
  struct Tool {
    std::string name;
    std::string parameters;  // a JSON schema; empty: any object
  };
  struct ToolForm {
    std::string begin, name_key = "name", arguments_key = "arguments", end;  // begin {"name": ..., "arguments": ...} end
    std::string separator;  // between calls
    std::string open, close;  // around all calls
    bool parallel = false;  // more than one call
  };
  static std::shared_ptr<const Grammar> compile_tool_calls(std::span<const Tool> tools, const ToolForm& form, std::shared_ptr<const GrammarVocabulary> vocabulary,
                                                           const GrammarLimits& limits = {});

  ~Grammar();
  const GrammarVocabulary& vocabulary() const;
  size_t num_states() const;

 private:
  friend class GrammarMatcher;
  struct Impl;
  explicit Grammar(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// One answer's place in a grammar. Not thread-safe; matchers of one grammar may run at once.
class GrammarMatcher {
 public:
  explicit GrammarMatcher(std::shared_ptr<const Grammar> grammar);
  ~GrammarMatcher();
  GrammarMatcher(GrammarMatcher&&) noexcept;
  GrammarMatcher& operator=(GrammarMatcher&&) noexcept;

  /// Sets the bits of the tokens that may come next, clears the others; at least vocabulary().mask_words() words. The end tokens are set
  /// where the text so far is complete.
  void fill_mask(std::span<uint64_t> mask);
  /// Moves on by a token; false, and nothing changes, if the grammar does not allow it.
  [[nodiscard]] bool accept(int32_t token);
  /// The same for bytes, e.g. the beginning of a forced answer; they count as one token for rollback.
  [[nodiscard]] bool accept_bytes(std::string_view bytes);
  /// Takes the last accepted tokens back; at most 256 are remembered. Errors: ORRERY_CHECK beyond that.
  void rollback(int num_tokens);
  /// The text so far is complete.
  bool can_finish() const;
  /// Complete, and nothing may follow but an end token; or an end token was accepted.
  bool is_finished() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace orrery
