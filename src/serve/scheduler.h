// Which tokens of which sequences go into the next step: continuous batching with chunked prefill under a token budget, admission by
// priority, then fair share, then arrival, preemption when the cache is full, and drafts where they cost nothing. Pure and single
// threaded, no clock and no tensor: the engine runs what it says, and a simulation can ask it the same questions.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "serve/block_manager.h"

namespace orrery {

struct SchedulerOptions {
  int64_t max_tokens = 512;         // of one step
  int64_t prefill_chunk = 128;      // prompt tokens of a step in which somebody decodes: what a prompt may delay the others' next token
  int64_t max_sequences = 32;       // that run at a time
  int64_t max_rows = 64;            // rows of logits in one step
  int64_t num_blocks = 0, block_tokens = 32;
  int64_t max_context = 0;          // no draft reaches beyond; 0: no bound
  bool prefix_cache = true;
  int64_t speculative_tokens = 0;   // most draft tokens a sequence and step; 0: off
  int64_t speculative_rows = 16;    // no drafts beyond this many decoding rows: a step of so many rows costs what one row costs
};

struct SequenceSpec {
  uint64_t id = 0;
  std::vector<int32_t> prompt;
  int32_t priority = 0;   // smaller runs first
  std::string tenant;     // fair share is between these
  std::string cache_salt;
  bool prompt_logits = false;  // the logits after every prompt token are wanted: nothing comes from the prefix cache
};

/// One sequence's part of a step: tokens [first, first + count) of it, the last `draft.size()` of which are guesses.
struct StepItem {
  uint64_t id = 0;
  int64_t first = 0;
  int64_t count = 0;
  bool samples = false;         // its last 1 + draft.size() rows need logits
  bool all_rows = false;        // all `count` rows do
  int64_t num_rows() const { return all_rows ? count : samples ? 1 + static_cast<int64_t>(draft.size()) : 0; }
  std::vector<int32_t> draft;
};

struct SchedulerCounters {
  int64_t preemptions = 0, prefix_queried_tokens = 0, prefix_hit_tokens = 0;
  int64_t drafts = 0, draft_tokens = 0, accepted_tokens = 0;
};

class Scheduler {
 public:
  /// One sequence of `max_context` tokens must fit into the cache, else nothing could ever finish: checked by the engine.
  explicit Scheduler(const SchedulerOptions& options);

  void add(SequenceSpec spec);
  /// Forgets a sequence, wherever it is; its blocks are free at once. False: not known (it may have ended).
  bool remove(uint64_t id);

  /// The next step; empty when there is nothing to run. To be followed by complete() for each item that is still known.
  std::vector<StepItem> schedule();
  /// The step ran. `sampled`: for items that sample, the accepted drafts and one more token; empty for the others.
  void complete(const StepItem& item, std::span<const int32_t> sampled);

  /// Sequences whose next step is one token, in the order in which they run.
  std::vector<uint64_t> decoding() const;
  /// A draft for a sequence's next step, made elsewhere; it goes before prompt lookup, and is taken as far as rows and blocks allow.
  void offer_draft(uint64_t id, std::vector<int32_t> draft) { sequences_.at(id).offered = std::move(draft); }

  const std::vector<int32_t>& tokens(uint64_t id) const { return sequences_.at(id).tokens; }
  const BlockTable& block_table(uint64_t id) const { return sequences_.at(id).table; }
  /// Prompt tokens that did not have to be computed when the sequence was first admitted.
  int64_t cached_tokens(uint64_t id) const { return sequences_.at(id).cached_tokens; }
  bool known(uint64_t id) const { return sequences_.contains(id); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  const BlockManager& blocks() const { return blocks_; }
  const SchedulerCounters& counters() const { return counters_; }

 private:
  struct Sequence {
    SequenceSpec spec;
    std::vector<int32_t> tokens;  // prompt and what was sampled
    int64_t computed = 0;         // leading tokens whose keys and values are in the cache
    int64_t arrival = 0;
    int64_t cached_tokens = -1;   // -1: never admitted
    double acceptance = 1;        // of drafts, exponential mean
    int64_t steps_without_draft = 0;
    std::vector<int32_t> offered;
    bool looked_up = false;       // where the present step's draft is from
    BlockTable table;
    int64_t pending() const { return static_cast<int64_t>(tokens.size()) - computed; }
    // The next `limit` tokens or fewer end inside the prompt, whose logits are wanted.
    bool wants_all_rows() const { return spec.prompt_logits && computed < static_cast<int64_t>(spec.prompt.size()); }
  };
  struct Tenant {
    double served = 0;
    int64_t active = 0;
  };
  bool before(const Sequence& a, const Sequence& b) const;  // who keeps its blocks, and runs first
  bool make_room(Sequence& sequence, int64_t num_tokens, std::vector<StepItem>* step);
  void preempt(uint64_t id, std::vector<StepItem>* step);
  StepItem prefill_item(const Sequence& sequence, int64_t budget, int64_t rows) const;
  void admit(std::vector<StepItem>* step, int64_t* budget, int64_t* rows);
  uint64_t best_waiting() const;
  void plan_draft(Sequence& sequence, int64_t limit, std::vector<int32_t>* draft);

  SchedulerOptions options_;
  BlockManager blocks_;
  std::unordered_map<uint64_t, Sequence> sequences_;
  std::vector<uint64_t> running_;  // in the order of before()
  std::vector<uint64_t> waiting_;
  std::map<std::string, Tenant> tenants_;
  int64_t next_arrival_ = 0;
  SchedulerCounters counters_;
};

/// Prompt lookup (Saxena 2023): what followed the last earlier occurrence of the text's last `n` tokens, n from 3 down to 2; at most `limit`.
std::vector<int32_t> propose_by_lookup(std::span<const int32_t> tokens, int64_t limit);

}  // namespace orrery
