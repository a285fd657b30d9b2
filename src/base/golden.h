// Where the golden files of tests lie. The build tree stands in the source tree, so tests/golden is found upwards from the test program;
// from this header's own path when the build is elsewhere (a compiler cache may have made that path relative).
#pragma once

#include <filesystem>
#include <string>

namespace orrery {

inline std::string golden_path(const std::string& name) {
  namespace fs = std::filesystem;
  const fs::path relative = fs::path("tests") / "golden" / name;
  std::error_code ignored;
  for (fs::path at = fs::read_symlink("/proc/self/exe", ignored).parent_path(); at.has_relative_path(); at = at.parent_path()) {
    if (fs::exists(at / relative, ignored)) return (at / relative).string();
  }
  return (fs::path(__FILE__).parent_path().parent_path().parent_path() / relative).string();
}

}  // namespace orrery
