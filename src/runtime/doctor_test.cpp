// A machine with nothing wrong has no warning; each thing that is wrong makes one finding about it, with a fix, and the worst is first.
#include "runtime/doctor.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace orrery {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

DoctorFacts healthy() {
  DoctorFacts f;
  f.machine.cpu_model = "a processor", f.machine.isa = "avx2 avx512", f.machine.energy_source = "powercap";
  f.machine.online_cores = f.machine.affinity_cores = f.machine.usable_cores = 8;
  f.machine.memory_total_bytes = 64 * kGiB, f.machine.memory_available_bytes = 60 * kGiB, f.machine.open_files_max = 65536;
  f.avx2 = true, f.huge_pages = "madvise", f.governor = "performance", f.swap_total_bytes = 0, f.swap_used_bytes = 0, f.load = 0.1, f.clock_source = "tsc";
  f.shm_bytes = kGiB, f.disk_folder = "/data", f.disk_free_bytes = 100 * kGiB, f.fsync_seconds = 0.002, f.mpi = {"openmpi"}, f.probe_age_seconds = 60;
  return f;
}

std::vector<Finding> about(const std::vector<Finding>& findings, const std::string& subject) {
  std::vector<Finding> found;
  for (const Finding& finding : findings)
    if (finding.subject == subject && finding.severity != Severity::kGood) found.push_back(finding);
  return found;
}

TEST(Doctor, AHealthyMachineHasNoComplaint) {
  for (const Finding& finding : diagnose(healthy())) EXPECT_EQ(finding.severity, Severity::kGood) << finding.subject << ": " << finding.found;
}

TEST(Doctor, EachFaultIsNamedWithItsFix) {
  const struct {
    std::string subject;
    Severity severity;
    void (*break_it)(DoctorFacts&);
  } cases[] = {
      {"processor", Severity::kError, [](DoctorFacts& f) { f.avx2 = false; }},
      {"core quota", Severity::kWarning, [](DoctorFacts& f) { f.machine.cgroup_cores = 2.5, f.machine.usable_cores = 2; }},
      {"load", Severity::kWarning, [](DoctorFacts& f) { f.load = 6; }},
      {"frequency", Severity::kWarning, [](DoctorFacts& f) { f.governor = "powersave"; }},
      {"clock", Severity::kWarning, [](DoctorFacts& f) { f.clock_source = "hpet"; }},
      {"huge pages", Severity::kWarning, [](DoctorFacts& f) { f.huge_pages = "never"; }},
      {"swap", Severity::kWarning, [](DoctorFacts& f) { f.swap_total_bytes = kGiB, f.swap_used_bytes = kGiB / 2; }},
      {"memory limit", Severity::kNote, [](DoctorFacts& f) { f.machine.cgroup_memory_bytes = 8 * kGiB; }},
      {"memory nodes", Severity::kWarning, [](DoctorFacts& f) { f.machine.topology.memory_nodes = {{0, kGiB, 4}, {1, kGiB, 4}}, f.numa_balancing = "1"; }},
      {"hardware threads", Severity::kNote, [](DoctorFacts& f) { f.machine.topology.num_cores = 4, f.machine.topology.num_threads = 8; }},
      {"disk", Severity::kWarning, [](DoctorFacts& f) { f.disk_is_memory = true; }},
      {"disk", Severity::kWarning, [](DoctorFacts& f) { f.disk_free_bytes = 1 << 20; }},
      {"disk", Severity::kError, [](DoctorFacts& f) { f.fsync_seconds = -1; }},
      {"disk sync", Severity::kWarning, [](DoctorFacts& f) { f.fsync_seconds = 0.3; }},
      {"open files", Severity::kWarning, [](DoctorFacts& f) { f.machine.open_files_max = 256; }},
      {"/dev/shm", Severity::kWarning, [](DoctorFacts& f) { f.shm_bytes = 1 << 20; }},
      {"MPI", Severity::kNote, [](DoctorFacts& f) { f.mpi.clear(); }},
      {"probe", Severity::kNote, [](DoctorFacts& f) { f.probe_age_seconds = -1; }},
      {"probe", Severity::kWarning, [](DoctorFacts& f) { f.probe_not_used = "cores: 4 of 4 where it was measured, 2 of 2 here"; }},
      {"energy", Severity::kNote, [](DoctorFacts& f) { f.machine.energy_source = "n/a: no counters"; }},
  };
  for (const auto& c : cases) {
    DoctorFacts facts = healthy();
    c.break_it(facts);
    const std::vector<Finding> findings = diagnose(facts), found = about(findings, c.subject);
    ASSERT_EQ(found.size(), 1u) << c.subject;
    EXPECT_EQ(found[0].severity, c.severity) << c.subject;
    EXPECT_FALSE(found[0].fix.empty()) << c.subject;
    EXPECT_EQ(findings.front().subject, c.subject);
    EXPECT_EQ(std::count_if(findings.begin(), findings.end(), [](const Finding& f) { return f.severity != Severity::kGood; }), 1) << c.subject;
  }
}

TEST(Doctor, ARunThatDoesNotFitIsAnError) {
  const auto findings = diagnose(healthy(), {.arena_bytes = 80 * kGiB, .checkpoint_bytes = 200 * kGiB});
  EXPECT_EQ(about(findings, "memory").size(), 1u);
  EXPECT_EQ(about(findings, "disk").size(), 1u);
  EXPECT_EQ(findings[0].severity, Severity::kError);
  EXPECT_EQ(findings[1].severity, Severity::kError);
}

TEST(Doctor, FactsOfThisMachineAreReadable) {
  const DoctorFacts facts = doctor_facts(::testing::TempDir());
  EXPECT_GE(facts.machine.usable_cores, 1);
  EXPECT_GT(facts.disk_free_bytes, 0);
  EXPECT_GE(facts.fsync_seconds, 0);
  EXPECT_EQ(doctor_facts("/nonexistent/folder").disk_free_bytes, -1);
}

}  // namespace
}  // namespace orrery
