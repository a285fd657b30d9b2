#include "planner/plan.h"

#include <algorithm>

#include "base/error.h"
#include "ir/op_table.h"
#include "ir/verify.h"
#include "ir/verify_schedules.h"
#include "model/decoder.h"
#include "parallel/lanes.h"
#include "parallel/offload.h"
#include "parallel/shard.h"
#include "planner/rank_stage.h"
#include "planner/shared_layers.h"

namespace orrery {

std::string_view recompute_name(Recompute recompute) {
  switch (recompute) {
    case Recompute::kNone: return "none";
    case Recompute::kSelective: return "selective";
    case Recompute::kFull: return "full";
    case Recompute::kBudget: return "by bytes";
  }
  return "?";
}

std::string recompute_text(const Plan& plan) {
  return plan.recompute == Recompute::kBudget ? fmt::format("{} ({}/{})", recompute_name(plan.recompute), plan.options.recompute_level, kRecomputeLevels) : std::string(recompute_name(plan.recompute));
}

std::optional<Recompute> parse_recompute(std::string_view name) {
  for (Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kFull, Recompute::kBudget})
    if (recompute_name(recompute) == name) return recompute;
  return std::nullopt;
}

namespace {

// Activations grow with the rows of a micro-batch while products gain little beyond this many.
constexpr int64_t kMicroBatchTokens = 4096;
// A save streams through this much; more would not make a disk faster.
constexpr int64_t kCheckpointBufferBytes = 1 << 20;

// Fewer micro-batches than this for each rank of the pipeline leave it empty for a fifth of the time or more (1F1B: (p - 1) / m).
constexpr int64_t kMicroBatchesPerRank = 4;

bool is_v_shaped(PipelineKind kind) { return kind == PipelineKind::kZbV || kind == PipelineKind::kDualPipeV; }

int32_t chunks_per_rank(const PipelineParallel& pipeline) { return is_v_shaped(pipeline.kind) ? 2 : static_cast<int32_t>(pipeline.virtual_stages); }

LaneSchedule lane_options(const TrainingPlanOptions& options, int64_t micro_batch_size) {
  LaneSchedule lanes{options.global_batch_size, options.lanes, micro_batch_size, options.data.size, options.data.rank};
  if (options.data.shards_gradients()) lanes.shard_group_size = options.data.num_shards();
  return lanes;
}

// The schedules of one pipeline, by its ranks, without the update.
std::vector<Schedule> pipeline_schedules(const TrainingPlanOptions& options, int64_t micro_batch_size) {
  LaneSchedule lanes = lane_options(options, micro_batch_size);
  lanes.pipeline = options.pipeline.kind;
  lanes.pipeline_ranks.clear();
  for (int64_t rank = 0; rank < options.pipeline.size; ++rank) lanes.pipeline_ranks.push_back(static_cast<int32_t>(rank * options.data.size + options.data.rank));
  lanes.chunks_per_rank = chunks_per_rank(options.pipeline);
  lanes.micro_batch_group_size = static_cast<int32_t>(options.pipeline.micro_batch_group_size);
  lanes.carries = steps_carry(options);
  lanes.order = options.pipeline.order;
  return lane_schedules(lanes);
}

std::vector<int32_t> ranks_of_stages(const std::vector<Schedule>& pipeline) {
  std::vector<int32_t> ranks;
  for (size_t rank = 0; rank < pipeline.size(); ++rank)
    for (int32_t stage : pipeline[rank].stage_of_chunk) {
      ranks.resize(std::max(ranks.size(), static_cast<size_t>(stage) + 1));
      ranks[static_cast<size_t>(stage)] = static_cast<int32_t>(rank);
    }
  return ranks;
}

// Whether units of gradients or of weights take turns in slots.
bool takes_turns(const TrainingPlanOptions& options) { return options.data.shards_gradients() || options.optimizer.offload_weights; }

ShardOptions shard_options(const Plan& plan) {
  const DataParallel& data = plan.options.data;
  const bool elsewhere = plan.options.optimizer.offload_weights;
  return {.units = plan.units, .shard = data.shard(), .num_sums = plan.schedule.num_shard_sums, .gradients = data.shards_gradients(), .weights = data.shards_weights() || elsewhere,
          .weights_stay = data.shards_weights() && !data.reshard_after_forward && !elsewhere, .weights_elsewhere = elsewhere};
}

Plan build_plan(TrainingPlanOptions options, int64_t micro_batch_size, Recompute recompute, const WorkspaceBytes& workspace_bytes) {
  Plan plan;
  options.optimizer.newest_whole = steps_carry(options);
  plan.options = options;
  plan.micro_batch_size = micro_batch_size;
  plan.recompute = recompute;
  const std::vector<Schedule> pipeline = pipeline_schedules(options, micro_batch_size);
  plan.schedule = pipeline[static_cast<size_t>(options.pipeline.rank)];
  const bool splits = std::any_of(plan.schedule.actions.begin(), plan.schedule.actions.end(), [](const Action& action) { return action.kind == ActionKind::kBackwardInput; });
  plan.rank_of_stage = ranks_of_stages(pipeline);
  if (plan.schedule.stage_of_chunk.empty()) throw Error(ErrorCode::kInvalidConfig, "the schedule file leaves rank {} of the pipeline without a stage; leave the rank out", options.pipeline.rank);
  RankStage rank = build_rank_stage(options, micro_batch_size, recompute, plan.rank_of_stage, splits);
  plan.stage = std::move(rank.stage);
  plan.units = std::move(rank.units);
  plan.shared = rank.shared;
  plan.num_norm_blocks = rank.num_norm_blocks;
  plan.offload = std::move(rank.offload);
  if (takes_turns(options))
    shard_schedule(plan.schedule, unit_uses(plan.stage, plan.units), options.data.prefetch, options.data.shards_weights() ? ActionKind::kAllGatherParameters : ActionKind::kFetchParameters);
  append_update(plan.schedule, plan.stage, plan.units, {options.data, options.world_size() > 1, plan.shared});
  if (!plan.offload.pieces.empty()) offload_state(plan.schedule, plan.offload);
  if (options.offload_activations) {
    plan.activation_groups = activation_groups(plan.stage, plan.schedule, plan.offload.bytes());
    offload_activations(plan.schedule, plan.activation_groups);
  }
  MemoryMapOptions memory;
  memory.moment_dtype = options.optimizer.moment_dtype;
  memory.num_moments = num_moments(options.optimizer.kind);
  memory.newest_apart = options.optimizer.newest_apart();
  memory.newest_whole = options.optimizer.newest_whole;
  memory.offload_slots = plan.offload.slots;
  memory.activation_groups = plan.activation_groups;
  memory.batch_sequences = num_sequences(plan.schedule);
  for (const OwnedElements& range : rank.update.updated) memory.state_range.push_back({range.begin, range.end});
  memory.sequence_tokens = options.local_tokens();
  memory.batch_copies = training_copies(plan) + options.evaluates;
  memory.checkpoint_buffer_bytes = kCheckpointBufferBytes;
  memory.shards = shard_options(plan);
  if (options.data.size > 1) memory.reduced_units = plan.units;
  plan.memory = build_memory_map(plan.stage, plan.schedule, memory, workspace_bytes);
  return plan;
}

// Of the whole model, whichever part a rank has of it.
void count_work(std::vector<Plan>& plans) {
  const Plan& plan = plans.front();
  TrainingPlanOptions one_rank = plan.options;
  one_rank.parallel = {};
  const Stage whole = build_chunk(one_rank, plan.micro_batch_size, plan.recompute, {});
  int64_t num_parameters = 0;
  double flops = 0, recomputed = 0;
  for (const ParameterSpec& spec : whole.parameters) num_parameters += spec.num_elements();
  const int64_t tokens = plan.options.global_batch_size * plan.options.sequence_tokens;
  const double mean_context = static_cast<double>(plan.options.sequence_tokens + 1) / 2;
  for (Phase phase : {Phase::kForward, Phase::kBackward})
    for (const Op& op : whole.block(phase).ops) (op.recomputed ? recomputed : flops) += op_cost(whole, op, tokens, mean_context).flops;
  // A pipeline's ranks may have other levels.
  if (plan.recompute == Recompute::kBudget) {
    recomputed = 0;
    for (const Plan& each : plans)
      if (each.options.data.rank == 0)
        for (int32_t chunk = 0; chunk < each.stage.num_chunks(); ++chunk)
          for (Phase phase : {Phase::kBackward, Phase::kBackwardInput, Phase::kBackwardWeight}) {
            if (phase == Phase::kBackward && !each.stage.block(Phase::kBackwardInput, chunk).ops.empty()) continue;  // its halves are counted
            for (const Op& op : each.stage.block(phase, chunk).ops)
              if (op.recomputed) recomputed += op_cost(each.stage, op, each.options.global_batch_size * each.options.local_tokens(), mean_context).flops;
          }
  }
  for (Plan& each : plans) {
    each.num_parameters = num_parameters;
    each.flops_per_step = flops;
    each.recompute_flops_per_step = recomputed;
  }
}

// The sizes worth trying: halves of a rank's share, largest first; those that leave a pipeline too few micro-batches at the end.
std::vector<int64_t> micro_batch_candidates(const TrainingPlanOptions& options) {
  // The largest share of a rank.
  const int64_t share = (options.lanes + options.data.size - 1) / options.data.size * (options.global_batch_size / std::max<int64_t>(1, options.lanes));
  const int64_t most = std::max<int64_t>(1, std::min(options.global_batch_size, share));
  if (options.micro_batch_size) return {std::min(*options.micro_batch_size, most)};
  std::vector<int64_t> sizes;
  for (int64_t size = most; size >= 1; size /= 2)
    if (size == 1 || size * options.local_tokens() <= kMicroBatchTokens) sizes.push_back(size);
  if (options.pipeline.size > 1)
    std::stable_partition(sizes.begin(), sizes.end(), [&](int64_t size) { return share / size >= kMicroBatchesPerRank * options.pipeline.size; });
  return sizes;
}

// The ranks of one place in the pipeline into `plans`: their most bytes. The last data-parallel rank's share is the largest when shares differ, so
// it is asked first, and alone where `only_last`.
int64_t build_pipeline_rank(TrainingPlanOptions options, int64_t micro_batch_size, Recompute recompute, const WorkspaceBytes& workspace_bytes, bool only_last, std::vector<Plan>& plans) {
  int64_t needed = 0;
  const int64_t budget = options.memory_budget_bytes;
  for (options.data.rank = options.data.size - 1; options.data.rank >= 0; --options.data.rank) {
    for (int64_t part = 0; part < options.parallel.num_parts(); ++part) {
      options.parallel.tensor_rank = part / options.parallel.context_size, options.parallel.context_rank = part % options.parallel.context_size;
      Plan& plan = plans[static_cast<size_t>(options.world_rank())];
      plan = build_plan(options, micro_batch_size, recompute, workspace_bytes);
      needed = std::max(needed, plan.memory.total_bytes);
    }
    if (only_last || (budget > 0 && needed > budget)) break;
  }
  return needed;
}

// The least level with which the ranks of one place in the pipeline fit; the most one when none does.
int recompute_level_that_fits(TrainingPlanOptions options, int64_t micro_batch_size, const WorkspaceBytes& workspace_bytes, std::vector<Plan>& plans) {
  int least = 0, most = kRecomputeLevels;
  while (least < most) {
    options.recompute_level = (least + most) / 2;
    if (build_pipeline_rank(options, micro_batch_size, Recompute::kBudget, workspace_bytes, true, plans) <= options.memory_budget_bytes)
      most = options.recompute_level;
    else
      least = options.recompute_level + 1;
  }
  return most;
}

// All ranks of the world, or nothing when one does not fit: then its bytes are in `needed`.
std::optional<std::vector<Plan>> build_world(TrainingPlanOptions options, int64_t micro_batch_size, Recompute recompute, const WorkspaceBytes& workspace_bytes, int64_t& needed) {
  std::vector<Plan> plans(static_cast<size_t>(options.world_size()));
  needed = 0;
  const bool chooses_level = recompute == Recompute::kBudget && !options.recompute;
  for (options.pipeline.rank = 0; options.pipeline.rank < options.pipeline.size; ++options.pipeline.rank) {
    if (chooses_level) options.recompute_level = recompute_level_that_fits(options, micro_batch_size, workspace_bytes, plans);
    needed = std::max(needed, build_pipeline_rank(options, micro_batch_size, recompute, workspace_bytes, false, plans));
    if (options.memory_budget_bytes > 0 && needed > options.memory_budget_bytes) return std::nullopt;
  }
  return plans;
}

// Where an update makes weights that other ranks or the step after next need in an arena, they stay there.
void check_offloaded_weights(const TrainingPlanOptions& options) {
  constexpr std::string_view kKey = "parallel.offload with \"parameters\"";
  if (options.optimizer.offload_piece_bytes == 0) throw Error(ErrorCode::kInvalidConfig, "{} without \"optimizer\": an update has weights and state together; give both", kKey);
  const bool two_bw = options.pipeline.kind == PipelineKind::k2Bw && !options.pipeline.order;
  if (options.optimizer.gradient_delay > 0)
    throw Error(ErrorCode::kInvalidConfig,
                "{} and train.gradient_delay = {}{}: what is offloaded is one version of the weights, and a delay needs two; use parallel.offload = [\"optimizer\", \"activations\"], or {}", kKey,
                options.optimizer.gradient_delay, two_bw ? ", which parallel.schedule = \"2bw\" sets" : "", two_bw ? "parallel.schedule = \"1f1b\"" : "gradient_delay = 0");
  if (options.data.size > 1 && options.data.zero_stage != 0 && options.data.zero_stage != 3)
    throw Error(ErrorCode::kInvalidConfig, "{} and parallel.zero_stage = {}: ranks would exchange new weights that no arena holds; use zero_stage 3, or 0", kKey, options.data.zero_stage);
  if (options.pipeline.size > 1 && options.model.tie_embeddings)
    throw Error(ErrorCode::kInvalidConfig, "{} in a pipeline whose embedding and head are one matrix, which two ranks would exchange: use model.tie_embeddings = false, or offload the rest", kKey);
}

void check_options(const TrainingPlanOptions& options) {
  if (options.sequence_tokens < 1 || options.sequence_tokens > options.model.max_seq_len)
    throw Error(ErrorCode::kInvalidConfig, "data.seq_len = {}: wanted 1 to model.max_seq_len = {}", options.sequence_tokens, options.model.max_seq_len);
  if (options.data.size < 1) throw Error(ErrorCode::kInvalidConfig, "parallel.data_parallel_size = {}: wanted at least 1", options.data.size);
  const DataParallel& data = options.data;
  if (data.zero_stage < 0 || data.zero_stage > 3)
    throw Error(ErrorCode::kInvalidConfig, "parallel.zero_stage = {}: wanted 0 (every rank keeps all state), 1 (optimizer state in shards), 2 (gradients too) or 3 (weights too)", data.zero_stage);
  if (data.fast_reduction && data.shards_gradients())
    throw Error(ErrorCode::kInvalidConfig, "parallel.reduction = \"fast\" with parallel.zero_stage = {}: shards of gradients are summed in the lane tree alone; use \"reproducible\", or zero_stage 0 or 1",
                data.zero_stage);
  if (data.shard_group_size != 0 && (data.shard_group_size < 2 || data.size % data.shard_group_size != 0))
    throw Error(ErrorCode::kInvalidConfig, "parallel.hybrid_shard_size = {} with parallel.data_parallel_size = {}: a shard group has at least 2 ranks, and groups are equal; use a divisor of {}, or 0 for one group",
                data.shard_group_size, data.size, data.size);
  if (data.shard_group_size != 0 && data.zero_stage < 2)
    throw Error(ErrorCode::kInvalidConfig, "parallel.hybrid_shard_size = {} with parallel.zero_stage = {}: groups that replicate shards need zero_stage 2 or 3", data.shard_group_size, data.zero_stage);
  if (data.prefetch < 0) throw Error(ErrorCode::kInvalidConfig, "parallel.prefetch = {}: wanted layers to gather ahead, 0 or more", data.prefetch);
  check_parallel(options.model, options.parallel, options.sequence_tokens);
  if (data.fast_reduction && (data.size & (data.size - 1)) != 0)
    throw Error(ErrorCode::kInvalidConfig, "parallel.reduction = \"fast\" with {} data-parallel ranks: they would hold unequal lanes; use 1, 2, 4, 8, ... of them, or \"reproducible\"",
                data.size);
  const PipelineParallel& pipeline = options.pipeline;
  if (pipeline.size < 1) throw Error(ErrorCode::kInvalidConfig, "parallel.pipeline_parallel_size = {}: wanted at least 1", pipeline.size);
  if (options.optimizer.offload_weights) check_offloaded_weights(options);
  const int delay = options.optimizer.gradient_delay;
  if (delay < 0 || delay > 1) throw Error(ErrorCode::kInvalidConfig, "train.gradient_delay = {}: wanted 0, or 1 for gradients that are applied a step late", delay);
  if (pipeline.kind == PipelineKind::k2Bw && !pipeline.order && delay == 0)
    throw Error(ErrorCode::kInvalidConfig, "parallel.schedule = \"2bw\" with train.gradient_delay = 0: its gradients are a step late; leave gradient_delay out, or use \"1f1b\"");
}

// Slice by slice, and that the ranks that share a layer meet at the same ops.
void verify_world(const std::vector<Plan>& plans) {
  const std::vector<std::string> differences = verify_shared_layers(plans);
  ORRERY_CHECK(differences.empty(), "the ranks that share layers do not agree: {}", differences.front());
  const auto slice_size = static_cast<size_t>(plans.front().options.slice_size());
  for (size_t first = 0; first < plans.size(); first += slice_size) {
    const std::span slice = std::span(plans).subspan(first, slice_size);
    std::vector<Schedule> schedules;
    for (const Plan& plan : slice) {
      const std::vector<std::string> problems = verify_plan(plan.stage, plan.schedule, plan.memory, shard_options(plan), plan.activation_groups);
      ORRERY_CHECK(problems.empty(), "the plan of rank {} does not verify: {}", plan.options.world_rank(), problems.front());
      schedules.push_back(plan.schedule);
    }
    const std::vector<std::string> problems = verify_schedules(schedules, schedule_context(slice));
    if (!problems.empty() && plans.front().options.pipeline.order) throw Error(ErrorCode::kInvalidConfig, "the schedule file does not verify:\n  {}", fmt::join(problems, "\n  "));
    ORRERY_CHECK(problems.empty(), "the schedules do not verify: {}", problems.front());
  }
}

}  // namespace

