#include "planner/search_refusal.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/units.h"

namespace orrery {
namespace {

/// What would divide: sizes, a batch for these devices, devices for this batch.
std::string what_divides(const SearchRequest& request, const LayoutSpace& space) {
  const FixedLayout& fixed = request.fixed;
  const ModelShape& m = request.model;
  if (fixed.tp > 0 && !space.cuts_matrices(fixed.tp)) {
    std::vector<int64_t> valid;
    for (const int64_t tp : divisors(static_cast<int64_t>(m.num_heads), static_cast<int64_t>(m.num_heads)))
      if (space.cuts_matrices(tp)) valid.push_back(tp);
    return fmt::format("tensor_parallel_size = {} does not cut heads, kv heads and the {} columns of the MLP alike; use one of {}", fixed.tp, m.ffn_hidden, fmt::join(valid, ", "));
  }
  if (fixed.pp > static_cast<int64_t>(m.num_layers)) return fmt::format("pipeline_parallel_size = {} is more than the layers; use at most {}", fixed.pp, m.num_layers);
  if (fixed.cp > 1 && static_cast<int64_t>(m.seq_len) % (2 * fixed.cp) != 0) return fmt::format("context_parallel_size = {} does not cut a sequence into {} chunks; use a seq_len that is a multiple of that", fixed.cp, 2 * fixed.cp);
  if (fixed.cp > 1 && fixed.context_method == ContextMethod::kUlysses) {
    const int64_t tp = std::max<int64_t>(1, fixed.tp);
    if (!space.cuts_heads(tp, fixed.cp)) {
      std::vector<int64_t> valid;
      for (const int64_t cp : divisors(static_cast<int64_t>(m.num_heads) / tp, static_cast<int64_t>(m.num_heads)))
        if (cp > 1 && space.cuts_heads(tp, cp)) valid.push_back(cp);
      return fmt::format("context_method = \"ulysses\" exchanges tokens for heads, and context_parallel_size = {} does not divide the heads and kv heads of a rank; use {}context_method = \"ring\"", fixed.cp,
                         valid.empty() ? "" : fmt::format("one of {}, or ", fmt::join(valid, ", ")));
    }
  }
  if (fixed.dp > 0 && std::fmod(request.global_batch, static_cast<double>(fixed.dp)) != 0) return fmt::format("data_parallel_size = {} does not divide the batch; use a batch that is a multiple of it", fixed.dp);
  if (request.cluster.devices.size() > 1) return "a batch that is a multiple of the devices of each kind, or of a large part of them, helps";
  const DevicesSection& hosts = request.cluster.devices.front();
  std::vector<std::string> ways;
  int64_t least = 0;
  space.any_model_degrees(hosts.count, [&](int64_t dp) {
    if (space.takes_replicas(dp) || fixed.dp == 0) least = least == 0 ? dp : std::min(least, dp);
    return false;
  });
  if (least > 0) ways.push_back(fmt::format("a global_batch_size that is a multiple of {}", least));
  for (int64_t n = hosts.count - hosts.per_node; n > 0; n -= hosts.per_node)
    if (space.any_model_degrees(n, [&](int64_t dp) { return space.takes_replicas(dp); })) {
      ways.push_back(fmt::format("{} of the devices", n));
      break;
    }
  if (ways.empty()) return fixed.text().empty() ? "another number of devices would do" : "leave some of these sizes out, or use another number of devices";
  return fmt::format("use {}", fmt::join(ways, ", or "));
}

size_t roomiest_group(const SearchResult& result) {
  const auto most = std::max_element(result.capacity_bytes.begin(), result.capacity_bytes.end());
  return static_cast<size_t>(most - result.capacity_bytes.begin());
}

/// The fewest devices of the group in whole hosts that some layout fits on: twice as many until one does, then by halves between. 0: none.
int64_t smallest_that_fits(const SearchRequest& request, size_t group) {
  SearchRequest more = request;
  more.objective = Objective::kTime, more.limits = {};
  DevicesSection& devices = more.cluster.devices[group];
  const auto fits_on = [&](int64_t hosts) {
    devices.count = hosts * devices.per_node;
    return some_layout_fits(more);
  };
  constexpr int kDoublings = 20;
  int64_t low = std::max<int64_t>(1, devices.count / devices.per_node), high = low;
  for (int i = 0; i < kDoublings; ++i, low = high)
    if (fits_on(high *= 2)) {
      while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        (fits_on(middle) ? high : low) = middle;
      }
      return high * devices.per_node;
    }
  return 0;
}

/// What was wanted, what the layouts that fit take, and what would do. Time is mended by devices, money and energy are not.
std::string limits_text(const SearchRequest& request, const SearchMisses& misses, const std::string& where) {
  const RunLimits& limits = request.limits;
  std::vector<std::string> wanted, best, needs;
  // A limit, the layout that has least of it, and what else that takes.
  const auto limit = [&](double most, double least, std::string text, std::string_view need) {
    if (most == 0) return;
    wanted.push_back(std::move(text));
    if (least > most) needs.emplace_back(need);
  };
  limit(limits.seconds, misses.fastest.seconds, "a deadline of " + format_duration(limits.seconds), "more time or more devices");
  limit(limits.money, misses.cheapest.money, "a budget of " + money_text(limits.money), "more money or cheaper devices");
  limit(limits.kwh, misses.thriftiest.kwh, fmt::format("{:.3g} kWh of energy", limits.kwh), "more energy or thriftier devices");
  const bool only_together = needs.empty();  // each is met by some layout
  if (only_together) needs.emplace_back("more of one of them");
  const auto run = [&](std::string_view which, const SearchMisses::Run& taken) {
    std::string text = fmt::format("the {} layout takes {}", which, format_duration(taken.seconds));
    if (request.cluster.has_prices()) text += " and costs " + money_text(taken.money);
    return limits.kwh > 0 ? text + fmt::format(" and {:.3g} kWh", taken.kwh) : text;
  };
  best.push_back(run("fastest", misses.fastest));
  if (request.cluster.has_prices()) best.push_back(run("cheapest", misses.cheapest));
  if (limits.kwh > 0) best.push_back(run("thriftiest", misses.thriftiest));
  return fmt::format("no layout meets {}{}: on {} {}; the run needs {}, or fewer tokens", fmt::join(wanted, " and "), only_together ? " together" : "", where, fmt::join(best, ", "),
                     fmt::join(needs, ", and "));
}

}  // namespace

