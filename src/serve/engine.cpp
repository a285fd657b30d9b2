#include "serve/engine.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"

namespace orrery {

namespace {

double now_seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

SchedulerOptions with_bounds(SchedulerOptions options, const ServingPlanOptions& plan) {
  options.max_tokens = plan.max_tokens;
  options.max_sequences = plan.max_sequences;
  options.max_rows = plan.max_rows;
  options.num_blocks = plan.kv_blocks;
  options.block_tokens = plan.block_tokens;
  options.max_context = plan.max_context;
  return options;
}

}  // namespace

Engine::Engine(ServingModel& model, const EngineOptions& options)
    : model_(model), options_(options), scheduler_(with_bounds(options.scheduler, model.plan().options)) {
  const ServingPlanOptions& plan = model.plan().options;
  if (plan.kv_blocks < model.plan().blocks_per_sequence)
    throw Error(ErrorCode::kInvalidConfig, "the key-value cache holds {} tokens, one sequence may reach {}; raise --kv-memory, or lower --max-model-len", plan.kv_blocks * plan.block_tokens, plan.max_context);
  if (options.draft) {
    if (options.draft->config().vocab_size != model.config().vocab_size)
      throw Error(ErrorCode::kInvalidConfig, "the draft model has {} tokens, the model {}: its guesses would mean other words", options.draft->config().vocab_size, model.config().vocab_size);
    draft_.emplace(*options.draft);
  }
  stats_.kv_blocks = plan.kv_blocks;
  scratch_.resize(static_cast<size_t>(model.pool().num_threads()));
  thread_ = std::thread([this] { run(); });
}

Engine::~Engine() { stop(); }

void Engine::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

Admission Engine::submit(GenerationRequest request, uint64_t* id) {
  ORRERY_CHECK(!request.prompt.empty() && request.max_tokens >= 1 && request.sink, "request {}", request.request_id);
  {
    const std::lock_guard lock(mutex_);
    if (stopping_ || (draining_ && !request.continues)) return Admission::kStopping;
    // A request that came after the last step is counted as waiting until the next one begins, though a sequence may be free for it.
    const int64_t free_sequences = std::max<int64_t>(0, model_.plan().options.max_sequences - stats_.running);
    if (num_waiting_ >= options_.max_queue + free_sequences) return Admission::kQueueFull;
    Sampler sampler(request.sampling);
    sampler.add_prompt(request.prompt);
    auto live = std::make_unique<Live>(Live{std::move(request), std::move(sampler), 0, now_seconds(), -1, {}, {}, {}, {}});
    *id = next_id_++;
    submitted_.emplace_back(*id, std::move(live));
    ++num_waiting_;
  }
  wake_.notify_one();
  return Admission::kAccepted;
}

void Engine::cancel(uint64_t id) {
  {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
  }
  wake_.notify_one();
}

void Engine::drain() {
  const std::lock_guard lock(mutex_);
  draining_ = true;
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  stats.waiting = num_waiting_;
  return stats;
}

void Engine::run() {
  set_floating_point_mode();
  while (true) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !submitted_.empty() || !cancelled_.empty() || !live_.empty(); });
      if (stopping_) break;
    }
    take_commands();
    run_step();
  }
  take_commands();
  for (auto& [id, live] : live_) live->request.sink({.finish = FinishReason::kCancelled});
  live_.clear();
  publish();
}

void Engine::take_commands() {
  std::vector<std::pair<uint64_t, std::unique_ptr<Live>>> submitted;
  std::vector<uint64_t> cancelled;
  {
    const std::lock_guard lock(mutex_);
    submitted.swap(submitted_);
    cancelled.swap(cancelled_);
  }
  for (auto& [id, live] : submitted) {
    const GenerationRequest& request = live->request;
    if (request.grammar) {
      live->matcher.emplace(request.grammar);
      live->mask.resize(request.grammar->vocabulary().mask_words());
    }
    scheduler_.add({id, request.prompt, request.priority, request.tenant, request.cache_salt, request.prompt_logprobs});
    live_.emplace(id, std::move(live));
  }
  for (const uint64_t id : cancelled) {
    const auto found = live_.find(id);
    if (found == live_.end()) continue;
    scheduler_.remove(id);
    found->second->request.sink({.finish = FinishReason::kCancelled});
    live_.erase(found);
  }
  publish();
}