bool steps_carry(const TrainingPlanOptions& options) {
  return options.pipeline.kind == PipelineKind::k2Bw && !options.pipeline.order && options.pipeline.size > 1 && !takes_turns(options);
}

int training_copies(const Plan& plan) { return plan.schedule.carries ? 3 : 2; }

ScheduleContext schedule_context(std::span<const Plan> plans) {
  ScheduleContext context;
  context.delays_gradients = plans.front().options.optimizer.gradient_delay > 0;
  for (const Plan& plan : plans) {
    context.num_stages = std::max(context.num_stages, *std::max_element(plan.schedule.stage_of_chunk.begin(), plan.schedule.stage_of_chunk.end()) + 1);
    const LaneShare share = lane_share(lane_options(plan.options, plan.micro_batch_size));
    context.lanes.push_back({share.first_lane, share.num_lanes});
    context.offload.push_back(plan.offload);
    context.activation_groups.push_back(plan.activation_groups);
    if (takes_turns(plan.options)) context.unit_uses.push_back(unit_uses(plan.stage, plan.units));
  }
  const auto num_shards = static_cast<int32_t>(plans.front().options.data.num_shards()), data_size = static_cast<int32_t>(plans.front().options.data.size);
  context.group = [num_shards, data_size, world_size = static_cast<int32_t>(plans.size())](int32_t rank, const Action& action) {
    std::vector<int32_t> members;
    const int32_t first = rank / data_size * data_size;  // of the data-parallel ranks
    if (action.kind == ActionKind::kExchangeSums)
      for (int32_t member = 0; member < world_size; ++member) members.push_back(member);
    else if (action.kind == ActionKind::kAllReduceGradients)
      for (int32_t member = first + (rank - first) % num_shards; member < first + data_size; member += num_shards) members.push_back(member);
    else
      for (int32_t member = 0; member < num_shards; ++member) members.push_back(rank / num_shards * num_shards + member);
    return members;
  };
  context.bytes = [plans](int32_t rank, const Action& action) { return payload_bytes(plans[static_cast<size_t>(rank)], action); };
  return context;
}

