// The result of a search as people and programs read it.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/units.h"
#include "planner/search.h"

namespace orrery {
namespace {

std::string_view recompute_word(RecomputeKind kind) { return kind == RecomputeKind::kFull ? "full" : kind == RecomputeKind::kSelective ? "selective" : "none"; }

// "domain", "network", or both: which links members of one group are joined by.
std::string_view links_of(const AxisSpan& span) { return span.inside >= span.size ? "domain" : span.inside > 1 ? "domain and network" : "network"; }

nlohmann::ordered_json placement_json(const Candidate& c) {
  auto parts = nlohmann::ordered_json::array();
  for (const DevicePart& part : c.parts) {
    nlohmann::ordered_json entry = {{"kind", part.cluster.device->name}, {"devices", part.num_devices}};
    if (c.is_mixed_pipeline()) entry["pipeline_ranks"] = {part.first_rank, part.first_rank + part.num_ranks - 1}, entry["layers"] = part.layers, entry["layer_seconds"] = part.step.layer_seconds;
    entry["memory_bytes"] = part.memory.total(), entry["capacity_bytes"] = part.capacity_bytes;
    parts.push_back(std::move(entry));
  }
  return parts;
}

nlohmann::ordered_json axes_json(const Candidate& c) {
  auto axes = nlohmann::ordered_json::array();
  for (const AxisSpan& span : axis_spans(c)) axes.push_back({{"axis", span.axis}, {"size", span.size}, {"stride", span.stride}, {"in_one_domain", span.inside}, {"links", links_of(span)}});
  return axes;
}

// "14 layers", "12 to 14 layers".
std::string layers_text(const std::vector<int32_t>& layers) {
  const auto [fewest, most] = std::minmax_element(layers.begin(), layers.end());
  return *fewest == *most ? fmt::format("{} layers", *most) : fmt::format("{} to {} layers", *fewest, *most);
}

nlohmann::ordered_json candidate_json(const Candidate& c) {
  const JobLayout& l = c.job.layout;
  return {{"devices", c.job.cluster.num_devices},
          {"tensor_parallel_size", l.tp}, {"sequence_parallel", l.sequence_parallel}, {"pipeline_parallel_size", l.pp}, {"virtual_stages", l.virtual_stages},
          {"schedule", pipeline_schedule_name(l.schedule)}, {"context_parallel_size", l.cp}, {"context_method", context_method_name(l.context_method)}, {"expert_parallel_size", l.ep}, {"data_parallel_size", l.dp},
          {"zero_stage", static_cast<int>(l.zero)}, {"shard_size", l.shard_size}, {"micro_batch_size", l.micro_batch}, {"num_micro_batches", l.num_micro_batches},
          {"recompute", recompute_word(l.recompute)}, {"offload_optimizer", l.offload_optimizer}, {"placement", placement_json(c)}, {"axes", axes_json(c)},
          {"step_seconds", c.step.seconds}, {"step_seconds_by", c.closed_form_seconds > 0 ? "events" : "closed form"}, {"step_seconds_low", c.low_seconds}, {"step_seconds_high", c.high_seconds},
          {"memory_bytes", c.memory.total()}, {"memory_map_bytes", c.mapped_bytes > 0 ? nlohmann::ordered_json(c.mapped_bytes) : nlohmann::ordered_json()}, {"not_mapped", c.not_mapped}, {"host_bytes", c.memory.host}, {"goodput", c.goodput}, {"run_seconds", c.run_seconds},
          {"money", c.money}, {"kwh", c.kwh}, {"carbon_kg", c.carbon_kg}, {"energy_kind", "modelled"}};
}

}  // namespace

std::string_view objective_name(Objective objective) {
  constexpr std::array<std::string_view, 4> kNames = {"time", "cost", "energy", "memory"};
  return kNames[static_cast<size_t>(objective)];
}

std::string money_text(double money) { return money >= 10 || money == 0 ? fmt::format("{:.0f}", money) : fmt::format("{:.2g}", money); }

std::string FixedLayout::text() const {
  std::vector<std::string> parts;
  const std::pair<std::string_view, int64_t> sizes[] = {{"tensor_parallel_size", tp}, {"pipeline_parallel_size", pp}, {"context_parallel_size", cp}, {"data_parallel_size", dp},
                                                        {"virtual_stages", virtual_stages}, {"micro_batch_size", micro_batch}, {"hybrid_shard_size", shard_size}};
  for (const auto& [name, size] : sizes)
    if (size > 0) parts.push_back(fmt::format("{} = {}", name, size));
  if (zero) parts.push_back(fmt::format("zero_stage = {}", static_cast<int>(*zero)));
  if (schedule) parts.push_back(fmt::format("schedule = \"{}\"", pipeline_schedule_name(*schedule)));
  if (recompute) parts.push_back(fmt::format("recompute = \"{}\"", recompute_word(*recompute)));
  if (sequence_parallel) parts.push_back(fmt::format("sequence_parallel = {}", *sequence_parallel));
  if (context_method != ContextMethod::kRing) parts.push_back(fmt::format("context_method = \"{}\"", context_method_name(context_method)));
  if (offload_optimizer) parts.push_back(*offload_optimizer ? "the optimizer offloaded" : "nothing offloaded");
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string layout_text(const JobLayout& l) {
  std::string text = fmt::format("tp {}{} x pp {}{} x cp {}{} x dp {}", l.tp, l.sequence_parallel ? "+sp" : "", l.pp, l.virtual_stages > 1 ? fmt::format(" (v {})", l.virtual_stages) : "", l.cp, l.cp > 1 && l.context_method != ContextMethod::kRing ? fmt::format(" ({})", context_method_name(l.context_method)) : "", l.dp);
  if (l.ep > 1) text += fmt::format(", ep {}", l.ep);
  if (l.pp > 1) text += fmt::format(", {}", pipeline_schedule_name(l.schedule));
  text += fmt::format(", zero {}", static_cast<int>(l.zero));
  if (l.zero == ZeroStage::kFull && l.shard_size < l.dp * l.cp) text += fmt::format(" in {}", l.shard_size);
  text += fmt::format(", micro-batch {}", l.micro_batch);
  if (l.recompute != RecomputeKind::kNone) text += fmt::format(", recompute {}", recompute_word(l.recompute));
  if (l.pipeline_inside) text += ", pipelines inside a domain";
  if (l.offload_optimizer) text += ", optimizer on the host";
  return text;
}

std::string placement_text(const Candidate& c) {
  std::string text;
  for (const DevicePart& part : c.parts) {
    const std::string devices = fmt::format("{} {}", part.num_devices, part.cluster.device->name);
    if (!c.is_mixed_pipeline()) {
      text += (text.empty() ? "" : " + ") + devices;
      continue;
    }
    const int32_t last = part.first_rank + part.num_ranks - 1;
    text += fmt::format("{}{} on {} with {}", text.empty() ? "pipeline " : ", ", part.first_rank == last ? fmt::format("rank {}", last) : fmt::format("ranks {} to {}", part.first_rank, last), devices, layers_text(part.layers));
  }
  if (c.parts.size() > 1) text += c.is_mixed_pipeline() ? " each" : ", whole replicas on each";
  return text;
}

std::string search_to_text(const SearchRequest& request, const SearchResult& result, bool explain) {
  const Candidate& best = result.best.front();
  const ParameterCount count = count_parameters(request.model);
  std::string text = fmt::format("model     {:.1f} B parameters, {} layers x {} wide, {} tokens a sequence, batch {}\n", count.total / 1e9, request.model.num_layers, request.model.hidden, request.model.seq_len,
                                 request.global_batch);
  std::vector<int64_t> domains;
  for (size_t group = 0; group < request.cluster.devices.size(); ++group) domains.push_back(request.cluster.domain_size(group));
  text += fmt::format("cluster   {}, {} a domain; objective {}\n", devices_text(request.cluster), fmt::join(domains, " and "), objective_name(request.objective));
  text += fmt::format("layout    {} on {} devices\n", layout_text(best.job.layout), best.job.cluster.num_devices);
  if (const std::string fixed = request.fixed.text(); !fixed.empty()) text += fmt::format("fixed     {}\n", fixed);
  if (request.cluster.devices.size() > 1) text += fmt::format("devices   {}\n", placement_text(best));
  text += fmt::format("step      {} (90 %: {} to {}); compute {:.0f} %, bubble {:.0f} %, communication {:.0f} %\n", format_duration(best.step.seconds), format_duration(best.low_seconds),
                      format_duration(best.high_seconds), 100 * best.step.compute_seconds / best.step.seconds, 100 * best.step.bubble_seconds / best.step.seconds,
                      100 * best.step.communication_seconds / best.step.seconds);
  for (const DevicePart& part : best.parts) {
    const AcceleratorSpec& device = *part.cluster.device;
    text += fmt::format("memory    {} of {}{} on the fullest {}: weights {}, gradients {}, optimizer {}, activations {}\n", format_bytes(part.memory.total()), format_bytes(request.memory.binds(device) ? part.capacity_bytes : device.memory_bytes),
                        request.memory.binds(device) ? " (" + request.memory.text() + ")" : "", device.name,
                        format_bytes(part.memory.weights), format_bytes(part.memory.gradients), format_bytes(part.memory.optimizer), format_bytes(part.memory.activations));
  }
  if (best.mapped_bytes > 0) text += fmt::format("          {} by the exact map of its tensors; what an accelerator's kernels work in comes on top\n", format_bytes(static_cast<double>(best.mapped_bytes)));
  else if (!best.not_mapped.empty()) text += fmt::format("          no exact map: {}\n", best.not_mapped);
  if (request.total_tokens > 0)
    text += fmt::format("run       {} with goodput {:.3f}, a checkpoint every {}; money {}, {:.0f} kWh (modelled)\n", format_duration(best.run_seconds), best.goodput,
                        format_duration(best.checkpoint_interval_seconds), request.cluster.has_prices() ? money_text(best.money) : "n/a without prices", best.kwh);
  text += fmt::format("searched  {} layouts priced, {} more groups do not fit, {} cannot be faster\n", result.considered, result.pruned_by_memory, result.pruned_by_time);
  text += fmt::format("finalists {}: {} stepped through by events, {} laid out to the byte, {} more dropped by that\n", result.best.size(), result.simulated, result.mapped, result.dropped);
  if (!explain) return text;
  text += "\ntop ten\n";
  for (size_t i = 0; i < std::min<size_t>(10, result.best.size()); ++i) {
    const Candidate& c = result.best[i];
    text += fmt::format("  {:2}  {:>9}  {:>10}  {}{}\n", i + 1, format_duration(c.step.seconds), format_bytes(c.memory.total()), layout_text(c.job.layout),
                        request.cluster.devices.size() > 1 ? "; " + placement_text(c) : "");
  }
  text += "\nwhere ranks lie, the nearest first\n";
  for (const AxisSpan& span : axis_spans(best))
    text += fmt::format("  {:<9} {:5} ranks, {} devices apart: {}\n", span.axis, span.size, span.stride,
                        span.inside >= span.size ? "inside a domain" : span.inside > 1 ? fmt::format("{} inside a domain, beyond it over the network", span.inside) : "over the network");
  text += "\nwhy not\n";
  for (const FamilyVerdict& verdict : result.families) text += fmt::format("  {:<34} {}\n", verdict.family, verdict.reason);
  text += "\ntime against money\n";
  for (const Candidate& c : result.pareto)
    text += fmt::format("  {:6} devices  {:>9}  {:12.0f}  {:12.0f} kWh  {}{}\n", c.job.cluster.num_devices, format_duration(c.run_seconds), c.money, c.kwh, layout_text(c.job.layout),
                        request.cluster.devices.size() > 1 ? "; " + placement_text(c) : "");
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
