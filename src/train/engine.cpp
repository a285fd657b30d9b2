#include "train/engine.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>

#include "base/error.h"
#include "ir/op_table.h"
#include "parallel/shard.h"
#include "planner/shared_layers.h"
#include "runtime/initialize.h"

namespace orrery {
namespace {

constexpr int kEvalCopy = 2;
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
      pool_(options.num_threads, options.pin_threads),
      arena_(plan.memory.total_bytes),
      executor_(plan.stage, plan.memory, arena_, {&pool_, options.isa, options.arithmetic, options.native_arithmetic}, plan.options.sequence_tokens),
      action_seconds_(plan.schedule.actions.size()),
      world_(world),
      progress_(plan.schedule) {
  set_floating_point_mode();
  sequences_ = batch_sequences(plan);
  unit_uses_ = unit_uses(plan.stage, plan.units);
  const size_t sequences = sequences_.size();
  const size_t copies = plan.options.evaluates ? 3 : 2;
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
        messages_->run();
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

// Which nodes of the lane tree meet in a reduction, as the schedule says.
void TrainingEngine::plan_reductions() {
  const DataParallel& data = plan_.options.data;
  const Schedule& schedule = plan_.schedule;
  const auto node = [](const LaneRange& lanes) { return lane_nodes(lanes.first, lanes.first + lanes.count).front(); };
  if (schedule.rounds.empty()) {
    reductions_ = {contiguous_lanes_plan(static_cast<int>(data.size), plan_.options.lanes)};
    for (const std::vector<int32_t>& pieces : schedule.piece_buffers)
      ORRERY_CHECK(reductions_[0].outputs.size() == 1 && reductions_[0].pieces[static_cast<size_t>(data.rank)].size() == pieces.size(), "{} pieces planned", pieces.size());
    return;
  }
  for (const ReductionRound& round : schedule.rounds) {
    std::vector<std::vector<LaneNode>> pieces;
    std::vector<LaneNode> carried;
    for (const LaneRange& lanes : round.pieces) pieces.push_back(lanes.count > 0 ? std::vector<LaneNode>{node(lanes)} : std::vector<LaneNode>());
    for (const ShardSum& sum : round.before) carried.push_back(node(sum.lanes));
    reductions_.push_back(make_reduction_plan(std::move(pieces), std::move(carried)));
  }
  if (data.num_replicas() > 1) replica_reduction_ = contiguous_lanes_plan(static_cast<int>(data.num_replicas()), plan_.options.lanes);
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
    auto* low = reinterpret_cast<int16_t*>(state_data(i, StateField::kLow));
    const auto& [begin, end] = plan_.memory.state_range[i];
    const bool partly = low != nullptr && end - begin < spec.num_elements();
    if (partly) whole_low.resize(static_cast<size_t>(spec.num_elements()));
    const bool sharded = plan_.options.data.shards_weights();
    if (sharded) whole.resize(static_cast<size_t>(spec.num_elements() * width));
    initialize_parameter(spec, seed, plan_.stage.compute_dtype, sharded ? whole.data() : parameter_data(i), partly ? whole_low.data() : low, pool_);
    if (partly) std::copy(whole_low.begin() + begin, whole_low.begin() + end, low);
    if (!sharded) continue;
    const OwnedElements kept = weight_shard(plan_, i);
    std::memcpy(parameter_data(i), whole.data() + kept.begin * width, static_cast<size_t>(kept.size() * width));
  }
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
  binding.gradient_buffer = action.gradient_buffer;
  binding.source_buffer = std::max(0, action.source_buffer);
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

std::byte* TrainingEngine::gradient_data(const ParameterUnit& unit, int32_t buffer) const {
  return arena_.data() + plan_.memory.gradient_buffer_offset[static_cast<size_t>(unit.chunk)][static_cast<size_t>(buffer)] +
         plan_.memory.gradient_offset[static_cast<size_t>(unit.first)][static_cast<size_t>(unit.accumulator)];
}

std::byte* TrainingEngine::shard_sum(int32_t unit, int32_t sum) const { return arena_.data() + plan_.memory.shard_sum_offset[static_cast<size_t>(unit)][static_cast<size_t>(sum)]; }

// What each rank owns of the unit's elements [origin, end), counted from `origin` and multiplied by `scale`.
std::span<const ElementRange> TrainingEngine::owners(const ParameterUnit& unit, int64_t origin, int64_t end, int64_t scale) {
  const size_t num_shards = unit.cuts.size() - 1;
  for (size_t shard = 0; shard < num_shards; ++shard)
    ranges_[shard] = {(std::clamp(unit.cuts[shard], origin, end) - origin) * scale, (std::clamp(unit.cuts[shard + 1], origin, end) - origin) * scale};
  return {ranges_.data(), num_shards};
}

void TrainingEngine::compute(int copy, const std::function<void()>& before_update) {
  const Schedule& schedule = plan_.schedule;
  const std::span<double> sums = exchanged();
  for (size_t i = 0; i < schedule.actions.size(); ++i) {
    const Action& action = schedule.actions[i];
    if (stream_of(action.kind) != Stream::kCompute) continue;
    if (!progress_.wait_for(action)) return;
    if (world_ != nullptr) world_->set_activity(labels_[i]);
    auto begin = std::chrono::steady_clock::now();
    const ActionBinding binding = bind(action, copy);
    switch (action.kind) {
      case ActionKind::kNorm: {
        // Each number is made by one rank and zero on the others, so that their sum is exact in any order.
        std::fill(sums.begin(), sums.end(), 0.0);
        executor_.run(Phase::kNorm, binding);
        if (!has_losses(plan_)) break;
        const int64_t first_loss = plan_.num_norm_blocks + plan_.options.parallel.context_rank * plan_.options.global_batch_size;
        for (size_t k = 0; k < sequences_.size(); ++k) sums[static_cast<size_t>(first_loss + sequences_[k])] = sequence_loss(copy, static_cast<int64_t>(k));
        sums.back() = static_cast<double>(count_valid(copy, static_cast<int64_t>(sequences_.size())));
        break;
      }
      case ActionKind::kOptimizer: {
        const auto num_valid = static_cast<int32_t>(sums.back());
        std::memcpy(step_data(StepField::kNumValid), &num_valid, sizeof num_valid);
        if (before_update) before_update();
        executor_.run(Phase::kOptimizer, binding);
        break;
      }
      default:
        // In parts, where an op in the middle waits for a unit.
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

void TrainingEngine::run_collective(const Action& action) {
  const std::string_view label = labels_[static_cast<size_t>(&action - plan_.schedule.actions.data())];
  if (action.kind == ActionKind::kExchangeSums) {
    world_->all_reduce(std::as_writable_bytes(exchanged()), DType::kF64, label);
    return;
  }
  Communicator& group = *data_;
  const ParameterUnit& unit = plan_.units[static_cast<size_t>(action.unit)];
  switch (action.kind) {
    case ActionKind::kReduceScatterGradients: return reduce_scatter(action, unit, label);
    case ActionKind::kAllReduceGradients: return all_reduce_shards(action, unit, label);
    case ActionKind::kAllGatherGradients:
      group.all_gather_ranges({gradient_data(unit, action.gradient_buffer), static_cast<size_t>(unit.size()) * 4}, owners(unit, unit.begin(), unit.cuts.back(), 4), label);
      return;
    case ActionKind::kAllGatherParameters: {
      if (plan_.options.data.shards_weights()) return gather_weights(action.unit, label);
      const int64_t width = dtype_bytes(plan_.stage.compute_dtype);
      for (size_t i = 0; i < unit.starts.size(); ++i) {
        const auto parameter = static_cast<size_t>(unit.first) + i;
        const int64_t first = unit.starts[i], count = plan_.stage.parameters[parameter].num_elements();
        group.all_gather_ranges({parameter_data(parameter), static_cast<size_t>(count * width)}, owners(unit, first, first + count, width), label);
      }
      return;
    }
    default: ORRERY_CHECK(false, "{} is no collective", label);
  }
}

void TrainingEngine::reduce_scatter(const Action& action, const ParameterUnit& unit, std::string_view label) {
  Communicator& group = *data_;
  const std::span<const ElementRange> shards = owners(unit, unit.begin(), unit.cuts.back(), 1);
  if (action.round >= 0) {
    const ReductionRound& round = plan_.schedule.rounds[static_cast<size_t>(action.round)];
    const ReductionPlan& reduction = reductions_[static_cast<size_t>(action.round)];
    const std::byte* const piece = gradient_data(unit, action.gradient_buffer);
    std::array<const std::byte*, GradFold::kMaxDepth> carried;
    std::array<std::byte*, GradFold::kMaxDepth> sums;
    for (size_t i = 0; i < round.before.size(); ++i) carried[i] = shard_sum(action.unit, round.before[i].buffer);
    size_t num_sums = 0;
    for (const ShardSum& sum : round.after)
      if (std::find(round.before.begin(), round.before.end(), sum) == round.before.end()) sums[num_sums++] = shard_sum(action.unit, sum.buffer);
    group.reduce_scatter(reduction, DType::kF32, {&piece, round.pieces[static_cast<size_t>(group.rank())].count > 0 ? size_t{1} : size_t{0}}, shards, {sums.data(), num_sums}, label,
                         {carried.data(), round.before.size()});
    return;
  }
  if (plan_.options.data.fast_reduction) {
    group.reduce_scatter_fast({gradient_data(unit, action.gradient_buffer), static_cast<size_t>(unit.size()) * 4}, DType::kF32, shards, label);
    return;
  }
  std::array<const std::byte*, GradFold::kMaxDepth> pieces;
  const std::vector<int32_t>& buffers = plan_.schedule.piece_buffers[static_cast<size_t>(unit.chunk)];
  for (size_t i = 0; i < buffers.size(); ++i) pieces[i] = gradient_data(unit, buffers[i]);
  std::byte* const sum = gradient_data(unit, action.gradient_buffer) + (unit.cuts[static_cast<size_t>(group.rank())] - unit.begin()) * 4;
  group.reduce_scatter(reductions_[0], DType::kF32, {pieces.data(), buffers.size()}, shards, {&sum, 1}, label);
}

// Each replica of the shard makes an equal part of the sum, in place of its own piece of it, and all gather the parts.
void TrainingEngine::all_reduce_shards(const Action& action, const ParameterUnit& unit, std::string_view label) {
  Communicator& group = *replica_group_;
  const int64_t count = unit.shard_size(plan_.options.data.shard());
  const std::span<ElementRange> parts(ranges_.data(), static_cast<size_t>(group.size()));
  equal_ranges(count, 1, parts);
  std::array<const std::byte*, GradFold::kMaxDepth> pieces;
  const std::vector<ShardSum>& held = plan_.schedule.rounds.back().after;
  for (size_t i = 0; i < held.size(); ++i) pieces[i] = shard_sum(action.unit, held[i].buffer);
  std::byte* const whole = shard_sum(action.unit, 0);
  std::byte* const sum = whole + parts[static_cast<size_t>(group.rank())].begin * 4;
  group.reduce_scatter(replica_reduction_, DType::kF32, {pieces.data(), held.size()}, parts, {&sum, 1}, label);
  for (ElementRange& part : parts) part = {part.begin * 4, part.end * 4};
  group.all_gather_ranges({whole, static_cast<size_t>(count) * 4}, parts, label);
}

void TrainingEngine::gather_weights(int32_t index, std::string_view label) {
  const ParameterUnit& unit = plan_.units[static_cast<size_t>(index)];
  const int64_t width = dtype_bytes(plan_.stage.compute_dtype);
  std::byte* const slot = arena_.data() + plan_.memory.parameter_offset[static_cast<size_t>(unit.first)];
  const std::span<const ElementRange> shards = owners(unit, unit.begin(), unit.cuts.back(), width);
  const ElementRange& own = shards[static_cast<size_t>(data_->rank())];
  const std::byte* const kept = arena_.data() + plan_.memory.unit_shard_offset[static_cast<size_t>(index)];
  if (own.size() > 0 && kept != slot + own.begin) std::memcpy(slot + own.begin, kept, static_cast<size_t>(own.size()));
  data_->all_gather_ranges({slot, static_cast<size_t>(unit.size() * width)}, shards, label);
}

void TrainingEngine::run_collectives() {
  for (size_t i = 0; i < plan_.schedule.actions.size(); ++i) {
    const Action& action = plan_.schedule.actions[i];
    if (stream_of(action.kind) != Stream::kCollective) continue;
    if (!progress_.wait_for(action)) return;
    const auto begin = std::chrono::steady_clock::now();
    run_collective(action);
    action_seconds_[i] += seconds_since(begin);
    progress_.mark_done(i);
  }
}

// Where a message's bytes are; a slot's place never changes, so this is asked once.
std::span<std::byte> TrainingEngine::message_buffer(const Action& action) {
  const auto bytes = static_cast<size_t>(payload_bytes(plan_, action));
  if (is_boundary_message(action.kind)) {
    const StageBoundary& boundary = plan_.stage.boundaries[static_cast<size_t>(action.chunk)];
    ActionBinding binding;
    const auto num_chunks = static_cast<size_t>(plan_.stage.num_chunks());
    binding.slots = std::span(slots_).subspan(static_cast<size_t>(action.micro_batch) * num_chunks, num_chunks);
    const ValueId value = action.kind == ActionKind::kSendActivation   ? boundary.output
                          : action.kind == ActionKind::kRecvActivation ? boundary.input
                          : action.kind == ActionKind::kSendGradient   ? boundary.input_gradient
                                                                       : boundary.output_gradient;
    return {executor_.view(value, binding).data, bytes};
  }
  const ParameterUnit& unit = plan_.units[static_cast<size_t>(action.unit)];
  const auto parameter = static_cast<size_t>(plan_.shared->parameter);
  if (action.kind == ActionKind::kSendWeight || action.kind == ActionKind::kRecvWeight) return {parameter_data(parameter), bytes};
  // The second accumulator, of which each data-parallel rank moves what it owns of the sum.
  if (plan_.options.data.shards_gradients()) return {arena_.data() + plan_.memory.gradient_shard_offset[parameter][1], bytes};
  const int64_t first_owned = unit.cuts[static_cast<size_t>(plan_.options.data.rank)] - unit.cuts.front();
  return {arena_.data() + plan_.memory.gradient_buffer_offset[static_cast<size_t>(unit.chunk)][0] + plan_.memory.gradient_offset[parameter][1] + first_owned * 4, bytes};
}

std::vector<std::span<std::byte>> TrainingEngine::message_buffers() {
  std::vector<std::span<std::byte>> buffers;
  for (const Action& action : plan_.schedule.actions) buffers.push_back(stream_of(action.kind) == Stream::kPoint ? message_buffer(action) : std::span<std::byte>());
  return buffers;
}

void TrainingEngine::share_weights() {
  if (!plan_.shared) return;
  const auto parameter = static_cast<size_t>(plan_.shared->parameter);
  const int peer = static_cast<int>(plan_.shared->peer / plan_.options.data.size);
  const std::span<std::byte> weight{parameter_data(parameter), static_cast<size_t>(weight_shard(plan_, parameter).size() * dtype_bytes(plan_.stage.compute_dtype))};
  if (plan_.shared->updated_here)
    pipeline_group_->send(weight, peer, 0, "share weights");
  else
    pipeline_group_->recv(weight, peer, 0, "share weights");
}

StepResult TrainingEngine::step(int copy, const OptimizerHyper& hyper, const std::function<void()>& before_update) {
  const auto begin = std::chrono::steady_clock::now();
  std::memcpy(step_data(StepField::kHyper), &hyper, sizeof hyper);
  ORRERY_CHECK(world_ == nullptr || collective_thread_, "a rank of {} steps before connect()", plan_.options.world_size());
  progress_.begin_step();
  const bool alone = world_ == nullptr;
  for (Communicator* group : {world_, data_group_.get(), pipeline_group_.get(), shard_group_.get(), replica_group_.get()})
    if (group != nullptr) group->set_step(check_context().step);
  for (const auto& group : op_groups_) group->set_step(check_context().step);
  if (!alone) collective_thread_->begin();
  if (message_thread_) message_thread_->begin();
  try {
    compute(copy, before_update);
  } catch (...) {
    progress_.fail(std::current_exception());
  }
  if (!alone) collective_thread_->wait();
  if (message_thread_) message_thread_->wait();
  progress_.rethrow();
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

int64_t TrainingEngine::evaluate(int64_t num_sequences, int64_t most_sequences, std::span<double> loss_sums) {
  ORRERY_CHECK(plan_.options.evaluates && num_sequences <= static_cast<int64_t>(sequences_.size()), "evaluation of {} sequences", num_sequences);
  const int64_t end = plan_.options.data.shards_weights() ? most_sequences : num_sequences;
  for (int64_t first = 0; first < end; first += plan_.micro_batch_size) {
    const MicroBatch batch{first, std::clamp<int64_t>(num_sequences - first, 0, plan_.micro_batch_size)};
    ActionBinding binding;
    binding.batch_copy = kEvalCopy;
    binding.first_token = first * plan_.options.local_tokens();
    binding.num_tokens = batch.num_sequences * plan_.options.local_tokens();
    if (batch.num_sequences > 0) binding.num_segments = write_segments(kEvalCopy, batch, 0);
    binding.fold = {batch.num_sequences, plan_.options.local_tokens(), nullptr, false};
    for (binding.chunk = 0; binding.chunk < plan_.stage.num_chunks(); ++binding.chunk) evaluate_stage(binding.chunk, binding);
  }
  if (!has_losses(plan_)) return 0;
  for (int64_t sequence = 0; sequence < num_sequences; ++sequence) loss_sums[static_cast<size_t>(sequence)] = sequence_loss(kEvalCopy, sequence);
  return count_valid(kEvalCopy, num_sequences);
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

void TrainingEngine::reset_op_table() {
  executor_.reset_op_times();
  num_steps_timed_ = 0;
  step_seconds_ = 0;
  std::fill(action_seconds_.begin(), action_seconds_.end(), 0.0);
}

PhaseSeconds TrainingEngine::phase_seconds() const {
  const auto sum = [this](Phase phase) {
    double seconds = 0;
    for (const OpTime& time : executor_.op_times(phase)) seconds += time.seconds;
    return seconds / static_cast<double>(std::max<int64_t>(1, num_steps_timed_));
  };
  PhaseSeconds phases;
  phases.forward = sum(Phase::kForward), phases.backward = sum(Phase::kBackward);
  phases.update = sum(Phase::kZero) + sum(Phase::kMerge) + sum(Phase::kNorm) + sum(Phase::kOptimizer);
  const std::vector<double> actions = action_seconds();
  for (size_t i = 0; i < actions.size(); ++i)
    if (stream_of(plan_.schedule.actions[i].kind) != Stream::kCompute) phases.communication += actions[i];
  return phases;
}

std::vector<double> TrainingEngine::action_seconds() const {
  std::vector<double> seconds = action_seconds_;
  for (double& value : seconds) value /= static_cast<double>(std::max<int64_t>(1, num_steps_timed_));
  return seconds;
}

std::string TrainingEngine::op_table() const {
  struct Row {
    double seconds = 0, flops = 0, bytes = 0;
    int64_t calls = 0;
  };
  std::map<std::string, Row> rows;
  double total = 0;
  const double mean_context = static_cast<double>(plan_.options.sequence_tokens + 1) / 2;
  for (size_t block = 0; block < plan_.stage.blocks.size(); ++block) {
    if (Stage::phase_of(block) == Phase::kEval) continue;
    const auto& ops = plan_.stage.blocks[block].ops;
    const auto& times = executor_.op_times(Stage::phase_of(block), static_cast<int32_t>(block / kNumPhases));
    for (size_t i = 0; i < ops.size(); ++i) {
      if (times[i].calls == 0) continue;
      Row& row = rows[fmt::format("{}{}", op_name(ops[i].kind), ops[i].recomputed ? " (again)" : "")];
      // A call sees one micro-batch of at most the bound; short ones are rare and counted as full.
      const OpCost cost = op_cost(plan_.stage, ops[i], plan_.micro_batch_size * plan_.options.local_tokens(), mean_context);
      row.seconds += times[i].seconds;
      row.flops += cost.flops * static_cast<double>(times[i].calls);
      row.bytes += (cost.bytes_read + cost.bytes_written) * static_cast<double>(times[i].calls);
      row.calls += times[i].calls;
      total += times[i].seconds;
    }
  }
  std::vector<std::pair<std::string, Row>> sorted(rows.begin(), rows.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  const double steps = static_cast<double>(std::max<int64_t>(1, num_steps_timed_));
  std::string text = fmt::format("{:<32}{:>8}{:>11}{:>8}{:>10}{:>9}\n", "op", "calls", "ms a step", "share", "TFLOP/s", "GB/s");
  for (const auto& [name, row] : sorted)
    text += fmt::format("{:<32}{:>8.0f}{:>11.2f}{:>7.1f}%{:>10}{:>9.1f}\n", name, static_cast<double>(row.calls) / steps, 1e3 * row.seconds / steps, 100 * row.seconds / total,
                        row.flops > 0 ? fmt::format("{:.2f}", row.flops / row.seconds / 1e12) : "", row.bytes / row.seconds / 1e9);
  text += fmt::format("{:<32}{:>8}{:>11.2f}\n", "all ops", "", 1e3 * total / steps);
  return text;
}

}  // namespace orrery