std::vector<Plan> make_training_plans(const TrainingPlanOptions& options, const WorkspaceBytes& workspace_bytes) {
  check_options(options);
  const std::vector<Recompute> policies = options.recompute ? std::vector<Recompute>{*options.recompute}
                                                            : std::vector<Recompute>{Recompute::kNone, Recompute::kBudget, Recompute::kFull};
  int64_t least_bytes = -1;
  std::optional<Error> refused;  // why a size does not go with the schedule
  // More recompute costs up to a third of the time, a smaller micro-batch little: so sizes are tried first.
  for (Recompute policy : policies)
    for (int64_t size : micro_batch_candidates(options)) {
      int64_t needed = 0;
      std::optional<std::vector<Plan>> plans;
      try {
        plans = build_world(options, size, policy, workspace_bytes, needed);
      } catch (const Error& error) {
        if (error.code() != ErrorCode::kInvalidConfig) throw;
        if (!refused) refused = error;
        continue;
      }
      if (least_bytes < 0 || needed < least_bytes) least_bytes = needed;
      if (!plans) continue;
      count_work(*plans);
      verify_world(*plans);
      return std::move(*plans);
    }
  if (least_bytes < 0) throw *refused;
  constexpr double kMiB = 1 << 20;
  throw Error(ErrorCode::kInvalidConfig,
              "no plan fits budget.memory = {:.1f} MiB: the least that would do is {:.1f} MiB; raise the budget, or use a smaller model, data.seq_len, "
              "or optimizer.state_dtype = \"bf16\"{}",
              static_cast<double>(options.memory_budget_bytes) / kMiB, static_cast<double>(least_bytes) / kMiB,
              options.micro_batch_size || options.recompute ? "; train.micro_batch_size and train.recompute = \"auto\" let the plan choose" : "");
}

