#include "planner/plan.h"

#include <algorithm>

#include "base/error.h"
#include "ir/op_table.h"
#include "ir/verify.h"
#include "ir/vjp.h"
#include "model/decoder.h"
#include "parallel/fusion.h"
#include "parallel/lanes.h"

namespace orrery {

std::string_view recompute_name(Recompute recompute) {
  switch (recompute) {
    case Recompute::kNone: return "none";
    case Recompute::kSelective: return "selective";
    case Recompute::kFull: return "full";
  }
  return "?";
}

std::optional<Recompute> parse_recompute(std::string_view name) {
  for (Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kFull})
    if (recompute_name(recompute) == name) return recompute;
  return std::nullopt;
}

namespace {

// Activations grow with the rows of a micro-batch while products gain little beyond this many.
constexpr int64_t kMicroBatchTokens = 4096;
// A save streams through this much; more would not make a disk faster.
constexpr int64_t kCheckpointBufferBytes = 1 << 20;

Stage build_stage(const TrainingPlanOptions& options, int64_t micro_batch_size, Recompute recompute) {
  Stage stage;
  stage.compute_dtype = options.compute_dtype;
  ForwardOptions forward;
  forward.max_tokens = micro_batch_size * options.sequence_tokens;
  forward.max_segments = micro_batch_size * options.segments_per_sequence;
  build_forward(options.model, forward, stage, Phase::kForward);
  fuse_forward(stage, Phase::kForward);
  build_backward(stage);
  fuse_backward(stage);
  fuse_loss(stage);
  apply_recompute(stage, recompute);
  if (options.evaluates) {
    build_forward(options.model, forward, stage, Phase::kEval);
    fuse_forward(stage, Phase::kEval);
  }
  remove_copies(stage);
  return stage;
}

Plan build_plan(const TrainingPlanOptions& options, int64_t micro_batch_size, Recompute recompute, const WorkspaceBytes& workspace_bytes) {
  Plan plan;
  plan.options = options;
  plan.micro_batch_size = micro_batch_size;
  plan.recompute = recompute;
  plan.stage = build_stage(options, micro_batch_size, recompute);
  plan.units = parameter_units(plan.stage, options.data.size);
  const std::vector<OwnedElements> owned = owned_elements(plan.stage, plan.units, options.data.rank);
  // The losses of all sequences and the count of valid tokens travel with the sums.
  plan.num_norm_blocks = build_optimizer_blocks(plan.stage, options.optimizer, owned, options.data.zero_stage, options.global_batch_size + 1);
  plan.schedule = lane_schedule({options.global_batch_size, options.lanes, micro_batch_size, options.data.size, options.data.rank}, needs_zeroed_gradients(plan.stage));
  append_update(plan.schedule, plan.stage, plan.units, options.data);
  MemoryMapOptions memory;
  memory.moment_dtype = options.optimizer.moment_dtype;
  memory.num_moments = num_moments(options.optimizer.kind);
  memory.batch_sequences = num_sequences(plan.schedule);
  if (options.data.zero_stage >= 1)
    for (const OwnedElements& range : owned) memory.state_range.push_back({range.begin, range.end});
  memory.sequence_tokens = options.sequence_tokens;
  memory.batch_copies = options.evaluates ? 3 : 2;
  memory.checkpoint_buffer_bytes = kCheckpointBufferBytes;
  plan.memory = build_memory_map(plan.stage, plan.schedule, memory, workspace_bytes);
  return plan;
}

void count_work(Plan& plan) {
  for (const ParameterSpec& spec : plan.stage.parameters) plan.num_parameters += spec.num_elements();
  const int64_t tokens = plan.options.global_batch_size * plan.options.sequence_tokens;
  const double mean_context = static_cast<double>(plan.options.sequence_tokens + 1) / 2;
  for (Phase phase : {Phase::kForward, Phase::kBackward})
    for (const Op& op : plan.stage.block(phase).ops)
      (op.recomputed ? plan.recompute_flops_per_step : plan.flops_per_step) += op_cost(plan.stage, op, tokens, mean_context).flops;
}

// The sizes worth trying, largest first: halves of the batch down to one sequence.
std::vector<int64_t> micro_batch_candidates(const TrainingPlanOptions& options) {
  // The largest share of a rank.
  const int64_t share = (options.lanes + options.data.size - 1) / options.data.size * (options.global_batch_size / std::max<int64_t>(1, options.lanes));
  const int64_t most = std::max<int64_t>(1, std::min(options.global_batch_size, share));
  if (options.micro_batch_size) return {std::min(*options.micro_batch_size, most)};
  std::vector<int64_t> sizes;
  for (int64_t size = most; size >= 1; size /= 2)
    if (size == 1 || size * options.sequence_tokens <= kMicroBatchTokens) sizes.push_back(size);
  return sizes;
}

}  // namespace

