#include "train/rank_group.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace orrery {
namespace {

constexpr int kEvalCopy = 2;

BatchBuffers buffers_of(const BatchView& view) {
  return {view.ids.data(), view.targets.data(), view.positions.data(), view.segment_starts.data(), view.segment_counts.data()};
}

}  // namespace

RankGroup::RankGroup(std::vector<Plan> plans, const EngineOptions& options) : results_(plans.size()) {
  const auto size = static_cast<int>(plans.size());
  EngineOptions each = options;
  each.num_threads = rank_threads(options.num_threads, size);
  each.pin_threads = options.pin_threads && size == 1;
  std::vector<std::unique_ptr<Communicator>> communicators;
  if (size > 1) communicators = make_local_communicators(size);
  for (int rank = 0; rank < size; ++rank) {
    auto entry = std::make_unique<Rank>();
    entry->plan = std::move(plans[static_cast<size_t>(rank)]);
    if (size > 1) entry->communicator = std::move(communicators[static_cast<size_t>(rank)]);
    entry->engine = std::make_unique<TrainingEngine>(entry->plan, each, entry->communicator.get());
    ranks_.push_back(std::move(entry));
  }
  evaluated_.resize(static_cast<size_t>(plan().options.global_batch_size));
  for (int rank = 1; rank < size; ++rank) ranks_[static_cast<size_t>(rank)]->thread = std::thread([this, rank] { rank_thread(rank); });
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
  return std::accumulate(ranks_.begin(), ranks_.end(), int64_t{0}, [](int64_t sum, const auto& rank) { return sum + rank->plan.memory.total_bytes; });
}

// A rank that fails tells the others, who would wait for it until their deadlines.
void RankGroup::run_on(int rank) {
  Rank& self = *ranks_[static_cast<size_t>(rank)];
  try {
    (*body_)(rank);
  } catch (const Error& error) {
    self.error = std::current_exception();
    if (self.communicator) self.communicator->abort(error.code(), error.what());
  } catch (...) {
    self.error = std::current_exception();
    if (self.communicator) self.communicator->abort(ErrorCode::kPeerLost, "an internal error");
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
    num_running_ = size() - 1;
    ++generation_;
  }
  changed_.notify_all();
  run_on(0);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return num_running_ == 0; });
  for (auto& rank : ranks_)
    if (rank->error) std::rethrow_exception(std::exchange(rank->error, nullptr));
}

void RankGroup::initialize_weights(uint64_t seed) {
  for (auto& rank : ranks_) rank->engine->initialize_weights(seed);
}

void RankGroup::start_data(const Dataset& dataset, int64_t first_step) {
  for (auto& rank : ranks_) {
    const SequenceShare share = sequence_share(rank->plan);
    Prefetcher::Options options;
    options.first_step = static_cast<uint64_t>(first_step);
    options.global_batch_size = static_cast<uint64_t>(rank->plan.options.global_batch_size);
    options.sequences.resize(static_cast<size_t>(share.count));
    std::iota(options.sequences.begin(), options.sequences.end(), static_cast<int>(share.first));
    rank->data.emplace(dataset, options, std::array{buffers_of(rank->engine->batch(0)), buffers_of(rank->engine->batch(1))});
  }
}

StepResult RankGroup::step(int64_t step, const OptimizerHyper& hyper, const std::function<void()>& before_update) {
  const std::function<void(int)> body = [&](int index) {
    Rank& rank = *ranks_[static_cast<size_t>(index)];
    check_context().step = step;
    const Prefetcher::Batch batch = rank.data->next();
    const int copy = batch.buffers->ids == rank.engine->batch(0).ids.data() ? 0 : 1;
    results_[static_cast<size_t>(index)] = rank.engine->step(copy, hyper, before_update);
  };
  on_every_rank(body);
  return results_[0];
}

StepResult RankGroup::evaluate(const Dataset& dataset, int64_t first, int64_t count) {
  const std::function<void(int)> body = [&](int index) {
    Rank& rank = *ranks_[static_cast<size_t>(index)];
    const SequenceShare share = sequence_share(rank.plan);
    const int64_t mine = std::clamp<int64_t>(count - share.first, 0, share.count), tokens = rank.plan.options.sequence_tokens;
    const BatchView view = rank.engine->batch(kEvalCopy);
    int num_segments = 0;
    for (int64_t i = 0; i < mine; ++i) {
      const SampleBuffers row{view.ids.data() + i * tokens, view.targets.data() + i * tokens, view.positions.data() + i * tokens};
      view.segment_counts[static_cast<size_t>(i)] =
          dataset.fill_sample(static_cast<uint64_t>(first + share.first + i), row, static_cast<int32_t>(i * tokens), view.segment_starts.data() + num_segments);
      num_segments += view.segment_counts[static_cast<size_t>(i)];
    }
    results_[static_cast<size_t>(index)].num_valid = rank.engine->evaluate(mine, std::span(evaluated_).subspan(static_cast<size_t>(share.first), static_cast<size_t>(mine)));
  };
  on_every_rank(body);
  StepResult result;
  for (const StepResult& part : results_) result.num_valid += part.num_valid;
  for (int64_t sequence = 0; sequence < count; ++sequence) result.loss_sum += evaluated_[static_cast<size_t>(sequence)];
  return result;
}

std::vector<PhysicalTensor> RankGroup::weights(int rank) const {
  const Rank& holder = *ranks_[static_cast<size_t>(rank)];
  std::vector<PhysicalTensor> tensors;
  for (size_t i = 0; i < holder.plan.stage.parameters.size(); ++i)
    tensors.push_back({&holder.plan.stage.parameters[i], holder.engine->parameter_data(i), holder.plan.stage.compute_dtype});
  return tensors;
}

std::vector<PhysicalTensor> RankGroup::state(StateField field, int rank) const {
  const DType dtype = field == StateField::kLow ? DType::kI16 : plan().options.optimizer.moment_dtype;
  std::vector<PhysicalTensor> tensors;
  for (size_t i = 0; i < plan().stage.parameters.size(); ++i)
    for (int holder = 0; holder < size(); ++holder) {
      if (!shards_state() && holder != rank) continue;
      const Rank& from = *ranks_[static_cast<size_t>(holder)];
      const auto& [begin, end] = from.plan.memory.state_range[i];
      if (std::byte* data = from.engine->state_data(i, field)) tensors.push_back({&plan().stage.parameters[i], data, dtype, begin, end});
    }
  return tensors;
}

}  // namespace orrery
