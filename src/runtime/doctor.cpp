#include "runtime/doctor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/cpu_features.h"
#include "base/units.h"
#include "runtime/machine_probe.h"

namespace orrery {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kGiB = int64_t{1} << 30, kMiB = int64_t{1} << 20;
constexpr long kTmpfsMagic = 0x01021994;

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

int64_t number_in(const std::string& path) {
  const std::string text = first_line(path);
  return text.empty() ? -1 : std::atoll(text.c_str());
}

// "always [madvise] never": the word in brackets.
std::string chosen_word(const std::string& line) {
  const size_t open = line.find('['), close = line.find(']');
  return open == std::string::npos || close == std::string::npos ? "" : line.substr(open + 1, close - open - 1);
}

int64_t meminfo(const std::string& wanted) {
  std::ifstream file("/proc/meminfo");
  std::string name;
  int64_t kib = 0;
  while (file >> name >> kib) {
    if (name == wanted) return kib * 1024;
    file.ignore(256, '\n');
  }
  return -1;
}

int64_t limit_of(int resource) {
  rlimit limit{};
  if (::getrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) return -1;
  return limit.rlim_cur == RLIM_INFINITY ? std::numeric_limits<int64_t>::max() : static_cast<int64_t>(limit.rlim_cur);
}

double timed_fsync(const std::string& folder) {
  std::string path = folder + "/.orrery_doctor_XXXXXX";
  const int file = ::mkostemp(path.data(), O_CLOEXEC);
  if (file < 0) return -1;
  ::unlink(path.c_str());
  const std::vector<char> block(4096, 'o');
  const auto begin = std::chrono::steady_clock::now();
  const bool done = ::write(file, block.data(), block.size()) == static_cast<ssize_t>(block.size()) && ::fsync(file) == 0;
  ::close(file);
  return done ? std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() : -1;
}

std::string bytes_text(int64_t bytes) { return format_bytes(static_cast<double>(bytes)); }

}  // namespace

std::string_view severity_name(Severity severity) {
  switch (severity) {
    case Severity::kGood: return "good";
    case Severity::kNote: return "note";
    case Severity::kWarning: return "warning";
    case Severity::kError: return "error";
  }
  return "?";
}

DoctorFacts doctor_facts(const std::string& folder) {
  DoctorFacts facts;
  facts.machine = machine_facts();
  facts.avx2 = cpu_features().avx2;
  facts.huge_pages = chosen_word(first_line("/sys/kernel/mm/transparent_hugepage/enabled"));
  facts.governor = first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
  facts.swap_total_bytes = meminfo("SwapTotal:");
  if (facts.swap_total_bytes >= 0) facts.swap_used_bytes = facts.swap_total_bytes - std::max<int64_t>(0, meminfo("SwapFree:"));
  facts.swappiness = number_in("/proc/sys/vm/swappiness");
  double load = 0;
  if (::getloadavg(&load, 1) == 1) facts.load = load;
  facts.numa_balancing = first_line("/proc/sys/kernel/numa_balancing");
  facts.clock_source = first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource");
  struct statfs shm {};
  if (::statfs("/dev/shm", &shm) == 0) facts.shm_bytes = static_cast<int64_t>(shm.f_blocks) * static_cast<int64_t>(shm.f_bsize);
  facts.locked_memory_max = limit_of(RLIMIT_MEMLOCK);
  facts.core_file_max = limit_of(RLIMIT_CORE);
  facts.disk_folder = fs::absolute(folder).lexically_normal().string();
  struct statfs disk {};
  if (::statfs(folder.c_str(), &disk) == 0) {
    facts.disk_free_bytes = static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_bsize);
    facts.disk_is_memory = disk.f_type == kTmpfsMagic;
    facts.fsync_seconds = timed_fsync(folder);
  }
  const KeptProbe kept = kept_probe();
  facts.probe_not_used = kept.not_used;
  if (kept.probe) {
    std::error_code error;
    const auto written = fs::last_write_time(probe_cache_path(), error);
    if (!error) facts.probe_age_seconds = std::chrono::duration_cast<std::chrono::seconds>(fs::file_time_type::clock::now() - written).count();
  }
  return facts;
}

