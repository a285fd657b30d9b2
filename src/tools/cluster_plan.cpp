#include "tools/cluster_plan.h"

#include <unistd.h>

#include <fstream>

#include "base/error.h"
#include "base/units.h"
#include "checkpoint/model_source.h"
#include "model/model_config.h"
#include "simulate/finalists.h"
#include "train/run_config.h"
#include "train/run_setup.h"

namespace orrery {
namespace {

Objective parse_objective(const std::string& name) {
  for (const Objective objective : {Objective::kTime, Objective::kCost, Objective::kEnergy, Objective::kMemory})
    if (objective_name(objective) == name) return objective;
  throw Error(ErrorCode::kInvalidArgument, "--objective {}: wanted time, cost, energy or memory", name);
}

// "2", or "A100:2" where there are several kinds: which hosts are gone.
LostHosts parse_lost_nodes(const std::string& text, const Cluster& cluster) {
  LostHosts lost;
  const size_t colon = text.find(':');
  const std::string number = colon == std::string::npos ? text : text.substr(colon + 1);
  const auto count = parse_count(number);
  if (!count || *count < 0) throw Error(ErrorCode::kInvalidArgument, "--lose-nodes {}: wanted a number of hosts, such as 2, or of one kind, such as {}:2", text, cluster.devices.front().kind);
  lost.count = *count;
  if (colon == std::string::npos) {
    if (cluster.devices.size() > 1)
      throw Error(ErrorCode::kInvalidArgument, "--lose-nodes {}: the cluster has {}: say which hosts, such as {}:{}", text, devices_text(cluster), cluster.devices.front().kind, lost.count);
    return lost;
  }
  const AcceleratorSpec* kind = find_device(text.substr(0, colon));
  for (; lost.group < cluster.devices.size(); ++lost.group)
    if (kind != nullptr && find_device(cluster.devices[lost.group].kind) == kind) return lost;
  throw Error(ErrorCode::kInvalidArgument, "--lose-nodes {}: the cluster has {}", text, devices_text(cluster));
}

// Every size of the model, without its data: a run for machines elsewhere needs no files here.
ModelConfig run_model(const RunConfig& config) {
  const ModelSection& keys = config.model;
  ModelConfig model = default_model_config(keys.family.value_or(ModelFamily::kLlama));
  if (keys.from) model = open_model(*keys.from).config();
  apply_model_keys(keys, model);
  if (model.vocab_size == 0) throw Error(ErrorCode::kInvalidConfig, "model.vocab_size is not given: a plan for a cluster trains no tokenizer, so it needs the number");
  resolve(model);
  validate(model, "the run file");
  return model;
}

// What the run file fixes: with layout = "manual" every size, else those that are not their default.
FixedLayout fixed_layout(const RunConfig& config) {
  const ParallelSection& keys = config.parallel;
  const ParallelSection usual;
  const bool manual = keys.layout == LayoutMode::kManual;
  FixedLayout fixed;
  const auto size = [&](int64_t given, int64_t otherwise) { return manual || given != otherwise ? given : 0; };
  fixed.tp = size(keys.tensor_parallel_size, usual.tensor_parallel_size), fixed.pp = size(keys.pipeline_parallel_size, usual.pipeline_parallel_size);
  fixed.cp = size(keys.context_parallel_size, usual.context_parallel_size), fixed.dp = keys.data_parallel_size.value_or(0);
  if (manual || keys.zero_stage != usual.zero_stage) fixed.zero = static_cast<ZeroStage>(keys.zero_stage);
  fixed.shard_size = keys.hybrid_shard_size;
  if (manual || keys.sequence_parallel) fixed.sequence_parallel = keys.sequence_parallel;
  for (const std::string& what : keys.offload)
    if (what != "optimizer") throw Error(ErrorCode::kUnsupported, "parallel.offload: \"{}\" is not among what a plan for a cluster weighs, which is \"optimizer\"; leave it out, or plan it for ranks of this machine", what);
  const bool offloads = !keys.offload.empty();
  if (manual || offloads) fixed.offload_optimizer = offloads;
  if (manual ? keys.pipeline_parallel_size > 1 : keys.schedule != usual.schedule) {
    for (const PipelineSchedule schedule : {PipelineSchedule::kOneForwardOneBackward, PipelineSchedule::kGpipe, PipelineSchedule::kInterleaved, PipelineSchedule::kZeroBubbleH1, PipelineSchedule::kZeroBubbleV})
      if (pipeline_schedule_name(schedule) == keys.schedule) fixed.schedule = schedule;
    if (!fixed.schedule)
      throw Error(ErrorCode::kUnsupported, "parallel.schedule = \"{}\" is not among those that a plan for a cluster searches; use 1f1b, gpipe, interleaved, zb-h1 or zb-v, or plan it for ranks of this machine", keys.schedule);
    if (*fixed.schedule == PipelineSchedule::kInterleaved) fixed.virtual_stages = keys.virtual_stages;
  }
  if (!keys.stage_layers.empty())
    throw Error(ErrorCode::kUnsupported, "parallel.stage_layers: a plan for a cluster cuts the layers itself, by cost; leave it out");
  fixed.context_method = keys.context_method;
  fixed.micro_batch = config.train.micro_batch_size.value_or(0);
  switch (config.train.recompute) {
    case RecomputeMode::kAuto: break;
    case RecomputeMode::kNone: fixed.recompute = RecomputeKind::kNone; break;
    case RecomputeMode::kSelective: fixed.recompute = RecomputeKind::kSelective; break;
    case RecomputeMode::kFull: fixed.recompute = RecomputeKind::kFull; break;
  }
  return fixed;
}

}  // namespace

ClusterRequest cluster_request(const ClusterPlanOptions& options) {
  const RunConfig config = load_run_config(options.run_path, options.overrides);
  const ModelConfig model = run_model(config);
  ClusterRequest both;
  SearchRequest& request = both.search;
  auto number = [](int64_t value) { return static_cast<double>(value); };
  request.model = {.num_layers = number(model.num_layers), .hidden = number(model.hidden_size), .num_heads = number(model.num_heads), .num_kv_heads = number(model.num_kv_heads),
                   .head_dim = number(model.head_dim), .ffn_hidden = number(model.intermediate_size), .vocab = number(model.vocab_size), .gated = model.family != ModelFamily::kGpt2,
                   .tied_head = model.tie_embeddings};
  const ModelSection& keys = config.model;
  if (keys.num_experts) {
    request.model.num_experts = number(*keys.num_experts), request.model.top_k = number(*keys.num_experts_per_tok);
    request.model.expert_ffn = number(keys.moe_intermediate_size.value_or(model.intermediate_size));
    request.model.shared_ffn = number(keys.shared_expert_intermediate_size.value_or(0)), request.model.dense_layers = number(keys.first_k_dense_replace.value_or(0));
  }
  const int64_t seq_len = config.data.seq_len.value_or(model.max_seq_len);
  request.model.seq_len = number(seq_len);
  if (model.sliding_window > 0) request.model.window_layers = 1, request.model.window = number(model.sliding_window);
  request.global_batch = number(config.train.global_batch_size);
  request.lanes = number(config.train.lanes);
  request.total_tokens = number(num_train_steps(config, seq_len)) * request.global_batch * request.model.seq_len;
  request.format = config.train.dtype == ComputeDType::kFp8 ? NumberFormat::kFp8 : NumberFormat::kBf16;
  request.fixed = fixed_layout(config);
  // The default is for a machine that does other things too; a device that is described does nothing else.
  if (const ByteBudget& memory = config.budget.memory; !memory.is_default) request.memory = {.bytes = number(memory.bytes), .fraction = memory.fraction};
  request.cluster = load_cluster(options.cluster_path);
  if (!options.lost_nodes.empty()) both.lost = parse_lost_nodes(options.lost_nodes, request.cluster);
  request.objective = parse_objective(options.objective);
  request.limits.seconds = 3600 * config.budget.hours.value_or(0), request.limits.kwh = config.budget.energy.value_or(0);
  if (!options.deadline.empty()) {
    const auto seconds = parse_duration_seconds(options.deadline);
    if (!seconds || *seconds <= 0) throw Error(ErrorCode::kInvalidArgument, "--deadline {}: wanted a duration such as 12h or 30d", options.deadline);
    request.limits.seconds = *seconds;
  }
  if (!options.budget.empty()) {
    const auto money = parse_count(options.budget);
    if (!money || *money <= 0) throw Error(ErrorCode::kInvalidArgument, "--budget {}: wanted an amount such as 50000 or 2M, in the unit of the cluster's prices", options.budget);
    if (!request.cluster.has_prices())
      throw Error(ErrorCode::kInvalidConfig, "--budget {} needs prices: set prices.per_device_hour or prices.per_kwh in {}", options.budget, options.cluster_path);
    request.limits.money = number(*money);
  }
  if (request.objective == Objective::kCost && !request.cluster.has_prices())
    throw Error(ErrorCode::kInvalidConfig, "--objective cost needs prices: set prices.per_device_hour or prices.per_kwh in {}", options.cluster_path);
  // An accelerator computes in formats that a CPU does not; the map of bf16 holds what these runs keep.
  RunConfig in_bf16 = config;
  if (config.train.dtype != ComputeDType::kF32) in_bf16.train.dtype = ComputeDType::kBf16;
  both.run = plan_options_of(in_bf16, model);
  both.run.parallel.context_method = config.parallel.context_method;
  return both;
}

void search_and_refine(const ClusterRequest& request, SearchResult& result) {
  const bool shows = isatty(STDERR_FILENO) != 0;
  if (request.lost.count > 0) replan_after_loss(request.search, request.lost.group, request.lost.count, result);
  else search_layouts(request.search, result);
  refine_finalists(request.search, request.run, result, [&](int64_t done, int64_t total) {
    if (shows) fmt::print(stderr, "\r{} of {} finalists{}", done, total, done == total ? "\r\033[K" : "");
  });
}

void plan_for_cluster(const ClusterPlanOptions& options) {
  const ClusterRequest both = cluster_request(options);
  const SearchRequest& request = both.search;
  SearchResult result;
  search_and_refine(both, result);
  if (!options.html_path.empty()) {
    std::ofstream page(options.html_path, std::ios::binary);
    const Candidate& best = result.best.front();
    page << search_to_html(request, result, timeline_svg(simulate(simulated_pipeline(best, pipeline_kind_of(best.job.layout.schedule)))));
    if (!page.flush()) throw Error(ErrorCode::kIo, "cannot write {}", options.html_path);
    fmt::print(stderr, "wrote {}\n", options.html_path);
  }
  fmt::print("{}{}", options.json ? search_to_json(request, result) : search_to_text(request, result, options.explain), options.json ? "\n" : "");
}

}  // namespace orrery
