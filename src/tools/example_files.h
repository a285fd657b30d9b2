// The run files of examples/, compiled into the binary.
#pragma once

#include <span>
#include <string_view>

namespace orrery {

struct ExampleFile {
  std::string_view name;  // without .toml
  std::string_view text;
};

/// In alphabetical order.
std::span<const ExampleFile> example_files();

}  // namespace orrery
