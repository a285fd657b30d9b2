#include "train/rank_group.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace orrery {
namespace {

BatchBuffers buffers_of(const BatchView& view) {
  return {view.ids.data(), view.targets.data(), view.positions.data(), view.segment_starts.data(), view.segment_counts.data()};
}

// The two chunks of each sequence that a context rank has (TokenShares in backend/cpu/attention_pieces.h).
std::vector<TokenRange> token_ranges(const TrainingPlanOptions& options) {
  const ParallelContext& parallel = options.parallel;
  if (parallel.context_size == 1) return {};
  const int64_t chunk = options.sequence_tokens / (2 * parallel.context_size), first = parallel.context_rank, second = 2 * parallel.context_size - 1 - first;
  return {{first * chunk, (first + 1) * chunk}, {second * chunk, (second + 1) * chunk}};
}

// Where a rank's sums over its tokens of its sequences stand among all: those of one context rank after the other.
int64_t first_loss(const TrainingPlanOptions& options, const SequenceShare& share) { return options.parallel.context_rank * options.global_batch_size + share.first; }

// A checkpoint has the model's order whichever rank holds what.
void sort_by_model_order(std::vector<PhysicalTensor>& tensors) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const PhysicalTensor& a, const PhysicalTensor& b) { return a.spec->segments.front().tensor_index < b.spec->segments.front().tensor_index; });
}

}  // namespace

RankGroup::RankGroup(std::vector<Plan> plans, const EngineOptions& options, ProcessWorld* world)
    : world_(world), plans_(std::move(plans)), first_local_(world != nullptr ? world->rank() : 0), results_(plans_.size()) {
  ORRERY_CHECK(world == nullptr || world->size() == size(), "{} processes, {} plans", world->size(), size());
  const int num_local = world != nullptr ? 1 : size();
  EngineOptions each = options;
  each.num_threads = rank_threads(options.num_threads, num_local);
  each.pin_threads = options.pin_threads && size() == 1;
  std::vector<std::unique_ptr<Communicator>> communicators;
  if (num_local > 1) communicators = make_local_communicators(num_local);
  for (int index = 0; index < num_local; ++index) {
    auto entry = std::make_unique<Rank>();
    if (num_local > 1) entry->communicator = std::move(communicators[static_cast<size_t>(index)]);
    entry->group = world != nullptr ? &world->steps() : entry->communicator.get();
    entry->engine = std::make_unique<TrainingEngine>(plan(first_local_ + index), each, entry->group);
    ranks_.push_back(std::move(entry));
  }
  evaluated_.resize(static_cast<size_t>(plan().options.num_losses()));
  for (int index = 1; index < num_local; ++index) local(first_local_ + index).thread = std::thread([this, rank = first_local_ + index] { rank_thread(rank); });
  on_every_rank([this](int rank) { engine(rank).connect(); });
}

RankGroup::~RankGroup() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (auto& rank : ranks_)
    if (rank->thread.joinable()) rank->thread.join();
}

int64_t RankGroup::planned_bytes() const {
  return std::accumulate(ranks_.begin(), ranks_.end(), int64_t{0}, [](int64_t sum, const auto& rank) { return sum + rank->engine->plan().memory.total_bytes; });
}

// A rank that fails tells the others, who would wait for it until their deadlines.
void RankGroup::run_on(int rank) {
  Rank& self = local(rank);
  try {
    (*body_)(rank);
  } catch (const Error& error) {
    self.error = std::current_exception();
    if (self.group != nullptr) self.group->abort(error.code(), error.what());
  } catch (...) {
    self.error = std::current_exception();
    if (self.group != nullptr) self.group->abort(ErrorCode::kPeerLost, "an internal error");
  }
}

void RankGroup::rank_thread(int rank) {
  set_floating_point_mode();
  for (uint64_t seen = 0;;) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
    }
    run_on(rank);
    std::lock_guard lock(mutex_);
    if (--num_running_ == 0) changed_.notify_all();
  }
}

void RankGroup::on_every_rank(const std::function<void(int)>& body) {
  {
    std::lock_guard lock(mutex_);
    body_ = &body;
    num_running_ = num_local() - 1;
    ++generation_;
  }
  changed_.notify_all();
  run_on(first_local_);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return num_running_ == 0; });
  for (auto& rank : ranks_)
    if (rank->error) std::rethrow_exception(std::exchange(rank->error, nullptr));
}

