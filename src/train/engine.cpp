#include "train/engine.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/error.h"
#include "parallel/shard.h"
#include "planner/shared_layers.h"
#include "runtime/initialize.h"

namespace orrery {
namespace {

constexpr int32_t kNoOp = -1;

// The first op behind `op` before which the action waits again.
int32_t next_wait(const Action& action, int32_t op) {
  int32_t next = kNoOp;
  for (const Wait& wait : action.waits)
    if (wait.before_op > op && (next == kNoOp || wait.before_op < next)) next = wait.before_op;
  return next;
}

int usable_cores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

double seconds_since(std::chrono::steady_clock::time_point start) { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); }

}  // namespace

EngineOptions default_engine_options(int num_threads) {
  const CpuFeatures& features = cpu_features();
  if (!features.avx2) throw Error(ErrorCode::kUnsupported, "this processor ({}) has no AVX2 with FMA, which Orrery's kernels need", features.model_name);
  EngineOptions options;
  options.num_threads = num_threads > 0 ? num_threads : usable_cores();
  options.isa = features.best_isa();
  options.arithmetic = native_arithmetic(features);
  return options;
}

int rank_threads(int num_threads, int num_ranks) { return std::max(1, num_threads / num_ranks); }

DeviceSpec device_spec(const EngineOptions& options) {
  return {options.isa, options.arithmetic, options.native_arithmetic, options.num_threads};
}

WorkspaceBytes workspace_traits(const EngineOptions& options, int64_t sequence_tokens) {
  return [device = device_spec(options), sequence_tokens](const Stage& stage, const Op& op) { return op_workspace_bytes(device, stage, op, sequence_tokens); };
}

TrainingEngine::TrainingEngine(const Plan& plan, const EngineOptions& options, Communicator* world)
    : plan_(plan),
      computes_(options.computes),
      pool_(options.num_threads, options.pin_threads),
      arena_(plan.memory.total_bytes),
      executor_(plan.stage, plan.memory, arena_, {&pool_, options.isa, options.arithmetic, options.native_arithmetic}, plan.options.sequence_tokens),
      action_seconds_(plan.schedule.actions.size()),
      world_(world),
      progress_(plan.schedule) {
  set_floating_point_mode();
  sequences_ = batch_sequences(plan);
  unit_uses_ = unit_uses(plan.stage, plan.units);
  if (plan.options.optimizer.offload_weights)
    for (const ParameterUnit& unit : plan.units) {
      std::vector<WeightPart>& parts = weight_parts_.emplace_back();
      for (auto parameter = static_cast<size_t>(unit.first); parameter < static_cast<size_t>(unit.first + unit.count); ++parameter)
        for (const StatePlace& place : state_places(plan, parameter, StateField::kNewest))
          parts.push_back({place.offset, plan.memory.parameter_offset[parameter] + place.begin * dtype_bytes(plan.stage.compute_dtype), place.end - place.begin});
    }
  const size_t sequences = sequences_.size();
  const auto copies = static_cast<size_t>(training_copies(plan) + plan.options.evaluates);
  segment_starts_.assign(copies * (sequences * static_cast<size_t>(plan.options.segments_per_sequence) + 1), 0);
  segment_counts_.assign(copies * sequences, 1);
  for (size_t i = 0; i < plan.stage.constants.size(); ++i)
    fill_rope_table(plan.stage.constants[i], reinterpret_cast<float*>(arena_.data() + plan.memory.constant_offset[i]));
  const auto num_chunks = static_cast<size_t>(plan.stage.num_chunks());
  slots_.assign(plan.schedule.micro_batches.size() * num_chunks, 0);
  for (const Action& action : plan.schedule.actions) {
    labels_.push_back(to_string(action, plan.schedule));
    if (action.kind == ActionKind::kForward) slots_[static_cast<size_t>(action.micro_batch) * num_chunks + static_cast<size_t>(action.chunk)] = action.slot;
  }
  if (offload_bytes(plan) > 0) {
    offloaded_.emplace(options.offload_place, offload_bytes(plan));
    copy_thread_.emplace([this] {
      try {
        run_copies();
      } catch (...) {
        progress_.fail(std::current_exception());
      }
    });
  }
  const int64_t size = plan.options.world_size();
  ORRERY_CHECK((world == nullptr && size == 1) || (world != nullptr && world->size() == size && world->rank() == plan.options.world_rank()), "a plan for rank {} of {}",
               plan.options.world_rank(), size);
}

