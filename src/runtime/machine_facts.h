// What this machine says about itself without measuring: its shape (machine_topology.h), cores this process may use, memory and its limits,
// read from the kernel's files. The rates are in machine_probe.h.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/machine_topology.h"

namespace orrery {

struct MachineFacts {
  std::string cpu_model;
  std::string isa;                // "avx2 avx512 avx512_bf16 amx_bf16 amx_int8"
  int online_cores = 0;           // of the machine
  int affinity_cores = 0;         // this process may be scheduled on
  double cgroup_cores = 0;        // quota of the control group; 0: none
  int usable_cores = 0;           // what a thread pool should have: the least of these, at least 1
  MachineTopology topology;
  int64_t memory_total_bytes = 0;
  int64_t memory_available_bytes = 0;
  int64_t cgroup_memory_bytes = 0;  // limit; 0: none
  int64_t open_files_max = 0;
  std::string energy_source;  // "powercap" or "n/a: why"
  std::string software;       // "orrery 0.1.0 on Linux 6.1.0-18": what rates depend on beside the machine
  bool operator==(const MachineFacts&) const = default;
};

MachineFacts machine_facts();

/// Threads that a computation here should use: MachineFacts::usable_cores.
int usable_cores();

/// Equal for two starts of the same software on the same kind of machine with the same share of it: what kept measurements are valid for.
/// "processor: ... | isa: ... | cores: 2 of 2 | caches: ... | software: ...".
std::string machine_fingerprint(const MachineFacts& facts);
/// What differs between the fingerprint of something kept and this machine's: "processor: A where it was measured, B here; cores: ...".
/// Empty where they are equal.
std::string fingerprint_difference(const std::string& kept, const std::string& here);

/// The least limit on the way from `group` up to the root, in the files of one controller: "max", an absurdly large number or a
/// missing file is no limit (0). Public for its test.
int64_t least_cgroup_limit(const std::string& mount, const std::string& group, const std::string& file_name);

}  // namespace orrery
