// The inner loop of the read-bandwidth measurement.
#pragma once

#include <cstddef>
#include <cstdint>

namespace orrery {

/// Reads every byte once with 32-byte loads and returns a value that depends on all of them. `bytes` % 256 == 0.
uint64_t read_all_bytes_avx2(const std::byte* data, size_t bytes);

}  // namespace orrery