TrainingEngine::~TrainingEngine() = default;

void TrainingEngine::connect() {
  if (world_ == nullptr) return;
  const DataParallel& data = plan_.options.data;
  const PipelineParallel& pipeline = plan_.options.pipeline;
  const ParallelContext& parallel = plan_.options.parallel;
  Communicator* slice = world_;
  if (parallel.num_parts() > 1) {
    slice_group_ = world_->split(static_cast<int>(parallel.part()), static_cast<int>(plan_.options.slice_rank()), "split slice");
    slice = slice_group_.get();
    std::vector<OpGroup> groups;
    for (const GroupAttributes& group : op_groups(plan_.options)) {
      // Of each `stride` parts that follow each other, `size` times: those that are as far from the first of them.
      const int64_t part = parallel.part(), first = part / (group.size * group.stride) * group.stride + part % group.stride;
      op_groups_.push_back(world_->split(static_cast<int>(first * plan_.options.slice_size() + plan_.options.slice_rank()), static_cast<int>(part), "split layer"));
      groups.emplace_back(group, *op_groups_.back());
    }
    executor_.set_groups(std::move(groups));
  }
  data_ = slice;
  if (pipeline.size > 1) {
    data_group_ = slice->split(static_cast<int>(pipeline.rank), static_cast<int>(data.rank), "split data");
    pipeline_group_ = slice->split(static_cast<int>(data.rank), static_cast<int>(pipeline.rank), "split pipeline");
    data_ = data_group_.get();
    messages_.emplace(plan_.schedule, static_cast<int32_t>(plan_.rank_of_stage.size()), data.size, *pipeline_group_, message_buffers(), progress_);
    message_thread_.emplace([this] {
      try {
        messages_->run(begins_flow_);
      } catch (...) {
        progress_.fail(std::current_exception());
      }
    });
  }
  if (data.num_replicas() > 1) {
    shard_group_ = data_->split(static_cast<int>(data.replica()), static_cast<int>(data.shard()), "split shards");
    replica_group_ = data_->split(static_cast<int>(data.shard()), static_cast<int>(data.replica()), "split replicas");
    data_ = shard_group_.get();
  }
  plan_reductions();
  ranges_.resize(static_cast<size_t>(std::max(data.num_shards(), data.num_replicas())));
  collective_thread_.emplace([this] {
    try {
      run_collectives();
    } catch (...) {
      progress_.fail(std::current_exception());
    }
  });
}

std::vector<const Communicator*> TrainingEngine::communicators() const {
  std::vector<const Communicator*> all;
  for (const Communicator* one : {static_cast<const Communicator*>(world_), static_cast<const Communicator*>(slice_group_.get()), static_cast<const Communicator*>(data_group_.get()), static_cast<const Communicator*>(pipeline_group_.get()),
                                  static_cast<const Communicator*>(shard_group_.get()), static_cast<const Communicator*>(replica_group_.get())})
    if (one != nullptr) all.push_back(one);
  for (const auto& group : op_groups_) all.push_back(group.get());
  return all;
}

std::byte* TrainingEngine::parameter_data(size_t parameter) const {
  return arena_.data() + (plan_.options.data.shards_weights() ? plan_.memory.parameter_shard_offset : plan_.memory.parameter_offset)[parameter];
}

std::byte* TrainingEngine::state_data(size_t parameter, StateField field) const {
  const int64_t offset = plan_.memory.state_offset[parameter][static_cast<size_t>(field)];
  return offset < 0 ? nullptr : arena_.data() + offset;
}

std::byte* TrainingEngine::state_data(const StatePlace& place) const { return (place.offloaded ? offloaded_->data() : arena_.data()) + place.offset; }

std::byte* TrainingEngine::batch_data(BatchField field, int copy) const {
  const auto index = static_cast<size_t>(field);
  ORRERY_CHECK(plan_.memory.batch_offset[index] >= 0, "the model has no batch field {}", index);
  return arena_.data() + plan_.memory.batch_offset[index] + copy * plan_.memory.batch_bytes[index];
}