Plan make_training_plan(const TrainingPlanOptions& options, const WorkspaceBytes& workspace_bytes) {
  if (options.sequence_tokens < 1 || options.sequence_tokens > options.model.max_seq_len)
    throw Error(ErrorCode::kInvalidConfig, "data.seq_len = {}: wanted 1 to model.max_seq_len = {}", options.sequence_tokens, options.model.max_seq_len);
  const std::vector<Recompute> policies = options.recompute ? std::vector<Recompute>{*options.recompute}
                                                            : std::vector<Recompute>{Recompute::kNone, Recompute::kSelective, Recompute::kFull};
  int64_t least_bytes = -1;
  // More recompute costs up to a third of the time, a smaller micro-batch little: so sizes are tried first.
  for (Recompute policy : policies)
    for (int64_t size : micro_batch_candidates(options)) {
      Plan plan = build_plan(options, size, policy, workspace_bytes);
      if (least_bytes < 0 || plan.memory.total_bytes < least_bytes) least_bytes = plan.memory.total_bytes;
      if (options.memory_budget_bytes > 0 && plan.memory.total_bytes > options.memory_budget_bytes) continue;
      count_work(plan);
      const std::vector<std::string> problems = verify_plan(plan.stage, plan.schedule, plan.memory);
      ORRERY_CHECK(problems.empty(), "the plan does not verify: {}", problems.front());
      return plan;
    }
  constexpr double kMiB = 1 << 20;
  throw Error(ErrorCode::kInvalidConfig,
              "no plan fits budget.memory = {:.1f} MiB: the least that would do is {:.1f} MiB; raise the budget, or use a smaller model, data.seq_len, "
              "or optimizer.state_dtype = \"bf16\"{}",
              static_cast<double>(options.memory_budget_bytes) / kMiB, static_cast<double>(least_bytes) / kMiB,
              options.micro_batch_size || options.recompute ? "; train.micro_batch_size and train.recompute = \"auto\" let the plan choose" : "");
}

std::vector<Plan> make_training_plans(const TrainingPlanOptions& options, const WorkspaceBytes& workspace_bytes) {
  const int64_t size = options.data.size;
  if (size < 1) throw Error(ErrorCode::kInvalidConfig, "parallel.data_parallel_size = {}: wanted at least 1", size);
  if (options.data.zero_stage < 0 || options.data.zero_stage > 1)
    throw Error(ErrorCode::kInvalidConfig, "parallel.zero_stage = {}: 0 (every rank keeps all state) and 1 (optimizer state in shards) can run; use one of them", options.data.zero_stage);
  // The last rank's share is the largest when shares differ, so it decides what the others follow.
  TrainingPlanOptions chosen = options;
  chosen.data.rank = size - 1;
  std::vector<Plan> plans(static_cast<size_t>(size));
  plans.back() = make_training_plan(chosen, workspace_bytes);
  chosen.micro_batch_size = plans.back().micro_batch_size;
  chosen.recompute = plans.back().recompute;
  for (chosen.data.rank = 0; chosen.data.rank + 1 < size; ++chosen.data.rank) plans[static_cast<size_t>(chosen.data.rank)] = make_training_plan(chosen, workspace_bytes);
  return plans;
}

SequenceShare sequence_share(const Plan& plan) {
  return {plan.schedule.first_lane * plan.schedule.sequences_per_lane, num_sequences(plan.schedule)};
}

}  // namespace orrery
