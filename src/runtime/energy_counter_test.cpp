// Packages are added up, their parts and the platform's zone are not, a counter that starts over goes on, and where nothing can be read the
// reason is said. On a made tree of files; what this machine counts is its own.
#include "runtime/energy_counter.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace orrery {
namespace {

class PowercapTree : public ::testing::Test {
 protected:
  PowercapTree() { std::filesystem::create_directories(folder_); }
  ~PowercapTree() override { std::filesystem::remove_all(folder_); }

  void zone(const std::string& zone, const std::string& name, int64_t microjoules, int64_t range = 1000000) const {
    std::filesystem::create_directories(folder_ + "/" + zone);
    std::ofstream(folder_ + "/" + zone + "/name") << name << "\n";
    std::ofstream(folder_ + "/" + zone + "/max_energy_range_uj") << range << "\n";
    std::ofstream(folder_ + "/" + zone + "/energy_uj") << microjoules << "\n";
  }

  std::string folder_ = std::filesystem::temp_directory_path() / fmt::format("orrery_powercap_{}", ::getpid());
};

TEST_F(PowercapTree, PackagesAreAddedUp) {
  zone("intel-rapl:0", "package-0", 100000);
  zone("intel-rapl:1", "package-1", 900000);
  zone("intel-rapl:0:0", "core", 50000);
  zone("intel-rapl:2", "psys", 70000);
  EnergyCounter counter(folder_);
  EXPECT_EQ(counter.source(), "powercap");
  EXPECT_EQ(counter.joules(), 0);
  zone("intel-rapl:0", "package-0", 350000);
  zone("intel-rapl:0:0", "core", 350000);
  zone("intel-rapl:2", "psys", 990000);
  EXPECT_DOUBLE_EQ(counter.joules(), 0.25);
  zone("intel-rapl:1", "package-1", 100000);  // started over: 200,000 more
  EXPECT_DOUBLE_EQ(counter.joules(), 0.45);
  EXPECT_DOUBLE_EQ(counter.joules(), 0.45);
}

TEST_F(PowercapTree, SaysWhyThereIsNothing) {
  EXPECT_EQ(EnergyCounter(folder_ + "/none").source(), "n/a: this kernel offers no powercap counters");
  EnergyCounter empty(folder_);
  EXPECT_EQ(empty.source(), "n/a: no RAPL package counter");
  EXPECT_FALSE(empty.readable());
  EXPECT_EQ(empty.joules(), 0);
  zone("intel-rapl:0", "package-0", 1);
  std::filesystem::remove(folder_ + "/intel-rapl:0/energy_uj");  // root reads everything, so it is taken away
  EXPECT_EQ(EnergyCounter(folder_).source(), "n/a: " + folder_ + "/intel-rapl:0/energy_uj is not readable by this user");
}

}  // namespace
}  // namespace orrery