Plan make_rank_plan(const TrainingPlanOptions& options, const WorkspaceBytes& workspace_bytes) {
  check_options(options);
  ORRERY_CHECK(options.micro_batch_size && options.recompute, "micro-batch size or recompute is open");
  return build_plan(options, *options.micro_batch_size, *options.recompute, workspace_bytes);
}

Plan make_training_plan(const TrainingPlanOptions& options, const WorkspaceBytes& workspace_bytes) {
  ORRERY_CHECK(options.world_size() == 1, "{} ranks", options.world_size());
  return std::move(make_training_plans(options, workspace_bytes).front());
}

bool has_losses(const Plan& plan) { return plan.options.parallel.tensor_rank == 0 && plan.memory.batch_offset[static_cast<size_t>(BatchField::kTokenLoss)] >= 0; }

OwnedElements weight_shard(const Plan& plan, size_t parameter) {
  const int64_t count = plan.stage.parameters[parameter].num_elements();
  const auto index = static_cast<int32_t>(parameter);
  for (const ParameterUnit& unit : plan.units) {
    if (unit.weight_slot < 0 || index < unit.first || index >= unit.first + unit.count) continue;
    const int64_t start = unit.starts[parameter - static_cast<size_t>(unit.first)];
    const auto shard = static_cast<size_t>(plan.options.data.shard());
    return {std::clamp<int64_t>(unit.cuts[shard] - start, 0, count), std::clamp<int64_t>(unit.cuts[shard + 1] - start, 0, count)};
  }
  return {0, count};
}

