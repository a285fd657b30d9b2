// What is wrong with this machine for training and serving: facts read from the kernel's files, and findings made from them by a pure
// function, each with its fix. Nothing is changed here, and nothing is measured that takes longer than a synced write.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/machine_facts.h"

namespace orrery {

/// -1 or an empty text: the kernel does not say.
struct DoctorFacts {
  MachineFacts machine;
  bool avx2 = false;
  std::string huge_pages;        // the chosen word of transparent_hugepage/enabled: always, madvise, never
  std::string governor;          // of the first usable core
  int64_t swap_total_bytes = -1, swap_used_bytes = -1;
  int64_t swappiness = -1;
  double load = -1;              // of the last minute
  std::string numa_balancing;    // "0" or "1"
  std::string clock_source;      // tsc, hpet, ...
  int64_t shm_bytes = -1;        // size of /dev/shm
  int64_t locked_memory_max = -1;
  int64_t core_file_max = -1;
  std::string disk_folder;
  int64_t disk_free_bytes = -1;
  double fsync_seconds = -1;     // of 4 KiB
  bool disk_is_memory = false;   // tmpfs: a checkpoint there is gone with the power
  std::vector<std::string> mpi;  // transports whose plugin and library load: "openmpi", "mpich"
  int64_t probe_age_seconds = -1;  // of the probe of this machine that is kept; -1: none
  std::string probe_not_used;      // why there is one that is not used
};

enum class Severity : uint8_t { kGood, kNote, kWarning, kError };
std::string_view severity_name(Severity severity);

/// `subject` is one word or two, `found` what is the case, `fix` what to do (empty where all is well).
struct Finding {
  Severity severity{};
  std::string subject, found, fix;
};

struct DoctorJob {
  int64_t arena_bytes = 0;       // of all ranks here; 0: no run was given
  int64_t checkpoint_bytes = 0;  // of what a run keeps at one time
};

/// Reads the facts; `folder` is where checkpoints go. A synced write of 4 KiB is made there and removed.
DoctorFacts doctor_facts(const std::string& folder);
/// Worst first.
std::vector<Finding> diagnose(const DoctorFacts& facts, const DoctorJob& job = {});

}  // namespace orrery
