#include "runtime/machine_facts.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

#include "base/cpu_features.h"
#include "base/version.h"
#include "runtime/arena.h"
#include "runtime/energy_counter.h"

namespace orrery {
namespace {

// cgroup v1 writes a number near 2^63 for "no limit".
constexpr int64_t kNoLimit = int64_t{1} << 60;
constexpr std::string_view kSeparator = " | ";  // of a fingerprint's items

std::string read_first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::optional<int64_t> read_integer(const std::string& path) {
  const std::string text = read_first_line(path);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc()) return std::nullopt;
  return value;
}

/// This process's group: of a v1 controller, or of the v2 hierarchy for an empty name.
std::string own_group(const std::string& controller) {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool found = controller.empty() ? controllers == ",," : controllers.find("," + controller + ",") != std::string::npos;
    if (found) return line.substr(second + 1);
  }
  return "/";
}

/// Calls visit(folder) for the group and each of its parents up to the mount. Inside a container the path of the outside may
/// not exist: the mount itself is then the group.
template <typename Visit>
void visit_groups(const std::string& mount, std::string group, Visit&& visit) {
  for (;;) {
    visit(mount + (group == "/" ? "" : group));
    if (group.empty() || group == "/") return;
    const size_t slash = group.rfind('/');
    group = slash == std::string::npos || slash == 0 ? "/" : group.substr(0, slash);
  }
}

double cgroup_cores() {
  double least = 0;
  const auto add = [&](double quota, double period) {
    if (quota > 0 && period > 0 && (least == 0 || quota / period < least)) least = quota / period;
  };
  visit_groups("/sys/fs/cgroup", own_group(""), [&](const std::string& folder) {
    std::istringstream text(read_first_line(folder + "/cpu.max"));
    std::string quota;
    double period = 0;
    if (text >> quota >> period && quota != "max") add(std::atof(quota.c_str()), period);
  });
  visit_groups("/sys/fs/cgroup/cpu", own_group("cpu"), [&](const std::string& folder) {
    add(static_cast<double>(read_integer(folder + "/cpu.cfs_quota_us").value_or(0)),
        static_cast<double>(read_integer(folder + "/cpu.cfs_period_us").value_or(0)));
  });
  return least;
}

int64_t cgroup_memory() {
  const int64_t v2 = least_cgroup_limit("/sys/fs/cgroup", own_group(""), "memory.max");
  const int64_t v1 = least_cgroup_limit("/sys/fs/cgroup/memory", own_group("memory"), "memory.limit_in_bytes");
  return v2 == 0 ? v1 : v1 == 0 ? v2 : std::min(v1, v2);
}

int64_t memory_total() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  int64_t kib = 0;
  while (file >> name >> kib) {
    if (name == "MemTotal:") return kib * 1024;
    file.ignore(256, '\n');
  }
  return 0;
}

std::string software() {
  utsname system{};
  ::uname(&system);
  return fmt::format("orrery {} on {} {}", program_version(), system.sysname, system.release);
}

// "l1 data 32 KiB, l2 unified 1024 KiB": what products are blocked for.
std::string cache_list(const MachineTopology& topology) {
  std::string text;
  for (const CacheFact& cache : topology.caches) text += fmt::format("{}L{} {} {} KiB of {}", text.empty() ? "" : ", ", cache.level, cache.type, cache.bytes >> 10, cache.shared_by);
  return text.empty() ? "not listed" : text;
}

std::vector<std::pair<std::string, std::string>> items_of(const std::string& fingerprint) {
  std::vector<std::pair<std::string, std::string>> items;
  for (size_t begin = 0; begin <= fingerprint.size();) {
    const size_t end = std::min(fingerprint.find(kSeparator, begin), fingerprint.size());
    const std::string item = fingerprint.substr(begin, end - begin);
    const size_t colon = item.find(": ");
    items.emplace_back(item.substr(0, std::min(colon, item.size())), colon == std::string::npos ? "" : item.substr(colon + 2));
    begin = end + kSeparator.size();
  }
  return items;
}

std::string isa_list() {
  const CpuFeatures& features = cpu_features();
  std::string text;
  const auto add = [&](bool present, const char* name) {
    if (present) text += (text.empty() ? "" : " ") + std::string(name);
  };
  add(features.avx2, "avx2");
  add(features.avx512, "avx512");
  add(features.avx512_bf16, "avx512_bf16");
  add(features.amx_bf16, "amx_bf16");
  add(features.amx_int8, "amx_int8");
  return text;
}

}  // namespace

int64_t least_cgroup_limit(const std::string& mount, const std::string& group, const std::string& file_name) {
  int64_t least = 0;
  visit_groups(mount, group, [&](const std::string& folder) {
    const auto limit = read_integer(folder + "/" + file_name);
    if (limit && *limit > 0 && *limit < kNoLimit && (least == 0 || *limit < least)) least = *limit;
  });
  return least;
}

MachineFacts machine_facts() {
  MachineFacts facts;
  facts.cpu_model = cpu_features().model_name;
  facts.isa = isa_list();
  facts.online_cores = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
  facts.affinity_cores = facts.online_cores;
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) == 0) facts.affinity_cores = CPU_COUNT(&allowed);
  facts.cgroup_cores = cgroup_cores();
  facts.usable_cores = facts.affinity_cores;
  // A quota of 2.5 cores runs two threads at full speed; a third would stall the other two at every barrier.
  if (facts.cgroup_cores > 0) facts.usable_cores = std::min(facts.usable_cores, static_cast<int>(facts.cgroup_cores));
  facts.usable_cores = std::max(1, facts.usable_cores);
  facts.topology = machine_topology();
  facts.memory_total_bytes = memory_total();
  facts.memory_available_bytes = available_memory_bytes();
  facts.cgroup_memory_bytes = cgroup_memory();
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) facts.open_files_max = static_cast<int64_t>(files.rlim_cur);
  facts.energy_source = EnergyCounter().source();
  facts.software = software();
  return facts;
}

int usable_cores() {
  static const int count = machine_facts().usable_cores;
  return count;
}

std::string machine_fingerprint(const MachineFacts& facts) {
  // Not how much memory there is: no rate depends on it, and a virtual machine's changes while it runs.
  return fmt::format("processor: {}{}isa: {}{}cores: {} of {}{}caches: {}{}software: {}", facts.cpu_model, kSeparator, facts.isa, kSeparator, facts.usable_cores, facts.online_cores, kSeparator,
                     cache_list(facts.topology), kSeparator, facts.software);
}

std::string fingerprint_difference(const std::string& kept, const std::string& here) {
  if (kept == here) return {};
  const auto was = items_of(kept), is = items_of(here);
  std::string text;
  for (const auto& [name, value] : is) {
    const auto old = std::find_if(was.begin(), was.end(), [&, wanted = name](const auto& item) { return item.first == wanted; });
    if (old == was.end()) return "it was measured by an older version of this program";
    if (old->second != value) text += fmt::format("{}{}: {} where it was measured, {} here", text.empty() ? "" : "; ", name, old->second, value);
  }
  return text.empty() ? "it was measured by another version of this program" : text;
}

}  // namespace orrery