std::vector<Finding> diagnose(const DoctorFacts& f, const DoctorJob& job) {
  std::vector<Finding> findings;
  const auto add = [&](Severity severity, std::string subject, std::string found, std::string fix = "") { findings.push_back({severity, std::move(subject), std::move(found), std::move(fix)}); };
  using enum Severity;
  const MachineFacts& m = f.machine;

  if (!f.avx2) add(kError, "processor", fmt::format("{} has no AVX2 with FMA, which Orrery's kernels need", m.cpu_model), "use a processor of 2013 or later; in a virtual machine pass the host's processor through (-cpu host)");
  else if (m.isa.find("avx512") == std::string::npos) add(kNote, "processor", "no AVX-512: the AVX2 kernels run", "in a virtual machine, check that the host's processor is passed through (-cpu host)");
  else add(kGood, "processor", m.isa);

  if (m.cgroup_cores > 0 && m.cgroup_cores != static_cast<double>(m.usable_cores))
    add(kWarning, "core quota", fmt::format("the control group allows {:g} cores: {} threads are used, and the rest of the quota is lost", m.cgroup_cores, m.usable_cores), "give a whole number of cores (cpu.max, docker --cpus, Kubernetes limits.cpu)");
  if (m.affinity_cores < m.online_cores && m.cgroup_cores == 0)
    add(kNote, "affinity", fmt::format("this process may run on {} of {} cores", m.affinity_cores, m.online_cores), "start without taskset or numactl, or ask the job scheduler for more cores, if the others are free");
  if (const int threads_per_core = m.topology.threads_per_core(); threads_per_core > 1)
    add(kNote, "hardware threads", fmt::format("{} threads share a core: matrix products gain little from the second", threads_per_core), fmt::format("compare --threads {} with the default of {}", std::max(1, m.usable_cores / threads_per_core), m.usable_cores));
  // A third of a core is the noise of a desktop.
  if (f.load > 0.33 * m.usable_cores && f.load > 0.5)
    add(kWarning, "load", fmt::format("other work is running (load {:.1f} on {} cores): steps take longer than predicted, and a probe reads low", f.load, m.usable_cores), "wait for it, stop it, or give it fewer cores than it takes");
  else if (f.load >= 0) add(kGood, "load", fmt::format("{:.1f}", f.load));

  if (f.governor == "powersave" || f.governor == "conservative")
    add(kWarning, "frequency", fmt::format("the governor is {}", f.governor), "cpupower frequency-set -g performance (as root)");
  else if (!f.governor.empty()) add(kGood, "frequency", f.governor);
  if (f.clock_source == "hpet" || f.clock_source == "acpi_pm")
    add(kWarning, "clock", fmt::format("the clock source is {}: reading the time costs a microsecond, and every op is timed", f.clock_source), "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource (as root), when the kernel offers it");
  else if (!f.clock_source.empty()) add(kGood, "clock", f.clock_source);

  if (f.huge_pages == "never") add(kWarning, "huge pages", "transparent huge pages are off: the arena takes 512 times the page table entries", "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root)");
  else if (!f.huge_pages.empty()) add(kGood, "huge pages", f.huge_pages);
  else add(kNote, "huge pages", "this kernel has no transparent huge pages");
  if (f.swap_used_bytes > 64 * kMiB)
    add(kWarning, "swap", fmt::format("{} are swapped out: what a step touches may be among them", bytes_text(f.swap_used_bytes)), "free memory, then swapoff -a && swapon -a; or set vm.swappiness=1");
  else if (f.swap_total_bytes > 0 && f.swappiness > 10)
    add(kNote, "swap", fmt::format("swap is on and vm.swappiness is {}: an idle arena may be swapped out", f.swappiness), "sysctl vm.swappiness=1 (as root)");
  else if (f.swap_total_bytes >= 0) add(kGood, "swap", f.swap_total_bytes == 0 ? "none" : fmt::format("{}, unused", bytes_text(f.swap_total_bytes)));
  if (m.cgroup_memory_bytes > 0 && m.cgroup_memory_bytes < m.memory_total_bytes)
    add(kNote, "memory limit", fmt::format("the control group allows {} of {}", bytes_text(m.cgroup_memory_bytes), bytes_text(m.memory_total_bytes)), "raise memory.max (docker --memory, Slurm --mem) when the job needs more");
  if (job.arena_bytes > 0 && job.arena_bytes > m.memory_available_bytes)
    add(kError, "memory", fmt::format("this run's arenas take {}, {} are available", bytes_text(job.arena_bytes), bytes_text(m.memory_available_bytes)), "free memory, lower budget.memory, or use train.recompute = \"full\", a smaller batch or optimizer.state_dtype = \"bf16\"");
  else add(kGood, "memory", fmt::format("{} available{}", bytes_text(m.memory_available_bytes), job.arena_bytes > 0 ? fmt::format(", this run takes {}", bytes_text(job.arena_bytes)) : ""));
  if (const int numa_nodes = m.topology.num_compute_nodes(); numa_nodes > 1)
    add(f.numa_balancing == "1" ? kWarning : kNote, "memory nodes", fmt::format("{} NUMA nodes{}: one rank over all of them reads half of its weights from afar", numa_nodes, f.numa_balancing == "1" ? ", and the kernel moves pages between them" : ""),
        fmt::format("one rank a node: mpirun -n {} --map-by numa --bind-to numa orrery train ...{}", numa_nodes, f.numa_balancing == "1" ? "; sysctl kernel.numa_balancing=0 (as root)" : ""));

  if (f.disk_free_bytes < 0) add(kError, "disk", fmt::format("{} cannot be looked at", f.disk_folder), "make the folder, or give another with --dir");
  else {
    const int64_t wanted = job.checkpoint_bytes > 0 ? job.checkpoint_bytes : kGiB;
    if (f.fsync_seconds < 0) add(kError, "disk", fmt::format("nothing can be written into {}", f.disk_folder), "give a folder that this user may write (checkpoint.dir, --dir)");
    else if (f.disk_free_bytes < wanted)
      add(job.checkpoint_bytes > 0 ? kError : kWarning, "disk", fmt::format("{} free in {}, {} wanted{}", bytes_text(f.disk_free_bytes), f.disk_folder, bytes_text(wanted), job.checkpoint_bytes > 0 ? " by this run's checkpoints" : ""),
          "free the disk, choose another checkpoint.dir, or lower checkpoint.keep");
    else add(kGood, "disk", fmt::format("{} free in {}", bytes_text(f.disk_free_bytes), f.disk_folder));
    if (f.disk_is_memory) add(kWarning, "disk", fmt::format("{} lies in memory: checkpoints there are lost with the power, and take memory from the run", f.disk_folder), "choose a checkpoint.dir on a disk");
    if (f.fsync_seconds > 0.1) add(kWarning, "disk sync", fmt::format("a synced write of 4 KiB took {:.0f} ms: saves are slow", 1e3 * f.fsync_seconds), "choose a local disk for checkpoint.dir");
  }

  if (m.open_files_max > 0 && m.open_files_max < 1024)
    add(kWarning, "open files", fmt::format("this process may open {} files; a server needs one a connection, training one a shard", m.open_files_max), "ulimit -n 65536");
  if (f.shm_bytes >= 0 && f.shm_bytes < 64 * kMiB)
    add(f.mpi.empty() ? kNote : kWarning, "/dev/shm", fmt::format("{}: MPI ranks of one machine exchange messages there", bytes_text(f.shm_bytes)), "docker --shm-size=1g, or mount -o remount,size=1g /dev/shm (as root)");
  if (f.mpi.empty()) add(kNote, "MPI", "no MPI library was found: ranks run as threads of one process", "apt install openmpi-bin, if ranks are to run on several machines");
  else add(kGood, "MPI", fmt::format("{}", fmt::join(f.mpi, ", ")));
  if (m.energy_source != "powercap") add(kNote, "energy", m.energy_source, "where the processor counts energy: chmod a+r /sys/class/powercap/intel-rapl:0/energy_uj (as root)");
  else add(kGood, "energy", m.energy_source);
  constexpr int64_t kOldSeconds = 90 * 86400;
  if (!f.probe_not_used.empty()) add(kWarning, "probe", fmt::format("the one that is kept is not used: {}", f.probe_not_used), "orrery probe");
  else if (f.probe_age_seconds < 0) add(kNote, "probe", "this machine has not been measured", "orrery probe");
  else if (f.probe_age_seconds > kOldSeconds) add(kNote, "probe", fmt::format("measured {} days ago", f.probe_age_seconds / 86400), "orrery probe --fresh");
  else add(kGood, "probe", "measured");
  std::stable_sort(findings.begin(), findings.end(), [](const Finding& a, const Finding& b) { return a.severity > b.severity; });
  return findings;
}

}  // namespace orrery