void RankGroup::share_weights() {
  if (plan().options.pipeline.size == 1) return;
  on_every_rank([this](int rank) { engine(rank).share_weights(); });
}

void RankGroup::initialize_weights(uint64_t seed) {
  for (auto& rank : ranks_) rank->engine->initialize_weights(seed);
}

void RankGroup::start_from_weights() {
  for (auto& rank : ranks_) rank->engine->start_from_weights();
}

void RankGroup::exchange_weight_versions() {
  if (delays_gradients()) on_every_rank([this](int rank) { engine(rank).exchange_weight_versions(); });
}

void RankGroup::start_data(const Dataset& dataset, int64_t first_step) {
  for (auto& rank : ranks_) {
    const Plan& plan = rank->engine->plan();
    Prefetcher::Options options;
    options.first_step = static_cast<uint64_t>(first_step);
    options.global_batch_size = static_cast<uint64_t>(plan.options.global_batch_size);
    options.ranges = token_ranges(plan.options);
    options.sequences = batch_sequences(plan);
    std::vector<BatchBuffers> buffers;
    for (int copy = 0; copy < training_copies(plan); ++copy) buffers.push_back(buffers_of(rank->engine->batch(copy)));
    rank->data.emplace(dataset, options, std::move(buffers));
  }
}

StepResult RankGroup::step(int64_t step, const OptimizerHyper& hyper, const std::function<void()>& before_update) {
  const std::function<void(int)> body = [&](int index) {
    Rank& rank = local(index);
    check_context().rank = index;
    check_context().step = step;
    const Prefetcher::Batch batch = rank.data->next();
    int copy = 0;
    while (rank.engine->batch(copy).ids.data() != batch.buffers->ids) ++copy;
    if (plan(index).schedule.carries) rank.data->wait_ahead();
    results_[static_cast<size_t>(index)] = rank.engine->step(copy, hyper, before_update);
  };
  on_every_rank(body);
  return results_[static_cast<size_t>(first_local_)];
}

StepResult RankGroup::evaluate(const Dataset& dataset, int64_t first, int64_t count) {
  int64_t most = 0;
  for (int rank = 0; rank < size(); ++rank) {
    const SequenceShare share = sequence_share(plan(rank));
    most = std::max(most, std::clamp<int64_t>(count - share.first, 0, share.count));
  }
  const std::function<void(int)> body = [&](int index) {
    Rank& rank = local(index);
    const SequenceShare share = sequence_share(plan(index));
    const TrainingPlanOptions& options = plan(index).options;
    const int64_t mine = std::clamp<int64_t>(count - share.first, 0, share.count), tokens = options.local_tokens();
    const BatchView view = rank.engine->batch(rank.engine->eval_copy());
    SampleReader reader(dataset, token_ranges(options));
    int num_segments = 0;
    for (int64_t i = 0; i < mine; ++i) {
      const SampleBuffers row{view.ids.data() + i * tokens, view.targets.data() + i * tokens, view.positions.data() + i * tokens};
      view.segment_counts[static_cast<size_t>(i)] =
          reader.fill_sample(static_cast<uint64_t>(first + share.first + i), row, static_cast<int32_t>(i * options.sequence_tokens), view.segment_starts.data() + num_segments);
      num_segments += view.segment_counts[static_cast<size_t>(i)];
    }
    results_[static_cast<size_t>(index)].num_valid = rank.engine->evaluate(mine, most, std::span(evaluated_).subspan(static_cast<size_t>(first_loss(options, share)), static_cast<size_t>(mine)));
  };
  on_every_rank(body);
  if (world_ != nullptr) {
    const std::vector<int64_t> counts = world_->gather(results_[static_cast<size_t>(first_local_)].num_valid, "evaluate");
    std::vector<ElementRange> ranges;
    for (int rank = 0; rank < size(); ++rank) {
      const SequenceShare share = sequence_share(plan(rank));
      constexpr auto kWidth = static_cast<int64_t>(sizeof(double));
      // Of a pipeline's ranks one has the losses.
      const int64_t begin = first_loss(plan(rank).options, share);
      ranges.push_back({begin * kWidth, (begin + (has_losses(plan(rank)) ? share.count : 0)) * kWidth});
      results_[static_cast<size_t>(rank)].num_valid = counts[static_cast<size_t>(rank)];
    }
    world_->control().all_gather_ranges(std::as_writable_bytes(std::span(evaluated_)), ranges, "evaluate");
  }
  StepResult result;
  for (const StepResult& part : results_) result.num_valid += part.num_valid;
  for (int64_t part = 0; part < plan().options.parallel.context_size; ++part)
    for (int64_t sequence = 0; sequence < count; ++sequence) result.loss_sum += evaluated_[static_cast<size_t>(part * plan().options.global_batch_size + sequence)];
  return result;
}

