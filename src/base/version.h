// The version of this program: what --version prints, and what measurements that are kept were made with.
#pragma once

#include <string_view>

namespace orrery {

/// "0.1.0".
std::string_view program_version();

}  // namespace orrery
