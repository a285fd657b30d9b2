// What a rank's engine exchanges with others, and with what it offloads to: reductions and gathers of parameters' units, copies of pieces of the
// state, and where messages between stages lie.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

#include "base/error.h"
#include "parallel/shard.h"
#include "train/engine.h"

namespace orrery {

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

std::byte* TrainingEngine::gradient_data(const ParameterUnit& unit, int32_t buffer) const {
  const auto here = static_cast<size_t>(buffer_in_step(plan_.schedule, buffer, step_index_));
  return arena_.data() + plan_.memory.gradient_buffer_offset[static_cast<size_t>(unit.chunk)][here] +
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
    case ActionKind::kAllGatherParameters:
      if (plan_.options.data.shards_weights()) return gather_weights(action.unit, label);
      return gather_parameters(unit, label);
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

// From the ranks that update them to all: the newest, where work of the next step reads them.
void TrainingEngine::gather_parameters(const ParameterUnit& unit, std::string_view label) {
  const int64_t width = dtype_bytes(plan_.stage.compute_dtype);
  for (size_t i = 0; i < unit.starts.size(); ++i) {
    const auto parameter = static_cast<size_t>(unit.first) + i;
    const int64_t first = unit.starts[i], count = plan_.stage.parameters[parameter].num_elements();
    std::byte* const whole = plan_.memory.newest_whole ? newest_data(parameter) : parameter_data(parameter);
    data_->all_gather_ranges({whole, static_cast<size_t>(count * width)}, owners(unit, first, first + count, width), label);
  }
}

// What this rank keeps of the unit's weights, from what it offloads to into the unit's slot.
void TrainingEngine::fetch_weights(const ParameterUnit& unit) {
  const int64_t width = dtype_bytes(plan_.stage.compute_dtype);
  for (const WeightPart& part : weight_parts_[static_cast<size_t>(&unit - plan_.units.data())])
    offloaded_->read(part.file_offset, {arena_.data() + part.arena_offset, static_cast<size_t>(part.count * width)});
}

void TrainingEngine::gather_weights(int32_t index, std::string_view label) {
  const ParameterUnit& unit = plan_.units[static_cast<size_t>(index)];
  if (!plan_.options.data.shards_weights()) return fetch_weights(unit);
  const int64_t width = dtype_bytes(plan_.stage.compute_dtype);
  std::byte* const slot = arena_.data() + plan_.memory.parameter_offset[static_cast<size_t>(unit.first)];
  const std::span<const ElementRange> shards = owners(unit, unit.begin(), unit.cuts.back(), width);
  const ElementRange& own = shards[static_cast<size_t>(data_->rank())];
  const std::byte* const kept = arena_.data() + plan_.memory.unit_shard_offset[static_cast<size_t>(index)];
  if (plan_.options.optimizer.offload_weights) fetch_weights(unit);
  else if (own.size() > 0 && kept != slot + own.begin) std::memcpy(slot + own.begin, kept, static_cast<size_t>(own.size()));
  data_->all_gather_ranges({slot, static_cast<size_t>(unit.size() * width)}, shards, label);
}

void TrainingEngine::run_collectives() {
  for (size_t i = 0; i < plan_.schedule.actions.size(); ++i) {
    const Action& action = plan_.schedule.actions[i];
    if (stream_of(action.kind) != Stream::kCollective || !runs(action)) continue;
    if (!progress_.wait_for(action)) return;
    const auto begin = std::chrono::steady_clock::now();
    run_collective(action);
    action_seconds_[i] += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    progress_.mark_done(i);
  }
}

void TrainingEngine::copy(ActionKind kind, int64_t file_offset, std::byte* data, int64_t bytes) {
  const std::span<std::byte> span(data, static_cast<size_t>(bytes));
  kind == ActionKind::kFetch ? offloaded_->read(file_offset, span) : offloaded_->write(file_offset, span);
}

void TrainingEngine::copy_state(const Action& action) {
  const OffloadPiece& piece = plan_.offload.pieces[static_cast<size_t>(action.unit)];
  copy(action.kind, piece.file_offset, arena_.data() + plan_.memory.offload_slot_offset[static_cast<size_t>(plan_.offload.slot_of(action.unit))], piece.bytes);
}

void TrainingEngine::copy_activations(const Action& action) {
  if (is_empty(action)) return;
  const ActivationGroup& group = plan_.activation_groups[static_cast<size_t>(action.unit)];
  for (size_t i = 0; i < group.values.size(); ++i)
    copy(action.kind, group.file_offset + action.slot * group.bytes + group.offsets[i], arena_.data() + plan_.memory.activation(group.values[i], action.slot), plan_.stage.value(group.values[i]).bytes());
}

void TrainingEngine::run_copies() {
  for (size_t i = 0; i < plan_.schedule.actions.size(); ++i) {
    const Action& action = plan_.schedule.actions[i];
    if (stream_of(action.kind) != Stream::kCopy || !runs(action)) continue;
    if (!progress_.wait_for(action)) return;
    const auto begin = std::chrono::steady_clock::now();
    if (action.kind == ActionKind::kFetchParameters) fetch_weights(plan_.units[static_cast<size_t>(action.unit)]);
    else action.micro_batch >= 0 ? copy_activations(action) : copy_state(action);
    action_seconds_[i] += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    progress_.mark_done(i);
  }
}

// Where a message's bytes are; a slot's place never changes, so this is asked once, but for sums in buffers that change places.
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
  if (action.kind == ActionKind::kSendWeight || action.kind == ActionKind::kRecvWeight) return {plan_.memory.newest_whole ? newest_data(parameter) : parameter_data(parameter), bytes};
  // The second accumulator, of which each data-parallel rank moves what it owns of the sum.
  if (plan_.options.data.shards_gradients()) return {arena_.data() + plan_.memory.gradient_shard_offset[parameter][1], bytes};
  const int64_t first_owned = unit.cuts[static_cast<size_t>(plan_.options.data.rank)] - unit.cuts.front();
  const auto buffer = static_cast<size_t>(buffer_in_step(plan_.schedule, 0, step_index_));
  return {arena_.data() + plan_.memory.gradient_buffer_offset[static_cast<size_t>(unit.chunk)][buffer] + plan_.memory.gradient_offset[parameter][1] + first_owned * 4, bytes};
}

std::vector<std::span<std::byte>> TrainingEngine::message_buffers() {
  std::vector<std::span<std::byte>> buffers;
  for (const Action& action : plan_.schedule.actions) buffers.push_back(stream_of(action.kind) == Stream::kPoint ? message_buffer(action) : std::span<std::byte>());
  return buffers;
}

void TrainingEngine::bind_messages() {
  if (!messages_ || plan_.schedule.num_swapped_buffers == 0) return;
  for (size_t i = 0; i < plan_.schedule.actions.size(); ++i)
    if (const Action& action = plan_.schedule.actions[i]; action.kind == ActionKind::kSendSum || action.kind == ActionKind::kRecvSum) messages_->set_buffer(i, message_buffer(action));
}

void TrainingEngine::share_weights() {
  in_flow_ = false;
  const DataParallel& data = plan_.options.data;
  if (plan_.memory.newest_whole && data.size > 1 && data.zero_stage >= 1)
    for (const ParameterUnit& unit : plan_.units)
      if (unit.accumulator == 0) gather_parameters(unit, "share weights");
  if (!plan_.shared) return;
  const auto parameter = static_cast<size_t>(plan_.shared->parameter);
  const int peer = static_cast<int>(plan_.shared->peer / plan_.options.data.size);
  const std::span<std::byte> weight{parameter_data(parameter), static_cast<size_t>(weight_shard(plan_, parameter).size() * dtype_bytes(plan_.stage.compute_dtype))};
  std::vector<std::span<std::byte>> versions = {weight};
  if (plan_.memory.newest_whole) versions.push_back({newest_data(parameter), weight.size()});
  for (const std::span<std::byte>& version : versions)
    if (plan_.shared->updated_here)
      pipeline_group_->send(version, peer, 0, "share weights");
    else
      pipeline_group_->recv(version, peer, 0, "share weights");
}

}  // namespace orrery
