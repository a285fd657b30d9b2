// The shape of this machine as hwloc finds it: packages, cores and their hardware threads, caches, memory nodes. No limits of this process
// and no rates: machine_facts.h, machine_probe.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace orrery {

struct CacheFact {
  int level = 0;
  std::string type;  // "data", "instruction", "unified"
  int64_t bytes = 0;
  std::string shared_by;  // hardware threads, e.g. "0-1"
  bool operator==(const CacheFact&) const = default;
};

/// Memory with its own controller. One without hardware threads is an expander (CXL), another device's memory, or a tier that is slow.
struct MemoryNode {
  int index = 0;  // of the system: numa:INDEX
  int64_t bytes = 0;
  int num_threads = 0;
  bool operator==(const MemoryNode&) const = default;
};

/// Counts of 0: hwloc does not find them.
struct MachineTopology {
  int num_packages = 0, num_cores = 0, num_threads = 0;  // threads: what the kernel schedules on, several a core with SMT
  std::vector<CacheFact> caches;                         // of the first hardware thread that this process may use, nearest first
  std::vector<MemoryNode> memory_nodes;
  int threads_per_core() const { return num_cores > 0 ? num_threads / num_cores : 1; }
  /// Nodes with hardware threads, at least 1.
  int num_compute_nodes() const;
  bool operator==(const MachineTopology&) const = default;
};

/// Of this machine; asked once. A few ms.
const MachineTopology& machine_topology();

/// Of a machine that is only described, for tests: hwloc's "pack:2 numa:1 l3:1 core:4 pu:2".
/// Errors: kInvalidArgument when hwloc does not take the description.
MachineTopology described_topology(const std::string& description);

}  // namespace orrery
