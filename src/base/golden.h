// Where the golden files of tests lie: found from this header's own place in the source tree, so tests run from any directory.
#pragma once

#include <filesystem>
#include <string>

namespace orrery {

inline std::string golden_path(const std::string& name) {
  return (std::filesystem::path(__FILE__).parent_path().parent_path().parent_path() / "tests" / "golden" / name).string();
}

}  // namespace orrery
