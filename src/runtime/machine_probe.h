// The rates of this machine, measured: memory, matrix products, disk. Predictions and the "share of peak" of the live line are
// relative to them. Takes a few seconds; the result is cached per machine in the user's cache directory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/machine_facts.h"

namespace orrery {

/// y = x weight^T with x [rows, depth], weight [columns, depth], through the kernel that training uses.
struct GemmRate {
  std::string dtype;  // "bf16", "f32"
  int64_t rows = 0, columns = 0, depth = 0;
  double flops_per_second = 0;
  bool operator==(const GemmRate&) const = default;
};

/// A rate of 0 means not measured; `notes` says why.
struct MachineProbe {
  MachineFacts facts;
  double memory_read_bytes_per_second = 0;  // all usable cores reading far more than the last cache holds
  double memory_copy_bytes_per_second = 0;  // bytes read plus bytes written
  double gemm_bf16_flops_per_second = 0;    // kLinear, T = 512, K = N = 2048, the arithmetic that is native here
  double gemm_f32_flops_per_second = 0;
  std::vector<GemmRate> gemm_shapes;       // thin and wide products of small and middle models
  double core_share = 0;                   // of the cores' time, what its threads got in those products: less than 1 beside other work
  double busy_watts = 0;                   // of the processor packages, in those products; 0 where nobody counts
  double link_bytes_per_second = 0;        // between two ranks as threads, one direction, both busy: 16 MiB messages
  double link_latency_seconds = 0;         // half of a round trip of 8 bytes
  double disk_write_bytes_per_second = 0;  // 64 MiB written and synced
  double fsync_seconds = 0;                // median of 4 KiB writes
  std::string disk_folder;
  std::string notes;
  bool operator==(const MachineProbe&) const = default;
};

/// Whether other work took so much of the cores that the rates are low, and what is relative to them looks better than it is.
bool measured_beside_other_work(const MachineProbe& probe);

struct ProbeOptions {
  std::string disk_folder = ".";  // empty: no disk measurement
  int num_threads = 0;            // 0: usable_cores
};

/// Errors: kIo when the disk folder cannot be written; kOutOfMemory.
MachineProbe measure_machine(const ProbeOptions& options);

std::string probe_to_json(const MachineProbe& probe);
/// None when the text is not a probe of this version.
std::optional<MachineProbe> probe_from_json(const std::string& text);

/// $XDG_CACHE_HOME/orrery/probe.json, or ~/.cache/orrery/probe.json; empty without a home.
std::string probe_cache_path();
/// The probe that is kept, when it was made on this machine by this program and is complete.
struct KeptProbe {
  std::optional<MachineProbe> probe;
  std::string not_used;  // why the one that is kept is not used; empty where it is, or where there is none
};
KeptProbe kept_probe();
/// Replaces the cached probe, atomically. Returns false when it cannot be written: a cache is a convenience.
bool store_probe(const MachineProbe& probe);

}  // namespace orrery
