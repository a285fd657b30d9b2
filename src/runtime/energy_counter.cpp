#include "runtime/energy_counter.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>

namespace orrery {
namespace {

std::optional<int64_t> read_count(const std::string& path) {
  std::ifstream file(path);
  int64_t count = 0;
  return file >> count ? std::optional(count) : std::nullopt;
}

}  // namespace

// A package's zone is "intel-rapl:N", on AMD's processors too; its parts are "intel-rapl:N:M", and a platform's zone, which holds the
// packages, goes by "psys".
EnergyCounter::EnergyCounter(const std::string& folder) {
  std::error_code error;
  std::filesystem::directory_iterator zones(folder, error);
  if (error) {
    source_ = "n/a: this kernel offers no powercap counters";
    return;
  }
  std::vector<std::string> packages;
  for (const auto& entry : zones) {
    std::ifstream file(entry.path() / "name");
    if (std::string name; file >> name && name.starts_with("package")) packages.push_back(entry.path().string());
  }
  std::sort(packages.begin(), packages.end());
  source_ = packages.empty() ? "n/a: no RAPL package counter" : "powercap";
  for (const std::string& package : packages) {
    const auto count = read_count(package + "/energy_uj"), range = read_count(package + "/max_energy_range_uj");
    if (!count || !range) {
      source_ = "n/a: " + package + "/energy_uj is not readable by this user";
      packages_.clear();
      return;
    }
    packages_.push_back({package, *range, *count});
  }
}

double EnergyCounter::joules() {
  for (Package& package : packages_) {
    const auto count = read_count(package.folder + "/energy_uj");
    if (!count) continue;
    microjoules_ += static_cast<double>(*count >= package.last ? *count - package.last : *count + package.range - package.last);
    package.last = *count;
  }
  return microjoules_ * 1e-6;
}

}  // namespace orrery
