#include "runtime/machine_topology.h"

#include <hwloc.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <tuple>
#include <type_traits>

#include "base/error.h"

namespace orrery {
namespace {

struct DestroyTopology {
  void operator()(hwloc_topology_t topology) const { hwloc_topology_destroy(topology); }
};
using Topology = std::unique_ptr<std::remove_pointer_t<hwloc_topology_t>, DestroyTopology>;

int count_of(hwloc_topology_t topology, hwloc_obj_type_t type) { return std::max(0, hwloc_get_nbobjs_by_type(topology, type)); }

std::string list_text(hwloc_const_bitmap_t set) {
  std::array<char, 256> text{};
  hwloc_bitmap_list_snprintf(text.data(), text.size(), set);
  return text.data();
}

std::string cache_type(hwloc_obj_cache_type_t type) { return type == HWLOC_OBJ_CACHE_DATA ? "data" : type == HWLOC_OBJ_CACHE_INSTRUCTION ? "instruction" : "unified"; }

MachineTopology read(hwloc_topology_t topology, unsigned first_thread) {
  MachineTopology result;
  result.num_packages = count_of(topology, HWLOC_OBJ_PACKAGE), result.num_cores = count_of(topology, HWLOC_OBJ_CORE), result.num_threads = count_of(topology, HWLOC_OBJ_PU);
  for (hwloc_obj_t object = hwloc_get_pu_obj_by_os_index(topology, first_thread); object != nullptr; object = object->parent)
    if (hwloc_obj_type_is_cache(object->type))
      result.caches.push_back({static_cast<int>(object->attr->cache.depth), cache_type(object->attr->cache.type), static_cast<int64_t>(object->attr->cache.size), list_text(object->cpuset)});
  // hwloc has a cache of instructions below or above the one of data; the kernel lists data first.
  std::stable_sort(result.caches.begin(), result.caches.end(), [](const CacheFact& a, const CacheFact& b) { return std::tuple(a.level, a.type) < std::tuple(b.level, b.type); });
  for (hwloc_obj_t node = nullptr; (node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node)) != nullptr;)
    result.memory_nodes.push_back({static_cast<int>(node->os_index), static_cast<int64_t>(node->attr->numanode.local_memory), std::max(0, hwloc_bitmap_weight(node->cpuset))});
  return result;
}

// Null: hwloc cannot.
Topology load(const char* description) {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return {};
  Topology topology(raw);
  hwloc_topology_set_icache_types_filter(raw, HWLOC_TYPE_FILTER_KEEP_ALL);
  if (description != nullptr && hwloc_topology_set_synthetic(raw, description) != 0) return {};
  if (hwloc_topology_load(raw) != 0) return {};
  return topology;
}

unsigned first_usable_thread() {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return 0;
  unsigned thread = 0;
  while (thread + 1 < CPU_SETSIZE && !CPU_ISSET(thread, &allowed)) ++thread;
  return thread;
}

}  // namespace

int MachineTopology::num_compute_nodes() const {
  return std::max(1, static_cast<int>(std::count_if(memory_nodes.begin(), memory_nodes.end(), [](const MemoryNode& node) { return node.num_threads > 0; })));
}

const MachineTopology& machine_topology() {
  static const MachineTopology topology = [] {
    const Topology loaded = load(nullptr);
    MachineTopology result = loaded ? read(loaded.get(), first_usable_thread()) : MachineTopology{};
    // Where /sys is not to be seen, in a bare container, hwloc does not know how much memory its one node has.
    if (result.memory_nodes.size() == 1 && result.memory_nodes[0].bytes == 0)
      result.memory_nodes[0].bytes = static_cast<int64_t>(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGESIZE);
    return result;
  }();
  return topology;
}

MachineTopology described_topology(const std::string& description) {
  const Topology loaded = load(description.c_str());
  if (!loaded) throw Error(ErrorCode::kInvalidArgument, "hwloc takes no machine described as \"{}\"", description);
  return read(loaded.get(), 0);
}

}  // namespace orrery
