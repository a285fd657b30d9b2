#include "serve/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace orrery {

namespace {
// A draft below this rate of acceptance costs more rows than it saves; it is tried again from time to time, for texts change.
constexpr double kWorthwhileAcceptance = 0.25;
constexpr int64_t kStepsBetweenTrials = 16;
constexpr size_t kLookupWindow = 4096;  // how far back a lookup reads
}  // namespace

std::vector<int32_t> propose_by_lookup(std::span<const int32_t> tokens, int64_t limit) {
  if (tokens.size() > kLookupWindow) tokens = tokens.last(kLookupWindow);
  for (size_t n = 3; n >= 2 && limit > 0; --n) {
    if (tokens.size() <= n) continue;
    const auto tail = tokens.last(n);
    for (size_t end = tokens.size() - 1; end >= n; --end)
      if (std::equal(tail.begin(), tail.end(), tokens.begin() + static_cast<std::ptrdiff_t>(end - n))) {
        const auto found = tokens.subspan(end, std::min(tokens.size() - end, static_cast<size_t>(limit)));
        return {found.begin(), found.end()};
      }
  }
  return {};
}

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), blocks_(options.num_blocks, options.block_tokens, options.prefix_cache) {
  ORRERY_CHECK(options.max_tokens >= options.max_sequences && options.max_rows >= options.max_sequences && options.prefill_chunk > 0,
               "a step of {} tokens and {} rows for {} sequences", options.max_tokens, options.max_rows, options.max_sequences);
}

void Scheduler::add(SequenceSpec spec) {
  ORRERY_CHECK(!spec.prompt.empty() && !known(spec.id), "sequence {}", spec.id);
  Tenant& tenant = tenants_[spec.tenant];
  if (tenant.active++ == 0) {
    // Virtual token counter (Sheng et al. 2024, arXiv:2401.00588): whoever comes back does not bring unused credit along.
    double least = -1;
    for (const auto& [name, other] : tenants_)
      if (&other != &tenant && other.active > 0 && (least < 0 || other.served < least)) least = other.served;
    tenant.served = std::max(tenant.served, least);
  }
  Sequence sequence;
  sequence.tokens = spec.prompt;
  sequence.arrival = next_arrival_++;
  sequence.spec = std::move(spec);
  const uint64_t id = sequence.spec.id;
  sequences_.emplace(id, std::move(sequence));
  waiting_.push_back(id);
}

bool Scheduler::remove(uint64_t id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return false;
  blocks_.release(&found->second.table);
  --tenants_.at(found->second.spec.tenant).active;
  std::erase(running_, id);
  std::erase(waiting_, id);
  sequences_.erase(found);
  return true;
}

bool Scheduler::before(const Sequence& a, const Sequence& b) const {
  return a.spec.priority != b.spec.priority ? a.spec.priority < b.spec.priority : a.arrival < b.arrival;
}

void Scheduler::preempt(uint64_t id, std::vector<StepItem>* step) {
  Sequence& sequence = sequences_.at(id);
  // Recompute, not swap: what was full stays readable in the prefix cache until the blocks are really taken.
  blocks_.release(&sequence.table);
  sequence.computed = 0;
  std::erase(running_, id);
  waiting_.push_back(id);
  std::erase_if(*step, [id](const StepItem& item) { return item.id == id; });
  ++counters_.preemptions;
}

// False: `sequence` itself was the last in line and has been preempted.
bool Scheduler::make_room(Sequence& sequence, int64_t num_tokens, std::vector<StepItem>* step) {
  while (!blocks_.grow(&sequence.table, num_tokens)) {
    const uint64_t last = *std::max_element(running_.begin(), running_.end(), [this](uint64_t a, uint64_t b) { return before(sequences_.at(a), sequences_.at(b)); });
    preempt(last, step);
    if (last == sequence.spec.id) return false;
  }
  return true;
}

void Scheduler::plan_draft(Sequence& sequence, int64_t limit, std::vector<int32_t>* draft) {
  if (options_.max_context > 0) limit = std::min(limit, options_.max_context - static_cast<int64_t>(sequence.tokens.size()));
  *draft = std::exchange(sequence.offered, {});
  sequence.looked_up = draft->empty();
  if (!sequence.looked_up) return draft->resize(std::min(draft->size(), static_cast<size_t>(std::max<int64_t>(0, limit))));
  if (options_.speculative_tokens == 0) return;
  if (sequence.acceptance < kWorthwhileAcceptance && ++sequence.steps_without_draft % kStepsBetweenTrials != 0) return;
  *draft = propose_by_lookup(sequence.tokens, std::min(limit, options_.speculative_tokens));
}