std::vector<int> RankGroup::local_replicas() const {
  const auto num_replicas = static_cast<int>(plan().options.data.size);
  std::vector<int> replicas;
  const auto holds = [&](int replica) {
    for (int rank = replica; rank < size(); rank += num_replicas)
      if (is_local(rank)) return true;
    return false;
  };
  for (int replica = 0; replica < num_replicas; ++replica) {
    const int first = shards_weights() ? first_of_shards(replica) : replica;
    if (holds(replica) && (replicas.empty() || replicas.back() != first)) replicas.push_back(first);
  }
  return replicas;
}

std::vector<int> RankGroup::local_parts() const {
  std::vector<int> parts;
  for (int rank = first_local_; rank < first_local_ + num_local(); ++rank) parts.push_back(static_cast<int>(plan(rank).options.parallel.part()));
  parts.erase(std::unique(parts.begin(), parts.end()), parts.end());
  return parts;
}

std::vector<PhysicalTensor> RankGroup::weights(int replica, int part) const {
  if (plan().options.optimizer.offload_weights) return state(StateField::kNewest, replica, part);
  std::vector<PhysicalTensor> tensors;
  const DataParallel& data = plan().options.data;
  const int first = shards_weights() ? first_of_shards(replica) : replica, end = shards_weights() ? first + static_cast<int>(data.num_shards()) : first + 1;
  for (int stage_begin = 0; stage_begin < size(); stage_begin += static_cast<int>(data.size)) {
    const Plan& stage = plan(stage_begin);
    for (size_t i = 0; i < stage.stage.parameters.size(); ++i) {
      const bool updated_elsewhere = stage.shared && !stage.shared->updated_here && stage.shared->parameter == static_cast<int32_t>(i);
      if (updated_elsewhere) continue;
      for (int holder = stage_begin + first; holder < stage_begin + end; ++holder) {
        const OwnedElements kept = weight_shard(plan(holder), i);
        if (kept.size() == 0) continue;
        tensors.push_back({&plan(holder).stage.parameters[i], is_local(holder) ? local(holder).engine->parameter_data(i) : nullptr, stage.stage.compute_dtype, kept.begin, kept.end, holder, part});
      }
    }
  }
  sort_by_model_order(tensors);
  return tensors;
}

std::vector<PhysicalTensor> RankGroup::state(StateField field, int replica, int part) const {
  const DType dtype = field == StateField::kLow ? DType::kI16 : field == StateField::kNewest ? plan().stage.compute_dtype : plan().options.optimizer.moment_dtype;
  const DataParallel& data = plan().options.data;
  const int first = shards_state() ? first_of_shards(replica) : replica, end = shards_state() ? first + static_cast<int>(data.num_shards()) : first + 1;
  std::vector<PhysicalTensor> tensors;
  for (int stage_begin = 0; stage_begin < size(); stage_begin += static_cast<int>(data.size)) {
    const Stage& stage = plan(stage_begin).stage;
    for (size_t i = 0; i < stage.parameters.size(); ++i) {
      for (int holder = stage_begin + first; holder < stage_begin + end; ++holder) {
        for (const StatePlace& place : state_places(plan(holder), i, field))
          tensors.push_back({&stage.parameters[i], is_local(holder) ? local(holder).engine->state_data(place) : nullptr, dtype, place.begin, place.end, holder, part});
      }
    }
  }
  sort_by_model_order(tensors);
  return tensors;
}

}  // namespace orrery
