// Proves that limits of control groups are found on the whole way up (on a made tree of files), that the facts of this machine
// are consistent, and that a probe survives its JSON and nothing else does. Rates are not tested: they are what they are.
#include "runtime/machine_probe.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

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

TEST(MachineProbe, CacheIsKeyedByTheMachine) {
  const ScratchFolder home;
  ::setenv("XDG_CACHE_HOME", home.path.c_str(), 1);
  EXPECT_FALSE(cached_probe());
  MachineProbe probe;
  probe.facts = machine_facts();
  probe.gemm_bf16_flops_per_second = 1.25e12;
  probe.notes = "n\xff";  // not UTF-8
  ASSERT_TRUE(store_probe(probe));
  const auto cached = cached_probe();
  ASSERT_TRUE(cached);
  EXPECT_EQ(cached->gemm_bf16_flops_per_second, 1.25e12);
  probe.facts.usable_cores += 1;
  ASSERT_TRUE(store_probe(probe));
  EXPECT_FALSE(cached_probe());
  ::unsetenv("XDG_CACHE_HOME");
}

TEST(MachineProbe, JsonRoundTripAndDamage) {
  MachineProbe probe;
  probe.facts = machine_facts();
  probe.memory_read_bytes_per_second = 1.0 / 3;
  probe.disk_folder = "/tmp";
  probe.gemm_shapes = {{"bf16", 16, 2048, 2048, 1.5e11}};
  probe.link_bytes_per_second = 4e9;
  const std::string text = probe_to_json(probe);
  EXPECT_EQ(probe_from_json(text), probe);
  EXPECT_FALSE(probe_from_json(""));
  EXPECT_FALSE(probe_from_json("[]"));
  EXPECT_FALSE(probe_from_json("{\"version\": 99}"));
  EXPECT_FALSE(probe_from_json(text.substr(0, text.size() / 2)));
}

}  // namespace
}  // namespace orrery