void TrainingEngine::initialize_weights(uint64_t seed) {
  // Of a parameter of which this rank keeps a part; what it keeps of the weight is also what it gathers from, where another rank updates it.
  std::vector<int16_t> whole_low;
  std::vector<std::byte> whole;
  const auto width = static_cast<int64_t>(dtype_bytes(plan_.stage.compute_dtype));
  for (size_t i = 0; i < plan_.stage.parameters.size(); ++i) {
    const ParameterSpec& spec = plan_.stage.parameters[i];
    const std::vector<StatePlace> low = state_places(plan_, i, StateField::kLow);
    const bool partly = low.size() > 1 || (!low.empty() && low[0].end - low[0].begin < spec.num_elements());
    if (partly) whole_low.resize(static_cast<size_t>(spec.num_elements()));
    const bool elsewhere = plan_.options.optimizer.offload_weights, sharded = plan_.options.data.shards_weights() || elsewhere;
    if (sharded) whole.resize(static_cast<size_t>(spec.num_elements() * width));
    int16_t* const into = partly ? whole_low.data() : low.empty() ? nullptr : reinterpret_cast<int16_t*>(state_data(low[0]));
    initialize_parameter(spec, seed, plan_.stage.compute_dtype, sharded ? whole.data() : parameter_data(i), into, pool_);
    if (partly)
      for (const StatePlace& place : low) std::copy(whole_low.begin() + place.begin, whole_low.begin() + place.end, reinterpret_cast<int16_t*>(state_data(place)));
    if (elsewhere)
      for (const StatePlace& place : state_places(plan_, i, StateField::kNewest)) std::memcpy(state_data(place), whole.data() + place.begin * width, static_cast<size_t>((place.end - place.begin) * width));
    if (!sharded || elsewhere) continue;
    const OwnedElements kept = weight_shard(plan_, i);
    std::memcpy(parameter_data(i), whole.data() + kept.begin * width, static_cast<size_t>(kept.size() * width));
  }
  start_from_weights();
}

std::byte* TrainingEngine::newest_data(size_t parameter) const { return arena_.data() + plan_.memory.state_offset[parameter][static_cast<size_t>(StateField::kNewest)]; }

// What is about to change is no longer what work of the next step was done on.
void TrainingEngine::for_each_newest(const std::function<void(std::byte* weight, std::byte* newest, size_t bytes)>& visit) {
  in_flow_ = false;
  const int64_t width = dtype_bytes(plan_.stage.compute_dtype);
  for (size_t i = 0; i < plan_.stage.parameters.size(); ++i) {
    if (plan_.memory.newest_whole) {
      visit(parameter_data(i), newest_data(i), static_cast<size_t>(plan_.stage.parameters[i].num_elements() * width));
      continue;
    }
    for (const StatePlace& place : state_places(plan_, i, StateField::kNewest))
      visit(parameter_data(i) + (place.begin - weight_shard(plan_, i).begin) * width, state_data(place), static_cast<size_t>((place.end - place.begin) * width));
  }
}

void TrainingEngine::start_from_weights() {
  if (plan_.options.optimizer.gradient_delay == 0) return;
  for_each_newest([](std::byte* weight, std::byte* newest, size_t bytes) { std::memcpy(newest, weight, bytes); });
}

void TrainingEngine::exchange_weight_versions() {
  for_each_newest([](std::byte* weight, std::byte* newest, size_t bytes) { std::swap_ranges(weight, weight + bytes, newest); });
  const DataParallel& data = plan_.options.data;
  if (data.size > 1 && data.zero_stage >= 1 && !data.shards_weights() && !plan_.memory.newest_whole)
    for (const ParameterUnit& unit : plan_.units)
      if (unit.accumulator == 0) gather_parameters(unit, "exchange weights");
  share_weights();
}

BatchView TrainingEngine::batch(int copy) {
  const size_t sequences = sequences_.size();
  const size_t tokens = sequences * static_cast<size_t>(plan_.options.local_tokens());
  const size_t starts = sequences * static_cast<size_t>(plan_.options.segments_per_sequence) + 1;
  const auto field = [&](BatchField name) { return std::span(reinterpret_cast<int32_t*>(batch_data(name, copy)), tokens); };
  return {field(BatchField::kIds), field(BatchField::kTargets), field(BatchField::kPositions),
          std::span(segment_starts_).subspan(static_cast<size_t>(copy) * starts, starts),
          std::span(segment_counts_).subspan(static_cast<size_t>(copy) * sequences, sequences)};
}