void Engine::publish() {
  const std::lock_guard lock(mutex_);
  num_waiting_ = scheduler_.num_waiting() + static_cast<int64_t>(submitted_.size());
  stats_.running = scheduler_.num_running();
  stats_.kv_blocks_used = scheduler_.blocks().num_used();
  stats_.counters = scheduler_.counters();
}

void Engine::bind(const std::vector<StepItem>& step) {
  int32_t* ids = model_.field<int32_t>(BatchField::kIds);
  int32_t* positions = model_.field<int32_t>(BatchField::kPositions);
  int32_t* slots = model_.field<int32_t>(BatchField::kSlots);
  int32_t* starts = model_.field<int32_t>(BatchField::kCuSeqlens);
  int32_t* lengths = model_.field<int32_t>(BatchField::kContextLens);
  int32_t* tables = model_.field<int32_t>(BatchField::kBlockTable);
  int32_t* rows = model_.field<int32_t>(BatchField::kRows);
  const int64_t block_tokens = model_.plan().options.block_tokens, width = model_.plan().blocks_per_sequence;
  int64_t row = 0, sequence = 0, num_rows = 0;
  starts[0] = 0;
  for (const StepItem& item : step) {
    const std::vector<int32_t>& tokens = scheduler_.tokens(item.id);
    const std::vector<int32_t>& blocks = scheduler_.block_table(item.id).blocks;
    const auto known = static_cast<int64_t>(tokens.size());
    for (int64_t k = 0; k < item.count; ++k) {
      const int64_t position = item.first + k;
      ids[row + k] = position < known ? tokens[static_cast<size_t>(position)] : item.draft[static_cast<size_t>(position - known)];
      positions[row + k] = static_cast<int32_t>(position);
      slots[row + k] = static_cast<int32_t>(blocks[static_cast<size_t>(position / block_tokens)] * block_tokens + position % block_tokens);
    }
    row += item.count;
    for (int64_t k = item.num_rows(); k > 0; --k) rows[num_rows++] = static_cast<int32_t>(row - k);
    starts[sequence + 1] = static_cast<int32_t>(row);
    lengths[sequence] = static_cast<int32_t>(item.first + item.count);
    const size_t used = std::min(blocks.size(), static_cast<size_t>(width));
    std::copy_n(blocks.begin(), used, tables + sequence * width);
    ++sequence;
  }
}

// Drafts where every decoding sequence has a place in the draft model and enough rows are left; true when there are any.
bool Engine::propose_drafts() {
  if (!draft_ || !(options_.draft_always || governor_.use())) return false;
  const std::vector<uint64_t> ids = scheduler_.decoding();
  const auto count = static_cast<int64_t>(ids.size());
  if (count == 0 || count > draft_->num_places()) return false;
  const int64_t limit = std::min(options_.draft_tokens, options_.scheduler.speculative_rows / count - 1);
  std::vector<DraftModel::Request> requests;
  for (const uint64_t id : ids) {
    const Live& live = *live_.at(id);
    const int64_t wanted = std::min(limit, live.request.max_tokens - live.num_generated - 1);
    // A grammar's mask depends on the draft's own tokens; such answers go without.
    if (wanted > 0 && !live.matcher && !live.request.embed) requests.push_back({id, &scheduler_.tokens(id), &live.sampler, wanted});
  }
  if (requests.empty()) return false;
  std::vector<std::vector<int32_t>> drafts = draft_->propose(requests);
  for (size_t i = 0; i < requests.size(); ++i) scheduler_.offer_draft(requests[i].id, std::move(drafts[i]));
  return true;
}

