#include "serve/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>

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
  stats_.kv_blocks = plan.kv_blocks;
  draws_.resize(static_cast<size_t>(plan.max_rows));
  thread_ = std::thread([this] { run(); });
}

Engine::~Engine() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

Admission Engine::submit(GenerationRequest request, uint64_t* id) {
  ORRERY_CHECK(!request.prompt.empty() && request.max_tokens >= 1 && request.sink, "request {}", request.request_id);
  {
    const std::lock_guard lock(mutex_);
    if (stopping_ || draining_) return Admission::kStopping;
    if (num_waiting_ >= options_.max_queue) return Admission::kQueueFull;
    Sampler sampler(request.sampling);
    auto live = std::make_unique<Live>(Live{std::move(request), std::move(sampler), 0, now_seconds(), -1});
    *id = next_id_++;
    submitted_.emplace_back(*id, std::move(live));
    ++num_live_;
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

bool Engine::idle() const {
  const std::lock_guard lock(mutex_);
  return num_live_ == 0;
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
    scheduler_.add({id, request.prompt, request.priority, request.tenant, request.cache_salt});
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
  num_live_ = static_cast<int64_t>(live_.size() + submitted_.size());
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
    if (item.samples)
      for (int64_t k = static_cast<int64_t>(item.draft.size()); k >= 0; --k) rows[num_rows++] = static_cast<int32_t>(row - 1 - k);
    starts[sequence + 1] = static_cast<int32_t>(row);
    lengths[sequence] = static_cast<int32_t>(item.first + item.count);
    const size_t used = std::min(blocks.size(), static_cast<size_t>(width));
    std::copy_n(blocks.begin(), used, tables + sequence * width);
    ++sequence;
  }
}

void Engine::run_step() {
  const std::vector<StepItem> step = scheduler_.schedule();
  if (step.empty()) return;
  const double begin = now_seconds();
  int64_t num_tokens = 0, num_rows = 0;
  std::vector<std::pair<const StepItem*, int64_t>> of_row;  // which item and which of its rows
  for (const StepItem& item : step) {
    num_tokens += item.count;
    Live& live = *live_.at(item.id);
    if (live.started < 0) live.started = begin;
    if (!item.samples) continue;
    for (int64_t k = 0; k <= static_cast<int64_t>(item.draft.size()); ++k) of_row.emplace_back(&item, k);
  }
  num_rows = static_cast<int64_t>(of_row.size());
  bind(step);
  // The head takes one row where nobody asked, as its kernels take no empty batch.
  if (num_rows == 0) model_.field<int32_t>(BatchField::kRows)[0] = 0;
  model_.forward(num_tokens, static_cast<int64_t>(step.size()), std::max<int64_t>(1, num_rows));
  // A sequence's rows share its sampler, so a thread takes all rows of an item: items are contiguous, the cut is by item.
  std::vector<std::pair<int64_t, int64_t>> spans;
  for (int64_t r = 0; r < num_rows; ++r)
    if (of_row[static_cast<size_t>(r)].second == 0) spans.emplace_back(r, 1 + static_cast<int64_t>(of_row[static_cast<size_t>(r)].first->draft.size()));
  model_.pool().parallel_for(static_cast<int64_t>(spans.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      const auto [row, count] = spans[static_cast<size_t>(s)];
      const StepItem& item = *of_row[static_cast<size_t>(row)].first;
      Live& live = *live_.at(item.id);
      if (live.request.embed) continue;
      const auto length = static_cast<int64_t>(scheduler_.tokens(item.id).size());
      for (int64_t k = 0; k < count; ++k) draws_[static_cast<size_t>(row + k)] = live.sampler.draw(model_.logits(row + k), length + k);
    }
  });
  int64_t row = 0;
  for (const StepItem& item : step) {
    if (item.samples) {
      finish_item(item, row);
      row += 1 + static_cast<int64_t>(item.draft.size());
    } else {
      scheduler_.complete(item, {});
    }
  }
  {
    const std::lock_guard lock(mutex_);
    ++stats_.steps;
    stats_.step_tokens += num_tokens;
    stats_.busy_seconds += now_seconds() - begin;
  }
  publish();
}

SampledToken Engine::sampled_token(const Live& live, std::span<const float> logits, int32_t id) const {
  SampledToken token;
  token.id = id;
  const int64_t wanted = live.request.num_logprobs;
  if (wanted < 0) return token;
  float top = -INFINITY;
  for (const float logit : logits) top = std::max(top, logit);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - top);
  const double normalizer = top + std::log(sum);
  token.logprob = static_cast<float>(logits[static_cast<size_t>(id)] - normalizer);
  std::vector<int32_t> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  const auto count = std::min(static_cast<size_t>(wanted), order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(), [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  });
  for (size_t i = 0; i < count; ++i) token.top.push_back({order[i], static_cast<float>(logits[static_cast<size_t>(order[i])] - normalizer)});
  return token;
}

void Engine::finish_item(const StepItem& item, int64_t first_row) {
  Live& live = *live_.at(item.id);
  const GenerationRequest& request = live.request;
  TokenEvent event;
  event.cached_tokens = std::max<int64_t>(0, scheduler_.cached_tokens(item.id));
  event.queue_seconds = live.started - live.submitted;
  std::vector<int32_t> accepted;
  if (request.embed) {
    event.embedding.resize(static_cast<size_t>(model_.config().hidden_size));
    model_.hidden(first_row, event.embedding);
    event.finish = FinishReason::kStop;
  } else {
    const auto length = static_cast<int64_t>(scheduler_.tokens(item.id).size());
    for (size_t k = 0; k <= item.draft.size() && !event.finish; ++k) {
      const int64_t row = first_row + static_cast<int64_t>(k);
      const int32_t id = draws_[static_cast<size_t>(row)];
      accepted.push_back(id);
      event.tokens.push_back(sampled_token(live, model_.logits(row), id));
      ++live.num_generated;
      const auto& stops = request.stop_token_ids;
      if (std::find(stops.begin(), stops.end(), id) != stops.end())
        event.finish = FinishReason::kStop;
      else if (live.num_generated >= request.max_tokens || length + static_cast<int64_t>(accepted.size()) >= max_context())
        event.finish = FinishReason::kLength;
      if (k < item.draft.size() && id != item.draft[k]) break;
    }
    scheduler_.complete(item, accepted);
  }
  const bool ended = event.finish.has_value();
  if (ended) scheduler_.remove(item.id);
  request.sink(std::move(event));
  if (ended) live_.erase(item.id);
}

}  // namespace orrery