// cu_seqlens of a micro-batch from its sequences' documents; returns the number of segments.
int64_t TrainingEngine::write_segments(int copy, const MicroBatch& batch, int32_t micro_batch) {
  const int64_t most = plan_.options.segments_per_sequence, tokens = plan_.options.sequence_tokens;
  if (plan_.memory.batch_offset[static_cast<size_t>(BatchField::kCuSeqlens)] < 0) return 0;  // no attention in this rank's stages
  const int64_t slice = align_up((plan_.micro_batch_size * most + 1) * 4, kArenaAlignment);
  auto* cu_seqlens = reinterpret_cast<int32_t*>(batch_data(BatchField::kCuSeqlens, copy) + micro_batch * slice);
  const BatchView view = this->batch(copy);
  int64_t first = 0, count = 0;
  for (int64_t i = 0; i < batch.first_sequence; ++i) first += view.segment_counts[static_cast<size_t>(i)];
  for (int64_t i = 0; i < batch.num_sequences; ++i) {
    const int32_t segments = view.segment_counts[static_cast<size_t>(batch.first_sequence + i)];
    ORRERY_CHECK(segments >= 1 && segments <= most, "{} segments in a window, planned for {}", segments, most);
    count += segments;
  }
  const auto base = static_cast<int32_t>(batch.first_sequence * tokens);
  for (int64_t i = 0; i < count; ++i) cu_seqlens[i] = view.segment_starts[static_cast<size_t>(first + i)] - base;
  cu_seqlens[count] = static_cast<int32_t>(batch.num_sequences * tokens);
  return count;
}

ActionBinding TrainingEngine::bind(const Action& action, int copy) {
  ActionBinding binding;
  binding.chunk = action.chunk;
  binding.gradient_buffer = buffer_in_step(plan_.schedule, action.gradient_buffer, step_index_);
  binding.source_buffer = buffer_in_step(plan_.schedule, std::max(0, action.source_buffer), step_index_);
  // What a fresh start does of its first step is on that step's batch and weights.
  binding.newest_weights = action.next_step && !begins_flow_;
  if (binding.newest_weights) copy = (copy + 1) % training_copies(plan_);
  binding.batch_copy = copy;
  if (action.micro_batch < 0) return binding;
  const MicroBatch& batch = plan_.schedule.micro_batches[static_cast<size_t>(action.micro_batch)];
  binding.micro_batch = action.micro_batch;
  const auto num_chunks = static_cast<size_t>(plan_.stage.num_chunks());
  binding.slots = std::span(slots_).subspan(static_cast<size_t>(action.micro_batch) * num_chunks, num_chunks);
  binding.first_token = batch.first_sequence * plan_.options.local_tokens();
  binding.num_tokens = batch.num_sequences * plan_.options.local_tokens();
  binding.num_segments = write_segments(copy, batch, action.micro_batch);
  binding.fold = {batch.num_sequences, plan_.options.local_tokens(), action.merges.data(), action.add_to_destination};
  return binding;
}

double TrainingEngine::sequence_loss(int copy, int64_t sequence) const {
  const int64_t tokens = plan_.options.local_tokens();
  const auto* losses = reinterpret_cast<const float*>(batch_data(BatchField::kTokenLoss, copy)) + sequence * tokens;
  double sum = 0;
  for (int64_t i = 0; i < tokens; ++i) sum += static_cast<double>(losses[i]);
  return sum;
}

int64_t TrainingEngine::count_valid(int copy, int64_t num_sequences) {
  const auto targets = batch(copy).targets;
  return std::count_if(targets.begin(), targets.begin() + num_sequences * plan_.options.local_tokens(), [](int32_t target) { return target >= 0; });
}

std::span<double> TrainingEngine::exchanged() const {
  return {reinterpret_cast<double*>(step_data(StepField::kSquaredSums)), static_cast<size_t>(plan_.num_norm_blocks + plan_.options.num_losses() + 1)};
}

