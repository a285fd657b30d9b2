// Many normal draws at once: what initial_normal() gives for a run of neighbouring elements, bit for bit, many pairs side by side.
#pragma once

#include <cstdint>

namespace orrery {

/// out[i] = initial_normal(seed, tensor_index, first + i, std) for i in [0, count).
void initial_normals(uint64_t seed, int32_t tensor_index, int64_t first, int64_t count, float std, float* out);

}  // namespace orrery
