// What the processor packages take, as the kernel counts it (powercap: Intel's and AMD's RAPL). Memory, disks, fans and the power supply's
// loss are not in it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace orrery {

class EnergyCounter {
 public:
  /// Counts from now on. `folder`: where the kernel shows its zones.
  explicit EnergyCounter(const std::string& folder = "/sys/class/powercap");

  /// "powercap", or "n/a: why".
  const std::string& source() const { return source_; }
  bool readable() const { return !packages_.empty(); }

  /// Joules since construction, all packages together; 0 where not readable. A counter wraps (at 262 kJ on many machines, a quarter of an hour
  /// of 300 W), so it has to be asked more often than that.
  double joules();

 private:
  struct Package {
    std::string folder;
    int64_t range = 0;  // microjoules at which the counter starts over
    int64_t last = 0;
  };
  std::vector<Package> packages_;
  std::string source_;
  double microjoules_ = 0;
};

}  // namespace orrery