std::vector<StatePlace> state_places(const Plan& plan, size_t parameter, StateField field) {
  std::vector<StatePlace> places;
  const auto& [begin, end] = plan.memory.state_range[parameter];
  const bool whole = plan.memory.newest_whole && field == StateField::kNewest;
  if (const int64_t offset = plan.memory.state_offset[parameter][static_cast<size_t>(field)]; offset >= 0 && begin < end)
    places.push_back({begin, end, offset + (whole ? begin * dtype_bytes(plan.stage.compute_dtype) : 0), false});
  for (const OffloadPiece& piece : plan.offload.pieces)
    for (const OffloadPart& part : piece.parts)
      if (part.parameter == static_cast<int32_t>(parameter) && part.field == field) places.push_back({part.begin, part.end, piece.file_offset + part.offset, true});
  return places;
}

int64_t offload_bytes(const Plan& plan) {
  int64_t bytes = plan.offload.bytes();
  for (const ActivationGroup& group : plan.activation_groups) bytes += group.bytes * plan.schedule.num_slots[static_cast<size_t>(group.chunk)];
  return bytes;
}

int64_t copied_bytes(const Plan& plan, const Action& action) {
  if (stream_of(action.kind) != Stream::kCopy) return 0;
  if (action.kind == ActionKind::kFetchParameters) return plan.units[static_cast<size_t>(action.unit)].shard_size(plan.options.data.shard()) * dtype_bytes(plan.stage.compute_dtype);
  return action.micro_batch >= 0 ? plan.activation_groups[static_cast<size_t>(action.unit)].bytes : plan.offload.pieces[static_cast<size_t>(action.unit)].bytes;
}