void refuse_search(const SearchRequest& request, const SearchResult& result, const LayoutSpace& space, const SearchMisses& misses) {
  const std::string devices = devices_text(request.cluster);
  const std::string fixed = request.fixed.text();
  const std::string where = fixed.empty() ? devices : devices + " with " + fixed;
  if (misses.any_fits)
    throw Error(ErrorCode::kInvalidConfig, "{}", limits_text(request, misses, where));
  if (misses.ends_never)
    throw Error(ErrorCode::kInvalidConfig, "no run ends: {} have a fault every {}, and failures.restart_seconds = {} with reading a checkpoint back leave {:.2g} of the time for work; "
                "fewer devices, a larger failures.device_mtbf_hours, a faster restart or faster tiers.storage_gbytes_per_second would do",
                where, format_duration(request.cluster.failures.device_mtbf_hours * 3600 / static_cast<double>(request.cluster.num_devices())), request.cluster.failures.restart_seconds, misses.best_goodput);
  if (std::isfinite(misses.least_missing_bytes)) {
    const size_t grown = roomiest_group(result);
    const int64_t count = smallest_that_fits(request, grown);
    const bool several = result.devices.size() > 1;
    const std::string name(result.devices[grown].name);
    const std::string& limit = result.memory_limit;
    throw Error(ErrorCode::kInvalidConfig, "the model does not fit: {:.1f} B parameters need {} more than the fullest of {} has for tensors ({}{}{}); {}{}", count_parameters(request.model).total / 1e9, format_bytes(misses.least_missing_bytes),
                where, several ? "at most " : "", format_bytes(std::max(0.0, result.capacity_bytes[grown])), limit.empty() ? "" : ", " + limit, limit.empty() ? "" : "raise budget.memory, or: ",
                count == 0  ? fmt::format("no number of {} that global_batch_size = {} can use would hold it: more sequences, shorter ones, {}or devices with more memory", several ? name : "them", request.global_batch,
                                          fixed.empty() ? "" : "fewer fixed sizes, ")
                : several   ? fmt::format("the smallest cluster with more {} that would hold it has of them {}", name, count)
                            : fmt::format("the smallest cluster of them that would hold it has {}", count));
  }
  throw Error(ErrorCode::kInvalidConfig, "no layout divides global_batch_size = {} over {}: {} heads ({} kv), {} layers, {} tokens a sequence; {}", request.global_batch, where, request.model.num_heads,
              request.model.num_kv_heads > 0 ? request.model.num_kv_heads : request.model.num_heads, request.model.num_layers, request.model.seq_len, what_divides(request, space));
}

}  // namespace orrery