void Engine::run_step() {
  const double begin = now_seconds();
  const bool drafted = propose_drafts();
  const std::vector<StepItem> step = scheduler_.schedule();
  if (step.empty()) return;
  int64_t num_tokens = 0, num_rows = 0;
  std::vector<std::pair<const StepItem*, int64_t>> sampling;  // with its first row
  for (const StepItem& item : step) {
    num_tokens += item.count;
    Live& live = *live_.at(item.id);
    if (live.started < 0) live.started = begin;
    if (item.num_rows() == 0) continue;
    sampling.emplace_back(&item, num_rows);
    num_rows += item.num_rows();
  }
  bind(step);
  // The head takes one row where nobody asked, as its kernels take no empty batch.
  if (num_rows == 0) model_.field<int32_t>(BatchField::kRows)[0] = 0;
  model_.forward(num_tokens, static_cast<int64_t>(step.size()), std::max<int64_t>(1, num_rows));
  model_.pool().run([&](int thread_index, int num_threads) {
    for (size_t i = static_cast<size_t>(thread_index); i < sampling.size(); i += static_cast<size_t>(num_threads))
      draw_item(*sampling[i].first, sampling[i].second, &scratch_[static_cast<size_t>(thread_index)]);
  });
  if (draft_ && num_tokens == num_rows) {  // a step of decoding alone
    int64_t drawn = 0;
    for (const StepItem& item : step) drawn += static_cast<int64_t>(live_.at(item.id)->event.tokens.size());
    governor_.record(drafted, now_seconds() - begin, drawn);
  }
  for (const StepItem& item : step) {
    if (item.samples)
      finish_item(item);
    else
      scheduler_.complete(item, {});
  }
  {
    const std::lock_guard lock(mutex_);
    ++stats_.steps;
    stats_.step_tokens += num_tokens;
    stats_.busy_seconds += now_seconds() - begin;
  }
  publish();
}

// Rows of the prompt, each with the token that really followed. A prompt that is computed again after a preemption is not scored again.
void Engine::score_prompt(const StepItem& item, int64_t first_row, SamplerScratch* scratch) {
  Live& live = *live_.at(item.id);
  if (live.num_generated > 0) return;  // told already
  const std::vector<int32_t>& prompt = live.request.prompt;
  for (int64_t k = 0; k < item.count; ++k) {
    const auto next = static_cast<size_t>(item.first + k + 1);
    if (next >= prompt.size() || next <= live.prompt.size()) continue;
    const SampledToken scored = token_logprobs(model_.logits(first_row + k), prompt[next], live.request.sampling.top_logprobs, scratch);
    live.prompt.push_back({prompt[next], scored.logprob, {scored.top_logprobs.begin(), scored.top_logprobs.end()}});
  }
}

// Each row's token is the request's own seeded draw; the next row counts only while the draft was that token (NUMERICS rule 13).
void Engine::draw_item(const StepItem& item, int64_t first_row, SamplerScratch* scratch) {
  Live& live = *live_.at(item.id);
  if (item.all_rows) {
    score_prompt(item, first_row, scratch);
    first_row += item.count - 1;
    if (!item.samples) return;
  }
  TokenEvent& event = live.event;
  event = {};
  event.prompt = std::move(live.prompt);
  event.cached_tokens = std::max<int64_t>(0, scheduler_.cached_tokens(item.id));
  event.queue_seconds = live.started - live.submitted;
  if (live.request.embed) {
    event.embedding.resize(static_cast<size_t>(model_.config().hidden_size));
    model_.hidden(first_row, event.embedding);
    event.finish = FinishReason::kStop;
    return;
  }
  const auto length = static_cast<int64_t>(scheduler_.tokens(item.id).size());
  const std::vector<int32_t>& stops = live.request.stop_token_ids;
  for (int64_t k = 0; !event.finish; ++k) {
    if (live.matcher) live.matcher->fill_mask(live.mask);
    const SampledToken drawn = live.sampler.sample(model_.logits(first_row + k), length + k, live.mask, scratch);
    if (drawn.id < 0 || (live.matcher && !live.matcher->accept(drawn.id))) {
      event.finish = FinishReason::kError;
      break;
    }
    live.sampler.accept(drawn.id);
    event.tokens.push_back({drawn.id, drawn.logprob, {drawn.top_logprobs.begin(), drawn.top_logprobs.end()}});
    ++live.num_generated;
    if (std::find(stops.begin(), stops.end(), drawn.id) != stops.end())
      event.finish = FinishReason::kStop;
    else if (live.num_generated >= live.request.max_tokens || length + k + 1 >= max_context())
      event.finish = FinishReason::kLength;
    if (k == static_cast<int64_t>(item.draft.size()) || drawn.id != item.draft[static_cast<size_t>(k)]) break;
  }
}

void Engine::finish_item(const StepItem& item) {
  Live& live = *live_.at(item.id);
  TokenEvent event = std::move(live.event);
  const bool ended = event.finish.has_value();
  if (!event.tokens.empty()) {
    std::vector<int32_t> ids;
    for (const GeneratedToken& token : event.tokens) ids.push_back(token.id);
    scheduler_.complete(item, ids);
  }
  if (ended) scheduler_.remove(item.id);
  live.request.sink(std::move(event));
  if (ended) live_.erase(item.id);
}

}  // namespace orrery
