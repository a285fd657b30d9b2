// Proves that limits of control groups are found on the whole way up (on a made tree of files), that the facts of this machine
// are consistent, and that a probe survives its JSON and nothing else does. Rates are not tested: they are what they are.
#include "runtime/machine_probe.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace orrery {
namespace {

struct ScratchFolder {
  std::string path = std::filesystem::temp_directory_path() / fmt::format("orrery_probe_{}", ::getpid());
  ScratchFolder() { std::filesystem::create_directories(path); }
  ~ScratchFolder() { std::filesystem::remove_all(path); }
};

TEST(MachineFacts, LeastLimitOnTheWayUp) {
  const ScratchFolder mount;
  std::filesystem::create_directories(mount.path + "/a/b");
  std::ofstream(mount.path + "/memory.max") << "max\n";
  std::ofstream(mount.path + "/a/memory.max") << "1048576\n";
  std::ofstream(mount.path + "/a/b/memory.max") << "9223372036854771712\n";
  EXPECT_EQ(least_cgroup_limit(mount.path, "/a/b", "memory.max"), 1048576);
  EXPECT_EQ(least_cgroup_limit(mount.path, "/a", "memory.max"), 1048576);
  EXPECT_EQ(least_cgroup_limit(mount.path, "/", "memory.max"), 0);
  EXPECT_EQ(least_cgroup_limit(mount.path, "/not/here", "memory.max"), 0);
}

TEST(MachineFacts, AreConsistent) {
  const MachineFacts facts = machine_facts();
  EXPECT_GE(facts.usable_cores, 1);
  EXPECT_LE(facts.usable_cores, facts.online_cores);
  EXPECT_GT(facts.memory_total_bytes, 0);
  EXPECT_GT(facts.memory_available_bytes, 0);
  EXPECT_EQ(machine_fingerprint(facts), machine_fingerprint(machine_facts()));
}

// hwloc's reading against the kernel's own files, which know the same.
TEST(MachineTopology, AgreesWithTheKernel) {
  const MachineTopology& topology = machine_topology();
  for (const MemoryNode& node : topology.memory_nodes) EXPECT_GT(node.bytes, 0);
  EXPECT_GE(topology.num_packages, 1);
  EXPECT_GE(topology.num_cores, topology.num_packages);
  EXPECT_EQ(topology.num_threads, machine_facts().online_cores);
  if (!std::filesystem::exists("/sys/devices/system/cpu/cpu0/cache")) GTEST_SKIP() << "no /sys here: what the kernel knows of caches and nodes was not compared";
  for (const CacheFact& cache : topology.caches) {
    bool listed = false;
    for (int index = 0; index < 8 && !listed; ++index) {
      std::ifstream level(fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}/level", index)), size(fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}/size", index));
      int level_of = 0;
      int64_t kib = 0;
      listed = level >> level_of && size >> kib && level_of == cache.level && kib * 1024 == cache.bytes;
    }
    EXPECT_TRUE(listed) << "L" << cache.level << " " << cache.type << " " << cache.bytes;
  }
  for (const MemoryNode& node : topology.memory_nodes) {
    std::ifstream meminfo(fmt::format("/sys/devices/system/node/node{}/meminfo", node.index));
    std::string word;
    while (meminfo >> word && word != "MemTotal:") {}
    if (int64_t kib = 0; meminfo >> kib) {
      EXPECT_NEAR(static_cast<double>(node.bytes), static_cast<double>(kib) * 1024, 0.1 * static_cast<double>(node.bytes)) << "a virtual machine's may change meanwhile";
    }
  }
}

// Machines that are not here: two packages with two memory nodes each and two threads a core; a node without cores.
TEST(MachineTopology, OfDescribedMachines) {
  const MachineTopology two = described_topology("pack:2 numa:2 l3:1(size=33554432) l2:4(size=1048576) l1d:1(size=32768) core:1 pu:2");
  EXPECT_EQ(two.num_packages, 2);
  EXPECT_EQ(two.num_cores, 16);
  EXPECT_EQ(two.num_threads, 32);
  EXPECT_EQ(two.threads_per_core(), 2);
  EXPECT_EQ(two.num_compute_nodes(), 4);
  ASSERT_EQ(two.caches.size(), 3u);
  EXPECT_EQ(two.caches[0], (CacheFact{1, "data", 32768, "0-1"}));
  EXPECT_EQ(two.caches[2], (CacheFact{3, "unified", 33554432, "0-7"}));
  EXPECT_THROW(described_topology("castle:2"), Error);
}