std::vector<StepItem> Scheduler::schedule() {
  std::vector<StepItem> step;
  std::sort(running_.begin(), running_.end(), [this](uint64_t a, uint64_t b) { return before(sequences_.at(a), sequences_.at(b)); });
  const std::vector<uint64_t> order = running_;
  int64_t num_decoding = 0;
  for (const uint64_t id : order) num_decoding += sequences_.at(id).pending() == 1;
  const int64_t preemptions = counters_.preemptions;
  int64_t budget = options_.max_tokens, rows = options_.max_rows;
  int64_t draft_rows = std::max<int64_t>(0, std::min(options_.speculative_rows, rows) - num_decoding);
  // Every decoding sequence has its token and its row before any draft or prompt.
  budget -= num_decoding;
  rows -= num_decoding;
  const auto runs = [this](uint64_t id) { return std::find(running_.begin(), running_.end(), id) != running_.end(); };
  for (const uint64_t id : order) {
    Sequence& sequence = sequences_.at(id);
    if (!runs(id) || sequence.pending() != 1) continue;
    StepItem item{id, sequence.computed, 1, true, false, {}};
    if (options_.speculative_tokens > 0 || !sequence.offered.empty()) plan_draft(sequence, std::min({draft_rows, budget, rows}), &item.draft);
    // A draft never pushes anybody out: it takes only what is free.
    if (!item.draft.empty() && !blocks_.grow(&sequence.table, sequence.computed + 1 + static_cast<int64_t>(item.draft.size()))) item.draft.clear();
    if (!make_room(sequence, sequence.computed + 1, &step)) continue;
    const auto drafted = static_cast<int64_t>(item.draft.size());
    item.count += drafted;
    budget -= drafted;
    rows -= drafted;
    draft_rows -= drafted;
    step.push_back(std::move(item));
  }
  if (num_decoding > 0) budget = std::min(budget, options_.prefill_chunk);
  for (const uint64_t id : order) {
    if (budget <= 0) break;
    Sequence& sequence = sequences_.at(id);
    if (!runs(id) || sequence.pending() <= 1) continue;
    StepItem item = prefill_item(sequence, budget, rows);
    if (item.count == 0 || !make_room(sequence, sequence.computed + item.count, &step)) continue;
    budget -= item.count;
    rows -= item.num_rows();
    step.push_back(std::move(item));
  }
  if (counters_.preemptions == preemptions) admit(&step, &budget, &rows);
  return step;
}

std::vector<uint64_t> Scheduler::decoding() const {
  std::vector<uint64_t> ids;
  for (const uint64_t id : running_)
    if (sequences_.at(id).pending() == 1) ids.push_back(id);
  return ids;
}

// A chunk of a prompt: what budget and rows of logits allow.
StepItem Scheduler::prefill_item(const Sequence& sequence, int64_t budget, int64_t rows) const {
  StepItem item{sequence.spec.id, sequence.computed, std::min(sequence.pending(), budget), false, sequence.wants_all_rows(), {}};
  if (item.all_rows)
    item.count = std::min(item.count, rows);
  else if (item.count == sequence.pending() && rows == 0)
    --item.count;
  item.samples = item.count > 0 && item.count == sequence.pending();
  return item;
}

uint64_t Scheduler::best_waiting() const {
  return *std::min_element(waiting_.begin(), waiting_.end(), [this](uint64_t a, uint64_t b) {
    const Sequence &x = sequences_.at(a), &y = sequences_.at(b);
    if (x.spec.priority != y.spec.priority) return x.spec.priority < y.spec.priority;
    // One that was preempted has been served already: it goes on before another begins.
    if ((x.cached_tokens >= 0) != (y.cached_tokens >= 0)) return x.cached_tokens >= 0;
    const double served_x = tenants_.at(x.spec.tenant).served, served_y = tenants_.at(y.spec.tenant).served;
    return served_x != served_y ? served_x < served_y : x.arrival < y.arrival;
  });
}

void Scheduler::admit(std::vector<StepItem>* step, int64_t* budget, int64_t* rows) {
  while (!waiting_.empty() && num_running() < options_.max_sequences && *budget > 0 && *rows > 0) {
    const uint64_t id = best_waiting();
    Sequence& sequence = sequences_.at(id);
    if (!sequence.spec.prompt_logits) sequence.computed = blocks_.match_prefix(sequence.tokens, sequence.spec.cache_salt, &sequence.table);
    StepItem item = prefill_item(sequence, *budget, *rows);
    const int64_t count = item.count;
    // Running sequences may still grow into what is left; a newcomer that would be preempted at once is not let in.
    const int64_t reserve = num_running() > 0 ? num_running() : 0;
    const int64_t wanted = (sequence.computed + count + options_.block_tokens - 1) / options_.block_tokens - static_cast<int64_t>(sequence.table.blocks.size());
    if (wanted + reserve > blocks_.num_free() || !blocks_.grow(&sequence.table, sequence.computed + count)) {
      blocks_.release(&sequence.table);
      sequence.computed = 0;
      return;
    }
    std::erase(waiting_, id);
    running_.push_back(id);
    if (sequence.cached_tokens < 0) {
      sequence.cached_tokens = sequence.computed;
      counters_.prefix_queried_tokens += static_cast<int64_t>(sequence.tokens.size());
      counters_.prefix_hit_tokens += sequence.computed;
    }
    *budget -= count;
    *rows -= item.num_rows();
    step->push_back(std::move(item));
  }
}

void Scheduler::complete(const StepItem& item, std::span<const int32_t> sampled) {
  Sequence& sequence = sequences_.at(item.id);
  ORRERY_CHECK(sequence.computed == item.first && item.samples == !sampled.empty() && sampled.size() <= item.draft.size() + 1,
               "sequence {}: step at {} of {}, {} sampled", item.id, item.first, sequence.computed, sampled.size());
  tenants_.at(sequence.spec.tenant).served += static_cast<double>(item.count);
  if (!item.draft.empty()) {
    const auto accepted = static_cast<double>(sampled.size() - 1), drafted = static_cast<double>(item.draft.size());
    if (sequence.looked_up) sequence.acceptance += 0.25 * (accepted / drafted - sequence.acceptance);
    ++counters_.drafts;
    counters_.draft_tokens += static_cast<int64_t>(item.draft.size());
    counters_.accepted_tokens += static_cast<int64_t>(sampled.size()) - 1;
  }
  sequence.tokens.insert(sequence.tokens.end(), sampled.begin(), sampled.end());
  // The last sampled token has not been an input yet; keys of refused drafts lie behind it and are overwritten.
  sequence.computed = item.samples ? static_cast<int64_t>(sequence.tokens.size()) - 1 : item.first + item.count;
  blocks_.commit(&sequence.table, sequence.tokens, sequence.computed, sequence.spec.cache_salt);
}

}  // namespace orrery