int64_t payload_bytes(const Plan& plan, const Action& action) {
  const TrainingPlanOptions& options = plan.options;
  const int64_t width = dtype_bytes(options.compute_dtype);
  if (is_boundary_message(action.kind))
    return plan.schedule.micro_batches[static_cast<size_t>(action.micro_batch) % plan.schedule.micro_batches.size()].num_sequences * options.local_tokens() * options.model.hidden_size * width / (options.parallel.shares_tokens() ? options.parallel.tensor_size : 1);
  if (action.kind == ActionKind::kExchangeSums) return (plan.num_norm_blocks + options.num_losses() + 1) * 8;
  if (action.unit < 0 || stream_of(action.kind) == Stream::kCopy) return 0;
  const ParameterUnit& unit = plan.units[static_cast<size_t>(action.unit)];
  const int64_t own = unit.shard_size(options.data.shard());
  switch (action.kind) {
    case ActionKind::kSendSum:
    case ActionKind::kRecvSum:
    case ActionKind::kAllReduceGradients: return own * 4;
    case ActionKind::kSendWeight:
    case ActionKind::kRecvWeight: return (options.data.shards_weights() ? own : unit.size()) * width;
    case ActionKind::kAllGatherParameters: return unit.size() * width;
    default: return unit.size() * 4;
  }
}

