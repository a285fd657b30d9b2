// `orrery probe`: what this machine is and how fast, measured; predictions and the share of peak in the live line use it.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "base/units.h"
#include "runtime/machine_probe.h"
#include "tools/commands.h"

namespace orrery {
namespace {

struct Options {
  bool json = false, fresh = false;
  std::string folder = ".";
};

std::string rate_or_na(double rate, std::string_view unit) { return rate > 0 ? format_rate(rate, unit) : "n/a"; }

std::string cache_text(const MachineFacts& facts) {
  std::string text;
  for (const CacheFact& cache : facts.topology.caches) {
    if (cache.type == "instruction") continue;
    text += fmt::format("{}L{} {}", text.empty() ? "" : ", ", cache.level, format_bytes(static_cast<double>(cache.bytes)));
  }
  return text.empty() ? "caches not listed by the kernel" : text;
}

std::string core_text(const MachineFacts& facts) {
  std::string text = fmt::format("{} usable", facts.usable_cores);
  if (facts.usable_cores != facts.online_cores) text += fmt::format(" of {}", facts.online_cores);
  if (facts.affinity_cores != facts.online_cores) text += fmt::format(", affinity {}", facts.affinity_cores);
  if (facts.cgroup_cores > 0) text += fmt::format(", control group quota {:g}", facts.cgroup_cores);
  return text;
}

std::string shape_text(const MachineTopology& topology) {
  std::string text = fmt::format("packages: {}   cores: {}   threads: {}   memory nodes:", topology.num_packages, topology.num_cores, topology.num_threads);
  for (const MemoryNode& node : topology.memory_nodes)
    text += fmt::format(" {} ({}, {})", node.index, format_bytes(static_cast<double>(node.bytes)), node.num_threads > 0 ? fmt::format("{} threads", node.num_threads) : "no cores: an expander or another device's");
  return text;
}

void print_probe(const MachineProbe& probe) {
  const MachineFacts& facts = probe.facts;
  fmt::print("cpu     {}\n        {}\n        threads: {}   {}\n        {}\n", facts.cpu_model, shape_text(facts.topology), core_text(facts), cache_text(facts),
             facts.isa);
  fmt::print("memory  {}, {} available{}   read {}   copy {}\n", format_bytes(static_cast<double>(facts.memory_total_bytes)),
             format_bytes(static_cast<double>(facts.memory_available_bytes)),
             facts.cgroup_memory_bytes > 0
                 ? fmt::format(", control group limit {}", format_bytes(static_cast<double>(facts.cgroup_memory_bytes)))
                 : "",
             rate_or_na(probe.memory_read_bytes_per_second, "B/s"), rate_or_na(probe.memory_copy_bytes_per_second, "B/s"));
  fmt::print("gemm    bf16 {}   f32 {}\n", rate_or_na(probe.gemm_bf16_flops_per_second, "FLOP/s"),
             rate_or_na(probe.gemm_f32_flops_per_second, "FLOP/s"));
  for (const GemmRate& rate : probe.gemm_shapes)
    fmt::print("        {} {} x {} x {}   {}\n", rate.dtype, rate.rows, rate.columns, rate.depth, format_rate(rate.flops_per_second, "FLOP/s"));
  fmt::print("links   between two ranks as threads {}   latency {}\n", rate_or_na(probe.link_bytes_per_second, "B/s"),
             probe.link_latency_seconds > 0 ? fmt::format("{:.1f} us", probe.link_latency_seconds * 1e6) : "n/a");
  if (!probe.disk_folder.empty()) {
    fmt::print("disk    {}   write and sync {}   fsync {:.2f} ms\n", probe.disk_folder,
               rate_or_na(probe.disk_write_bytes_per_second, "B/s"), probe.fsync_seconds * 1e3);
  }
  fmt::print("energy  {}{}\n", facts.energy_source, probe.busy_watts > 0 ? fmt::format(", {:.0f} W of the processor in products", probe.busy_watts) : "");
  if (!probe.notes.empty()) fmt::print("note    {}\n", probe.notes);
}

int run_probe(const Options& options) {
  KeptProbe kept = options.fresh ? KeptProbe{} : kept_probe();
  if (!kept.not_used.empty()) fmt::print(stderr, "{} is not used: {}; measuring again\n", probe_cache_path(), kept.not_used);
  std::optional<MachineProbe> probe = std::move(kept.probe);
  const bool cached = probe.has_value() && !measured_beside_other_work(*probe);
  if (cached) {
    probe->facts = machine_facts();  // what is available now
  } else {
    if (probe) fmt::print(stderr, "the rates of {} were measured beside other work; measuring again\n", probe_cache_path());
    probe = measure_machine({.disk_folder = options.folder});
    if (store_probe(*probe))
      fmt::print(stderr, "wrote {}\n", probe_cache_path());
    else
      fmt::print(stderr, "the result could not be cached in {}\n",
                 probe_cache_path().empty() ? "~/.cache (no HOME)" : probe_cache_path());
  }
  if (cached) fmt::print(stderr, "rates from {}; measure again with --fresh\n", probe_cache_path());
  if (options.json)
    fmt::print("{}", probe_to_json(*probe));
  else
    print_probe(*probe);
  return 0;
}

}  // namespace

void add_probe_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("probe", "measure this machine: cores, memory, matrix products by shape, links between ranks, disk");
  command->add_flag("--json", options->json, "print JSON");
  command->add_flag("--fresh", options->fresh, "measure again, even when a result for this machine is cached");
  command->add_option("--dir", options->folder, "the folder whose disk is measured (64 MiB are written and removed)")
      ->capture_default_str();
  command->footer("Examples:\n  orrery probe\n  orrery probe --fresh --dir runs --json\n");
  command->callback([options, &exit_code] { exit_code = run_probe(*options); });
}

}  // namespace orrery