MachineProbe small_probe() {
  MachineProbe probe;
  probe.facts = machine_facts();
  probe.gemm_bf16_flops_per_second = 1.25e12;
  probe.notes = "n\xff";  // not UTF-8
  return probe;
}

// What is kept is used on the machine and by the program that it was made with, and nowhere else; why not is said.
TEST(MachineProbe, WhatIsKeptIsOfThisMachine) {
  const ScratchFolder home;
  ::setenv("XDG_CACHE_HOME", home.path.c_str(), 1);
  EXPECT_FALSE(kept_probe().probe);
  EXPECT_EQ(kept_probe().not_used, "");
  ASSERT_TRUE(store_probe(small_probe()));
  ASSERT_TRUE(kept_probe().probe);
  EXPECT_EQ(kept_probe().probe->gemm_bf16_flops_per_second, 1.25e12);
  EXPECT_EQ(kept_probe().not_used, "");
  const struct {
    const char* item;
    void (*change)(MachineProbe&);
  } others[] = {
      {"processor: another where it was measured", [](MachineProbe& p) { p.facts.cpu_model = "another"; }},
      {"isa: avx1", [](MachineProbe& p) { p.facts.isa = "avx1"; }},
      {"cores: 99 of", [](MachineProbe& p) { p.facts.usable_cores = 99; }},
      {"caches: not listed", [](MachineProbe& p) { p.facts.topology.caches.clear(); }},
      {"software: orrery 0.0.1", [](MachineProbe& p) { p.facts.software = "orrery 0.0.1"; }},
      {"no rate of matrix products", [](MachineProbe& p) { p.gemm_bf16_flops_per_second = 0; }},
  };
  for (const auto& other : others) {
    MachineProbe probe = small_probe();
    other.change(probe);
    ASSERT_TRUE(store_probe(probe));
    const KeptProbe kept = kept_probe();
    EXPECT_FALSE(kept.probe) << other.item;
    EXPECT_NE(kept.not_used.find(other.item), std::string::npos) << kept.not_used;
    EXPECT_EQ(std::count(kept.not_used.begin(), kept.not_used.end(), ';'), 0) << "more than one difference: " << kept.not_used;
  }
  std::ofstream(probe_cache_path()) << "{\"version\": 2}";
  EXPECT_NE(kept_probe().not_used.find("no probe of this version"), std::string::npos);
  ::unsetenv("XDG_CACHE_HOME");
}

TEST(MachineProbe, KnowsWhetherItWasAlone) {
  MachineProbe probe;
  EXPECT_FALSE(measured_beside_other_work(probe)) << "nothing was measured";
  probe.core_share = 0.99;
  EXPECT_FALSE(measured_beside_other_work(probe));
  probe.core_share = 0.6;
  EXPECT_TRUE(measured_beside_other_work(probe));
}

TEST(MachineFacts, DifferencesAreNamed) {
  EXPECT_EQ(fingerprint_difference("a: 1 | b: 2", "a: 1 | b: 2"), "");
  EXPECT_EQ(fingerprint_difference("a: 1 | b: 2", "a: 1 | b: 3"), "b: 2 where it was measured, 3 here");
  EXPECT_EQ(fingerprint_difference("a: 0 | b: 2", "a: 1 | b: 3"), "a: 0 where it was measured, 1 here; b: 2 where it was measured, 3 here");
  EXPECT_EQ(fingerprint_difference("AMD | avx2 | 2 of 2 cores", "a: 1 | b: 3"), "it was measured by an older version of this program");
  EXPECT_NE(fingerprint_difference("", "a: 1"), "");
}

TEST(MachineProbe, JsonRoundTripAndDamage) {
  MachineProbe probe;
  probe.facts = machine_facts();
  probe.memory_read_bytes_per_second = 1.0 / 3;
  probe.disk_folder = "/tmp";
  probe.gemm_shapes = {{"bf16", 16, 2048, 2048, 1.5e11}};
  probe.link_bytes_per_second = 4e9;
  probe.core_share = 0.75, probe.busy_watts = 98.5;
  const std::string text = probe_to_json(probe);
  EXPECT_EQ(probe_from_json(text), probe);
  EXPECT_FALSE(probe_from_json(""));
  EXPECT_FALSE(probe_from_json("[]"));
  EXPECT_FALSE(probe_from_json("{\"version\": 99}"));
  EXPECT_FALSE(probe_from_json(text.substr(0, text.size() / 2)));
}

}  // namespace
}  // namespace orrery