// An all_reduce of `count` elements in the tree: a reduce_scatter of equal parts, each rank's in `num_pieces` of its own, then an all_gather.
int64_t all_reduce_bytes(int64_t count, int64_t width, int64_t size, int64_t rank, int64_t num_pieces) {
  const int64_t own = count / size + (rank < count % size ? 1 : 0);
  return ((count - own) * num_pieces + own * (size - 1)) * width;
}

int64_t bytes_sent(const Plan& plan, const Action& action) {
  const DataParallel& data = plan.options.data;
  const int64_t payload = payload_bytes(plan, action), peers = data.num_shards() - 1;
  if (stream_of(action.kind) == Stream::kPoint) return is_send(action.kind) ? payload : 0;
  if (stream_of(action.kind) != Stream::kCollective) return 0;
  if (action.kind == ActionKind::kExchangeSums) return all_reduce_bytes(payload / 8, 8, plan.options.world_size(), plan.options.world_rank(), 1);
  if (action.kind == ActionKind::kAllReduceGradients) return all_reduce_bytes(payload / 4, 4, data.num_replicas(), data.replica(), static_cast<int64_t>(plan.schedule.rounds.back().after.size()));
  const ParameterUnit& unit = plan.units[static_cast<size_t>(action.unit)];
  const auto shard = static_cast<size_t>(data.shard());
  const int64_t own = unit.shard_size(data.shard()) * (payload / std::max<int64_t>(1, unit.size()));
  if (action.kind == ActionKind::kAllGatherParameters && !data.shards_weights()) {
    // Parameter by parameter, without what lies between them in a gradient buffer.
    int64_t elements = 0;
    for (size_t i = 0; i < unit.starts.size(); ++i) {
      const int64_t first = unit.starts[i], end = first + plan.stage.parameters[static_cast<size_t>(unit.first) + i].num_elements();
      elements += std::clamp(unit.cuts[shard + 1], first, end) - std::clamp(unit.cuts[shard], first, end);
    }
    return elements * dtype_bytes(plan.options.compute_dtype) * peers;
  }
  if (action.kind == ActionKind::kReduceScatterGradients) {
    if (action.round < 0) return (payload - own) * static_cast<int64_t>(plan.schedule.piece_buffers[static_cast<size_t>(unit.chunk)].size());
    return plan.schedule.rounds[static_cast<size_t>(action.round)].pieces[shard].count > 0 ? payload - own : 0;
  }
  return own * peers;
}

std::vector<int> batch_sequences(const Plan& plan) {
  std::vector<int> sequences;
  for (const MicroBatch& batch : plan.schedule.micro_batches)
    for (int64_t i = 0; i < batch.num_sequences; ++i) sequences.push_back(static_cast<int>(batch.batch_sequence + i));
  return sequences;
}

SequenceShare sequence_share(const Plan& plan) {
  int64_t first = 0;
  LaneSchedule lanes = lane_options(plan.options, plan.micro_batch_size);
  const auto count_of = [&](int64_t rank) {
    lanes.rank = rank;
    int64_t count = 0;
    for (const MicroBatch& batch : lane_folds(lane_share(lanes)).micro_batches) count += batch.num_sequences;
    return count;
  };
  for (int64_t rank = 0; rank < plan.options.data.rank; ++rank) first += count_of(rank);
  return {first, num_sequences(plan.schedule)};
}

}  // namespace orrery
