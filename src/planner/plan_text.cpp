// The plan as people and programs read it.
#include <nlohmann/json.hpp>

#include <algorithm>

#include "base/error.h"
#include "planner/plan.h"
#include "planner/run_forecast.h"
#include "planner/shared_layers.h"
#include "planner/step_time.h"

namespace orrery {
namespace {

using nlohmann::json;

json shape_json(const Shape& shape) {
  json dims = json::array();
  for (const Dim& dim : shape) dims.push_back(dim.bound);
  return dims;
}

json stage_json(const Stage& stage) {
  json values = json::array();
  for (const Value& value : stage.values) {
    json entry = {{"name", value.name}, {"dtype", dtype_name(value.dtype)}, {"shape", shape_json(value.shape)}, {"kind", value_kind_name(value.kind)}};
    if (value.layer >= 0) entry["layer"] = value.layer;
    if (value.view_of != kNoValue) entry["view_of"] = value.view_of;
    values.push_back(std::move(entry));
  }
  json chunks = json::array();
  for (size_t block = 0; block < stage.blocks.size(); ++block) {
    if (block % kNumPhases == 0) chunks.push_back(json::object());
    json ops = json::array();
    for (const Op& op : stage.blocks[block].ops) {
      json entry = {{"op", op_name(op.kind)}, {"inputs", op.inputs}, {"outputs", op.outputs}};
      if (op.recomputed) entry["recomputed"] = true;
      ops.push_back(std::move(entry));
    }
    chunks.back()[std::string(phase_name(Stage::phase_of(block)))] = std::move(ops);
  }
  return {{"compute_dtype", dtype_name(stage.compute_dtype)}, {"values", std::move(values)}, {"chunks", std::move(chunks)}};
}

json schedule_json(const Schedule& schedule) {
  json micro_batches = json::array(), actions = json::array();
  for (const MicroBatch& batch : schedule.micro_batches) micro_batches.push_back({batch.first_sequence, batch.num_sequences});
  for (const Action& action : schedule.actions) {
    json entry = {{"action", to_string(action, schedule)}, {"gradient_buffer", action.gradient_buffer}};
    if (!action.merges.empty()) entry["merges"] = action.merges;
    if (action.add_to_destination) entry["add"] = true;
    actions.push_back(std::move(entry));
  }
  return {{"micro_batches", std::move(micro_batches)}, {"actions", std::move(actions)}};
}

json class_bytes_json(const MemoryMap& memory) {
  json bytes = json::object();
  for (size_t i = 0; i < memory.class_bytes.size(); ++i)
    if (memory.class_bytes[i] > 0) bytes[std::string(memory_class_name(static_cast<MemoryClass>(i)))] = memory.class_bytes[i];
  return bytes;
}

json memory_json(const MemoryMap& memory) {
  json workspace = json::array();
  for (size_t block = 0; block < memory.workspace_bytes.size(); ++block)
    if (!memory.workspace_bytes[block].empty())
      workspace.push_back({{"chunk", block / kNumPhases}, {"phase", phase_name(Stage::phase_of(block))}, {"offset", memory.workspace_offset[block]}, {"bytes", memory.workspace_bytes[block]}});
  return {{"total_bytes", memory.total_bytes},
          {"class_bytes", class_bytes_json(memory)},
          {"activation_lower_bound", memory.activation_lower_bound},
          {"parameter_offset", memory.parameter_offset},
          {"state_offset", memory.state_offset},
          {"offload_slot_offset", memory.offload_slot_offset},
          {"gradient_buffer_offset", memory.gradient_buffer_offset},
          {"gradient_offset", memory.gradient_offset},
          {"gradients_by_lifetime", memory.gradients_by_lifetime},
          {"batch_offset", memory.batch_offset},
          {"step_offset", memory.step_offset},
          {"num_slots", memory.num_slots},
          {"activation_offset", memory.activation_offset},
          {"workspace", std::move(workspace)}};
}

std::string mib(int64_t bytes) { return fmt::format("{:10.1f} MiB", static_cast<double>(bytes) / (1 << 20)); }

}  // namespace

std::string plan_to_json(const Plan& plan, const StepPrediction* prediction, const RunForecast* forecast) {
  const TrainingPlanOptions& options = plan.options;
  json document = {
      {"model", json::parse(model_config_to_json(options.model, options.compute_dtype))},
      {"num_parameters", plan.num_parameters},
      {"batch",
       {{"global_batch_size", options.global_batch_size}, {"sequence_tokens", options.sequence_tokens}, {"lanes", options.lanes}, {"micro_batch_size", plan.micro_batch_size}}},
      {"layout", {{"ranks", options.world_size()},
         {"tensor_parallel_size", options.parallel.tensor_size},
         {"tensor_parallel_rank", options.parallel.tensor_rank},
         {"sequence_parallel", options.parallel.sequence_parallel},
         {"context_parallel_size", options.parallel.context_size},
         {"context_parallel_rank", options.parallel.context_rank},
         {"context_method", context_method_name(options.parallel.context_method)},
         {"data_parallel_size", options.data.size},
         {"data_parallel_rank", options.data.rank},
         {"zero_stage", options.data.zero_stage},
         {"pipeline_parallel_size", options.pipeline.size},
         {"pipeline_parallel_rank", options.pipeline.rank},
         {"schedule", options.pipeline.order ? to_string(*options.pipeline.order) : std::string(pipeline_name(options.pipeline.kind))},
         {"stages", plan.schedule.stage_of_chunk},
         {"gradient_delay", options.optimizer.gradient_delay},
         {"steps_carry", plan.schedule.carries},
         {"recompute", recompute_text(plan)}}},
      {"flops_per_step", plan.flops_per_step},
      {"recompute_flops_per_step", plan.recompute_flops_per_step},
      {"stage", stage_json(plan.stage)},
      {"schedule", schedule_json(plan.schedule)},
      {"memory", memory_json(plan.memory)},
      {"verified", true}};
  if (prediction != nullptr && prediction->missing.empty()) {
    const PhaseSeconds& p = prediction->ranks.front();
    document["prediction"] = {{"seconds", prediction->seconds}, {"low", prediction->low}, {"high", prediction->high},
                              {"phases", {{"forward", p.forward}, {"backward", p.backward}, {"update", p.update}, {"communication", p.communication}}}};
  }
  if (forecast != nullptr && forecast->seconds > 0)
    document["run"] = {{"steps", forecast->work.num_steps}, {"evaluations", forecast->work.num_evaluations}, {"seconds", forecast->seconds}, {"low", forecast->low}, {"high", forecast->high},
                       {"evaluation_seconds", forecast->evaluation_seconds}, {"money", forecast->prices.price_per_hour > 0 ? json(forecast->money) : json()},
                       {"kwh", forecast->kwh > 0 ? json(forecast->kwh) : json()}, {"energy_source", forecast->prices.energy_source}};
  return document.dump(2);
}

std::string plan_to_text(const Plan& plan) {
  const TrainingPlanOptions& options = plan.options;
  const ModelConfig& model = options.model;
  std::string text = fmt::format("model     {} {:.1f} M parameters: {} layers x {} wide, {} heads ({} kv) of {}, vocabulary {}{}\n", model_family_name(model.family),
                                 static_cast<double>(plan.num_parameters) / 1e6, model.num_layers, model.hidden_size, model.num_heads, model.num_kv_heads,
                                 model.head_dim, model.vocab_size, model.tie_embeddings ? ", tied head" : "");
  text += fmt::format("batch     {} sequences x {} tokens, {} lanes; {} micro-batch{} of {}\n", options.global_batch_size, options.sequence_tokens, options.lanes,
                      plan.schedule.micro_batches.size(), plan.schedule.micro_batches.size() == 1 ? "" : "es", plan.micro_batch_size);
  const DataParallel& data = options.data;
  const PipelineParallel& pipeline = options.pipeline;
  std::vector<std::string> axes;
  if (pipeline.size > 1) axes.push_back(fmt::format("pipeline parallel {} ({}, {} stages)", pipeline.size, pipeline.order ? "schedule file" : pipeline_name(pipeline.kind), plan.rank_of_stage.size()));
  if (pipeline.kind == PipelineKind::k2Bw && !pipeline.order) axes.back().insert(axes.back().size() - 1, plan.schedule.carries ? ", steps run into each other" : ", drained after each step");
  const ParallelContext& parallel = options.parallel;
  if (parallel.tensor_size > 1) axes.push_back(fmt::format("tensor parallel {}{}", parallel.tensor_size, parallel.sequence_parallel ? " with sequence parallel" : ""));
  if (parallel.context_size > 1)
    axes.push_back(fmt::format("context parallel {} ({}, {} tokens of a sequence each)", parallel.context_size, context_method_name(parallel.context_method), options.local_tokens()));
  if (data.size > 1) axes.push_back(fmt::format("data parallel {}, ZeRO-{}", data.size, data.zero_stage));
  const std::string ranks = options.world_size() == 1 ? "1 rank" : fmt::format("{}; rank {} of {} below", fmt::join(axes, ", "), options.world_rank(), options.world_size());
  text += fmt::format("layout    {}, {} compute, recompute {}{}, {:.2f} TFLOP a step{}\n", ranks, dtype_name(options.compute_dtype), recompute_text(plan),
                      options.optimizer.gradient_delay > 0 ? ", gradients a step late" : "", plan.flops_per_step / 1e12,
                      plan.recompute_flops_per_step > 0 ? fmt::format(" + {:.2f} recomputed", plan.recompute_flops_per_step / 1e12) : "");
  for (const auto& [kind, bytes] : op_bytes_sent(plan)) text += fmt::format("messages  {} a step to the ranks that share a layer, in {}\n", mib(bytes), op_name(kind));
  const MemoryMap& memory = plan.memory;
  for (size_t i = 0; i < memory.class_bytes.size(); ++i) {
    if (memory.class_bytes[i] == 0) continue;
    const auto memory_class = static_cast<MemoryClass>(i);
    text += fmt::format("memory    {:<18}{}", memory_class_name(memory_class), mib(memory.class_bytes[i]));
    if (memory_class == MemoryClass::kGradients) {
      size_t buffers = 0;
      for (const auto& chunk : memory.gradient_buffer_offset) buffers = std::max(buffers, chunk.size());
      if (buffers > 1) text += fmt::format("   {} buffers", buffers);
      if (memory.gradients_by_lifetime) text += "   beyond activations: they take the place of those that died";
    }
    if (memory_class == MemoryClass::kActivations && memory.activation_lower_bound > 0)
      text += fmt::format("   lower bound {:.1f} MiB, waste {:.1f} %", static_cast<double>(memory.activation_lower_bound) / (1 << 20),
                          100.0 * static_cast<double>(memory.class_bytes[i] - memory.activation_lower_bound) / static_cast<double>(memory.activation_lower_bound));
    text += '\n';
  }
  text += fmt::format("memory    {:<18}{}   one arena, nothing else\n", "total", mib(memory.total_bytes));
  if (const int64_t bytes = offload_bytes(plan); bytes > 0) {
    int64_t read = 0, written = 0;
    for (const Action& action : plan.schedule.actions) (action.kind == ActionKind::kOffload ? written : read) += copied_bytes(plan, action);
    std::vector<std::string> what;
    if (!plan.offload.pieces.empty()) what.push_back(fmt::format("optimizer state{} in {} pieces", options.optimizer.offload_weights ? " and weights" : "", plan.offload.pieces.size()));
    if (options.offload_activations) what.push_back(fmt::format("activations of {} layers", plan.activation_groups.size()));
    text += fmt::format("offload   {:<18}{}   {}; a step reads {:.1f} MiB and writes {:.1f}, beside the compute\n", "elsewhere", mib(bytes), fmt::join(what, ", "),
                        static_cast<double>(read) / (1 << 20), static_cast<double>(written) / (1 << 20));
  }
  std::string schedule = to_string(plan.schedule);
  constexpr size_t kScheduleWidth = 110;
  if (schedule.size() > kScheduleWidth) schedule = schedule.substr(0, kScheduleWidth - 8) + " ...";
  text += fmt::format("schedule  {}\n", schedule);
  size_t forward_ops = 0, backward_ops = 0;
  for (int32_t chunk = 0; chunk < plan.stage.num_chunks(); ++chunk) {
    forward_ops += plan.stage.block(Phase::kForward, chunk).ops.size();
    backward_ops += plan.stage.block(Phase::kBackward, chunk).ops.size();
  }
  text += fmt::format("verified  {} actions, {} ops forward, {} backward, {} optimizer\n", plan.schedule.actions.size(), forward_ops, backward_ops,
                      plan.stage.block(Phase::kOptimizer).ops.size());
  return text;
}

}  // namespace orrery
