// What this machine says about itself, read from the kernel's files without measuring: cores this process may use, caches,
// memory and its limits. The rates are in machine_probe.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace orrery {

struct CacheFact {
  int level = 0;
  std::string type;  // "data", "instruction", "unified"
  int64_t bytes = 0;
  std::string shared_by;  // core list, e.g. "0-1"
  bool operator==(const CacheFact&) const = default;
};

struct MachineFacts {
  std::string cpu_model;
  std::string isa;                // "avx2 avx512 avx512_bf16 amx_bf16 amx_int8"
  int online_cores = 0;           // of the machine
  int affinity_cores = 0;         // this process may be scheduled on
  double cgroup_cores = 0;        // quota of the control group; 0: none
  int usable_cores = 0;           // what a thread pool should have: the least of these, at least 1
  std::vector<CacheFact> caches;  // of the first usable core
  int64_t memory_total_bytes = 0;
  int64_t memory_available_bytes = 0;
  int64_t cgroup_memory_bytes = 0;  // limit; 0: none
  int64_t open_files_max = 0;
  std::string energy_source;  // "powercap" or "n/a: why"
  bool operator==(const MachineFacts&) const = default;
};

MachineFacts machine_facts();

/// Threads that a computation here should use: MachineFacts::usable_cores.
int usable_cores();

/// Equal for two starts on the same kind of machine with the same share of it: what a cached probe is valid for.
std::string machine_fingerprint(const MachineFacts& facts);

/// The least limit on the way from `group` up to the root, in the files of one controller: "max", an absurdly large number or a
/// missing file is no limit (0). Public for its test.
int64_t least_cgroup_limit(const std::string& mount, const std::string& group, const std::string& file_name);

}  // namespace orrery