void TrainingEngine::compute(int copy, const std::function<void()>& before_update) {
  const Schedule& schedule = plan_.schedule;
  const std::span<double> sums = exchanged();
  for (size_t i = 0; i < schedule.actions.size(); ++i) {
    const Action& action = schedule.actions[i];
    if (stream_of(action.kind) != Stream::kCompute || !runs(action)) continue;
    if (!progress_.wait_for(action)) return;
    if (world_ != nullptr) world_->set_activity(labels_[i]);
    auto begin = std::chrono::steady_clock::now();
    const ActionBinding binding = bind(action, copy);
    switch (action.kind) {
      case ActionKind::kNorm: {
        // Each number is made by one rank and zero on the others, so that their sum is exact in any order.
        std::fill(sums.begin(), sums.end(), 0.0);
        if (!is_empty(action)) executor_.run(Phase::kNorm, binding);
        if (!has_losses(plan_)) break;
        const int64_t first_loss = plan_.num_norm_blocks + plan_.options.parallel.context_rank * plan_.options.global_batch_size;
        for (size_t k = 0; k < sequences_.size(); ++k) sums[static_cast<size_t>(first_loss + sequences_[k])] = sequence_loss(copy, static_cast<int64_t>(k));
        sums.back() = static_cast<double>(count_valid(copy, static_cast<int64_t>(sequences_.size())));
        break;
      }
      default:
        if (action.kind == ActionKind::kOptimizer) begin_update(before_update);
        // In parts, where an op in the middle waits for a unit, or a piece of the state.
        for (int32_t first = 0; first != kNoOp;) {
          const int32_t next = next_wait(action, first);
          if (!is_empty(action))
            executor_.run(*phase_of_action(action.kind), binding, &progress_.counter(i), {static_cast<size_t>(first), next == kNoOp ? SIZE_MAX : static_cast<size_t>(next)});
          else if (next != kNoOp)
            progress_.mark_ops(i, next);
          first = next;
          if (first == kNoOp) break;
          action_seconds_[i] += seconds_since(begin);
          if (!progress_.wait_for(action, first)) return;
          begin = std::chrono::steady_clock::now();
        }
    }
    action_seconds_[i] += seconds_since(begin);
    progress_.mark_done(i);
  }
}

void TrainingEngine::begin_update(const std::function<void()>& before_update) {
  const auto num_valid = static_cast<int32_t>(exchanged().back());
  std::memcpy(step_data(StepField::kNumValid), &num_valid, sizeof num_valid);
  if (before_update) before_update();
}

StepResult TrainingEngine::step(int copy, const OptimizerHyper& hyper, const std::function<void()>& before_update) {
  const auto begin = std::chrono::steady_clock::now();
  std::memcpy(step_data(StepField::kHyper), &hyper, sizeof hyper);
  ORRERY_CHECK(world_ == nullptr || collective_thread_, "a rank of {} steps before connect()", plan_.options.world_size());
  for (Communicator* group : {world_, data_group_.get(), pipeline_group_.get(), shard_group_.get(), replica_group_.get()})
    if (group != nullptr) group->set_step(check_context().step);
  for (const auto& group : op_groups_) group->set_step(check_context().step);
  if (plan_.schedule.carries && !in_flow_) {
    // As the step before would have done.
    --step_index_;
    begins_flow_ = true;
    run_streams(copy, {});
    begins_flow_ = false;
    ++step_index_;
  }
  run_streams(copy, before_update);
  in_flow_ = plan_.schedule.carries;
  ++step_index_;
  ++num_steps_timed_;
  step_seconds_ += seconds_since(begin);
  StepResult result;
  const std::span<double> sums = exchanged();
  for (int64_t sequence = 0; sequence < plan_.options.num_losses(); ++sequence) result.loss_sum += sums[static_cast<size_t>(plan_.num_norm_blocks + sequence)];
  result.num_valid = static_cast<int64_t>(sums.back());
  float scale[2];
  double stats[4];
  std::memcpy(scale, step_data(StepField::kScale), sizeof scale);
  std::memcpy(stats, step_data(StepField::kStats), sizeof stats);
  result.gradient_norm = stats[0];
  result.skipped = scale[1] == 0;
  return result;
}

