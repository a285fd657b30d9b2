#include "planner/rank_stage.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "ir/op_table.h"
#include "ir/vjp.h"
#include "parallel/chunks.h"
#include "parallel/fusion.h"
#include "parallel/shard.h"
#include "parallel/split_layers.h"

namespace orrery {
namespace {

ForwardOptions forward_options(const TrainingPlanOptions& options, int64_t micro_batch_size, const ModelPart& part) {
  ForwardOptions forward;
  forward.part = part;
  forward.parallel = options.parallel;
  forward.sequence_tokens = options.local_tokens();
  forward.max_tokens = micro_batch_size * options.local_tokens();
  forward.max_segments = micro_batch_size * options.segments_per_sequence;
  return forward;
}

// Floating point operations of the embedding, each layer and the head, in model order: backwards cost about the same multiple of them.
std::vector<double> costs_of_items(const TrainingPlanOptions& options) {
  Stage whole;
  whole.compute_dtype = options.compute_dtype;
  build_forward(options.model, forward_options(options, 1, {}), whole, Phase::kForward);
  std::vector<double> costs(static_cast<size_t>(options.model.num_layers) + 2, 0);
  const double mean_context = static_cast<double>(options.sequence_tokens + 1) / 2;
  size_t item = 0;
  for (const Op& op : whole.block(Phase::kForward).ops) {
    if (op.layer >= 0)
      item = static_cast<size_t>(op.layer) + 1;
    else if (item > 0)
      item = costs.size() - 1;
    costs[item] += op_cost(whole, op, options.local_tokens(), mean_context).flops;
  }
  return costs;
}

// Where each stage ends, counted in items: the embedding is item 0, the head the last.
std::vector<int32_t> stage_ends(const TrainingPlanOptions& options, int32_t num_stages) {
  const std::vector<int64_t>& given = options.pipeline.stage_layers;
  if (given.empty()) return split_layers(costs_of_items(options), num_stages);
  const int64_t sum = std::accumulate(given.begin(), given.end(), int64_t{0});
  if (static_cast<int64_t>(given.size()) != num_stages || sum != options.model.num_layers)
    throw Error(ErrorCode::kInvalidConfig, "parallel.stage_layers names {} stages with {} layers; the pipeline has {} stages and the model {} layers", given.size(), sum, num_stages,
                options.model.num_layers);
  std::vector<int32_t> ends;
  int64_t end = 1;
  for (size_t stage = 0; stage < given.size(); ++stage) {
    const bool outer = stage == 0 || stage + 1 == given.size();
    if (given[stage] < (outer ? 0 : 1))
      throw Error(ErrorCode::kInvalidConfig, "parallel.stage_layers gives stage {} {} layers; only the first stage, which has the embedding, and the last, which has the head, can be without", stage,
                  given[stage]);
    end += given[stage];
    ends.push_back(static_cast<int32_t>(end));
  }
  ends.back() += 1;
  return ends;
}

// A tied matrix whose uses are on two ranks.
std::optional<SharedMatrix> shared_matrix(const TrainingPlanOptions& options, const Stage& stage, const std::vector<int32_t>& rank_of_stage) {
  const int32_t first = rank_of_stage.front(), last = rank_of_stage.back();
  const auto here = static_cast<int32_t>(options.pipeline.rank);
  if (first == last || (here != first && here != last)) return std::nullopt;
  for (size_t parameter = 0; parameter < stage.parameters.size(); ++parameter)
    if (stage.parameters[parameter].num_accumulators > 1)
      return SharedMatrix{static_cast<int32_t>(parameter), static_cast<int32_t>((here == first ? last : first) * options.data.size + options.data.rank), here == first};
  return std::nullopt;
}

}  // namespace

std::vector<ModelPart> stage_parts(const TrainingPlanOptions& options, int32_t num_stages) {
  const std::vector<int32_t> ends = stage_ends(options, num_stages);
  std::vector<ModelPart> parts;
  int64_t begin = 0;
  for (int64_t end : ends) {
    const int64_t num_layers = options.model.num_layers;
    parts.push_back({begin == 0, end == num_layers + 2, std::max<int64_t>(0, begin - 1), std::min(end - 1, num_layers)});
    begin = end;
  }
  return parts;
}

Stage build_chunk(const TrainingPlanOptions& options, int64_t micro_batch_size, Recompute recompute, const ModelPart& part) {
  Stage stage;
  stage.compute_dtype = options.compute_dtype;
  const ForwardOptions forward = forward_options(options, micro_batch_size, part);
  // Every rank reads the batch, also where no op does: its tokens are counted, and a pipeline's ranks stay alike.
  BlockBuilder batch(stage, Phase::kForward);
  for (BatchField field : {BatchField::kIds, BatchField::kTargets, BatchField::kPositions}) batch.batch(field, DType::kI32, {{forward.max_tokens, DynamicDim::kTokens}});
  build_forward(options.model, forward, stage, Phase::kForward);
  fuse_forward(stage, Phase::kForward);
  build_backward(stage);
  fuse_backward(stage);
  fuse_loss(stage);
  if (recompute == Recompute::kBudget)
    apply_recompute_by_bytes(stage, options.recompute_level, {forward.max_tokens, static_cast<double>(options.sequence_tokens + 1) / 2, options.flops_per_byte});
  else
    apply_recompute(stage, recompute);
  if (options.evaluates) {
    build_forward(options.model, forward, stage, Phase::kEval);
    fuse_forward(stage, Phase::kEval);
  }
  remove_copies(stage);
  return stage;
}

RankStage build_rank_stage(const TrainingPlanOptions& options, int64_t micro_batch_size, Recompute recompute, const std::vector<int32_t>& rank_of_stage, bool splits) {
  RankStage rank;
  rank.stage.compute_dtype = options.compute_dtype;
  const std::vector<ModelPart> parts = stage_parts(options, static_cast<int32_t>(rank_of_stage.size()));
  for (size_t stage = 0, last_here = parts.size(); stage < parts.size(); ++stage) {
    if (rank_of_stage[stage] != options.pipeline.rank) continue;
    Stage chunk = build_chunk(options, micro_batch_size, recompute, parts[stage]);
    if (splits) split_backward(chunk);
    append_chunk(rank.stage, chunk, last_here + 1 == stage);
    last_here = stage;
  }
  rank.shared = shared_matrix(options, rank.stage, rank_of_stage);
  // The place where the sum of the other use arrives.
  if (rank.shared && rank.shared->updated_here) gradient_value(rank.stage, rank.shared->parameter, 1);
  const DataParallel& data = options.data;
  rank.units = parameter_units(rank.stage, data.num_shards(), data.shards_gradients());
  if (data.shards_gradients() || options.optimizer.offload_weights)
    assign_slots(rank.stage, rank.units, data, micro_batch_size < options.global_batch_size / options.lanes, options.optimizer.offload_weights);
  RankUpdate& update = rank.update;
  update.owned = update.updated = owned_elements(rank.stage, rank.units, data.shard());
  update.takes_norm = data.replica() == 0;
  update.gradient_shards = data.shards_gradients();
  update.weight_shards = data.shards_weights();
  if (data.zero_stage == 0)
    for (size_t parameter = 0; parameter < update.updated.size(); ++parameter) {
      const bool elsewhere = rank.shared && !rank.shared->updated_here && rank.shared->parameter == static_cast<int32_t>(parameter);
      update.updated[parameter] = elsewhere ? OwnedElements{} : OwnedElements{0, rank.stage.parameters[parameter].num_elements()};
    }
  const NormBlocks blocks = norm_blocks(options.model, options.parallel);
  // The losses of all sequences and the count of valid tokens travel with the sums.
  rank.offload = build_optimizer_blocks(rank.stage, options.optimizer, blocks, update, options.num_losses() + 1);
  rank.num_norm_blocks = blocks.count;
  return rank;
}

}  // namespace orrery
