// The result of a search as people and programs read it.
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/units.h"
#include "planner/search.h"

namespace orrery {
namespace {

std::string_view recompute_word(RecomputeKind kind) { return kind == RecomputeKind::kFull ? "full" : kind == RecomputeKind::kSelective ? "selective" : "none"; }

nlohmann::ordered_json candidate_json(const Candidate& c) {
  const JobLayout& l = c.job.layout;
  return {{"devices", c.job.cluster.num_devices},
          {"tensor_parallel_size", l.tp}, {"sequence_parallel", l.sequence_parallel}, {"pipeline_parallel_size", l.pp}, {"virtual_stages", l.virtual_stages},
          {"schedule", pipeline_schedule_name(l.schedule)}, {"context_parallel_size", l.cp}, {"expert_parallel_size", l.ep}, {"data_parallel_size", l.dp},
          {"zero_stage", static_cast<int>(l.zero)}, {"shard_size", l.shard_size}, {"micro_batch_size", l.micro_batch}, {"num_micro_batches", l.num_micro_batches},
          {"recompute", recompute_word(l.recompute)}, {"offload_optimizer", l.offload_optimizer},
          {"step_seconds", c.step.seconds}, {"step_seconds_by", c.closed_form_seconds > 0 ? "events" : "closed form"}, {"step_seconds_low", c.low_seconds}, {"step_seconds_high", c.high_seconds},
          {"memory_bytes", c.memory.total()}, {"memory_map_bytes", c.mapped_bytes > 0 ? nlohmann::ordered_json(c.mapped_bytes) : nlohmann::ordered_json()}, {"not_mapped", c.not_mapped}, {"host_bytes", c.memory.host}, {"goodput", c.goodput}, {"run_seconds", c.run_seconds},
          {"money", c.money}, {"kwh", c.kwh}, {"carbon_kg", c.carbon_kg}, {"energy_kind", "modelled"}};
}

}  // namespace

std::string_view objective_name(Objective objective) {
  constexpr std::array<std::string_view, 4> kNames = {"time", "cost", "energy", "memory"};
  return kNames[static_cast<size_t>(objective)];
}

std::string layout_text(const JobLayout& l) {
  std::string text = fmt::format("tp {}{} x pp {}{} x cp {} x dp {}", l.tp, l.sequence_parallel ? "+sp" : "", l.pp, l.virtual_stages > 1 ? fmt::format(" (v {})", l.virtual_stages) : "", l.cp, l.dp);
  if (l.ep > 1) text += fmt::format(", ep {}", l.ep);
  if (l.pp > 1) text += fmt::format(", {}", pipeline_schedule_name(l.schedule));
  text += fmt::format(", zero {}", static_cast<int>(l.zero));
  if (l.zero == ZeroStage::kFull && l.shard_size < l.dp * l.cp) text += fmt::format(" in {}", l.shard_size);
  text += fmt::format(", micro-batch {}", l.micro_batch);
  if (l.recompute != RecomputeKind::kNone) text += fmt::format(", recompute {}", recompute_word(l.recompute));
  if (l.offload_optimizer) text += ", optimizer on the host";
  return text;
}

std::string search_to_text(const SearchRequest& request, const SearchResult& result, bool explain) {
  const Candidate& best = result.best.front();
  const ParameterCount count = count_parameters(request.model);
  std::string text = fmt::format("model     {:.1f} B parameters, {} layers x {} wide, {} tokens a sequence, batch {}\n", count.total / 1e9, request.model.num_layers, request.model.hidden, request.model.seq_len,
                                 request.global_batch);
  text += fmt::format("cluster   {} {}, {} a domain; objective {}\n", request.cluster.devices.count, result.device.name, request.cluster.domain_size(), objective_name(request.objective));
  text += fmt::format("layout    {} on {} devices\n", layout_text(best.job.layout), best.job.cluster.num_devices);
  text += fmt::format("step      {} (90 %: {} to {}); compute {:.0f} %, bubble {:.0f} %, communication {:.0f} %\n", format_duration(best.step.seconds), format_duration(best.low_seconds),
                      format_duration(best.high_seconds), 100 * best.step.compute_seconds / best.step.seconds, 100 * best.step.bubble_seconds / best.step.seconds,
                      100 * best.step.communication_seconds / best.step.seconds);
  text += fmt::format("memory    {} of {} on the fullest rank: weights {}, gradients {}, optimizer {}, activations {}\n", format_bytes(best.memory.total()), format_bytes(result.device.memory_bytes),
                      format_bytes(best.memory.weights), format_bytes(best.memory.gradients), format_bytes(best.memory.optimizer), format_bytes(best.memory.activations));
  if (best.mapped_bytes > 0) text += fmt::format("          {} by the exact map of its tensors; what an accelerator's kernels work in comes on top\n", format_bytes(static_cast<double>(best.mapped_bytes)));
  else if (!best.not_mapped.empty()) text += fmt::format("          no exact map: {}\n", best.not_mapped);
  if (request.total_tokens > 0)
    text += fmt::format("run       {} with goodput {:.3f}, a checkpoint every {}; money {:.0f}, {:.0f} kWh (modelled)\n", format_duration(best.run_seconds), best.goodput,
                        format_duration(best.checkpoint_interval_seconds), best.money, best.kwh);
  text += fmt::format("searched  {} layouts priced, {} more groups do not fit, {} cannot be faster\n", result.considered, result.pruned_by_memory, result.pruned_by_time);
  text += fmt::format("finalists {}: {} stepped through by events, {} laid out to the byte, {} more dropped by that\n", result.best.size(), result.simulated, result.mapped, result.dropped);
  if (!explain) return text;
  text += "\ntop ten\n";
  for (size_t i = 0; i < std::min<size_t>(10, result.best.size()); ++i) {
    const Candidate& c = result.best[i];
    text += fmt::format("  {:2}  {:>9}  {:>10}  {}\n", i + 1, format_duration(c.step.seconds), format_bytes(c.memory.total()), layout_text(c.job.layout));
  }
  text += "\nwhy not\n";
  for (const FamilyVerdict& verdict : result.families) text += fmt::format("  {:<34} {}\n", verdict.family, verdict.reason);
  text += "\ntime against money\n";
  for (const Candidate& c : result.pareto) text += fmt::format("  {:6} devices  {:>9}  {:12.0f}  {:12.0f} kWh  {}\n", c.job.cluster.num_devices, format_duration(c.run_seconds), c.money, c.kwh, layout_text(c.job.layout));
  return text;
}

std::string search_to_json(const SearchRequest& request, const SearchResult& result) {
  nlohmann::ordered_json document = {{"objective", objective_name(request.objective)}, {"considered", result.considered}, {"pruned_by_memory", result.pruned_by_memory}, {"pruned_by_time", result.pruned_by_time}};
  auto list = [](const std::vector<Candidate>& candidates) {
    auto array = nlohmann::ordered_json::array();
    for (const Candidate& c : candidates) array.push_back(candidate_json(c));
    return array;
  };
  document["finalists"] = list(result.best);
  document["pareto"] = list(result.pareto);
  auto families = nlohmann::ordered_json::array();
  for (const FamilyVerdict& v : result.families) families.push_back({{"family", v.family}, {"fits", v.feasible}, {"reason", v.reason}});
  document["why_not"] = std::move(families);
  return document.dump(2);
}

}  // namespace orrery