void TrainingEngine::run_streams(int copy, const std::function<void()>& before_update) {
  progress_.begin_step(begins_flow_);
  bind_messages();
  const bool alone = world_ == nullptr;
  if (!alone) collective_thread_->begin();
  if (message_thread_) message_thread_->begin();
  if (copy_thread_) copy_thread_->begin();
  try {
    compute(copy, before_update);
  } catch (...) {
    progress_.fail(std::current_exception());
  }
  if (!alone) collective_thread_->wait();
  if (message_thread_) message_thread_->wait();
  if (copy_thread_) copy_thread_->wait();
  progress_.rethrow();
}

int64_t TrainingEngine::evaluate(int64_t num_sequences, int64_t most_sequences, std::span<double> loss_sums) {
  ORRERY_CHECK(plan_.options.evaluates && num_sequences <= static_cast<int64_t>(sequences_.size()), "evaluation of {} sequences", num_sequences);
  in_flow_ = false;  // activations of the next step lie where those of the evaluation will
  const int eval_copy = this->eval_copy();
  const int64_t end = plan_.options.data.shards_weights() ? most_sequences : num_sequences;
  for (int64_t first = 0; first < end; first += plan_.micro_batch_size) {
    const MicroBatch batch{first, std::clamp<int64_t>(num_sequences - first, 0, plan_.micro_batch_size)};
    ActionBinding binding;
    binding.batch_copy = eval_copy;
    binding.first_token = first * plan_.options.local_tokens();
    binding.num_tokens = batch.num_sequences * plan_.options.local_tokens();
    if (batch.num_sequences > 0) binding.num_segments = write_segments(eval_copy, batch, 0);
    binding.fold = {batch.num_sequences, plan_.options.local_tokens(), nullptr, false};
    for (binding.chunk = 0; binding.chunk < plan_.stage.num_chunks(); ++binding.chunk) evaluate_stage(binding.chunk, binding);
  }
  if (!has_losses(plan_)) return 0;
  for (int64_t sequence = 0; sequence < num_sequences; ++sequence) loss_sums[static_cast<size_t>(sequence)] = sequence_loss(eval_copy, sequence);
  return count_valid(eval_copy, num_sequences);
}

// One stage's forward for one micro-batch between its two neighbours; boundaries are those of slot 0.
void TrainingEngine::evaluate_stage(int32_t chunk, const ActionBinding& binding) {
  const BoundaryMessages messages = boundary_messages(plan_.stage, chunk);
  const StageBoundary& boundary = plan_.stage.boundaries[static_cast<size_t>(chunk)];
  const int64_t rows = binding.num_tokens / (plan_.options.parallel.shares_tokens() ? plan_.options.parallel.tensor_size : 1);
  const auto bytes = static_cast<size_t>(rows * plan_.options.model.hidden_size * dtype_bytes(plan_.stage.compute_dtype));
  const int32_t stage = plan_.schedule.stage_of_chunk[static_cast<size_t>(chunk)];
  if (messages.input) pipeline_group_->recv({executor_.view(boundary.input, binding).data, bytes}, plan_.rank_of_stage[static_cast<size_t>(stage) - 1], stage - 1, "evaluate");
  evaluate_ops(binding);
  if (messages.output) pipeline_group_->send({executor_.view(boundary.output, binding).data, bytes}, plan_.rank_of_stage[static_cast<size_t>(stage) + 1], stage, "evaluate");
}

// Weights that are gathered come unit by unit, just before they are read.
void TrainingEngine::evaluate_ops(const ActionBinding& binding) {
  const std::vector<UnitUse>& uses = unit_uses_.blocks[Stage::block_index(Phase::kEval, binding.chunk)];
  size_t next = 0;
  for (const UnitUse& use : uses) {
    if (binding.num_tokens > 0) executor_.run(Phase::kEval, binding, nullptr, {next, static_cast<size_t>(use.first_op)});
    gather_weights(use.unit, "evaluate");
    next = static_cast<size_t>(use.first_op);
  }
  if (binding.num_tokens > 0) executor_.run(Phase::kEval, binding, nullptr, {next, SIZE_MAX});
}

std::span<std::byte> TrainingEngine::checkpoint_buffer() const {
  return {arena_.data() + plan_.memory.checkpoint_offset, static_cast<size_t>(plan_.memory.class_bytes[static_cast<size_t>(MemoryClass::kCheckpoint)])};
}

}  // namespace orrery
