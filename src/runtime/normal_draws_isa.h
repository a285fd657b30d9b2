// The per-instruction-set halves of normal_draws.cpp.
#pragma once

#include <array>
#include <cstdint>

namespace orrery {

constexpr int kPairsAtOnce = 16;
/// Both elements of kPairsAtOnce pairs, from the group `first_group` of a stream on.
using DrawPairs = void (*)(const std::array<uint32_t, 2>& key, uint32_t op_id, uint64_t first_group, float std, float* out);
void draw_pairs_avx2(const std::array<uint32_t, 2>& key, uint32_t op_id, uint64_t first_group, float std, float* out);
void draw_pairs_avx512(const std::array<uint32_t, 2>& key, uint32_t op_id, uint64_t first_group, float std, float* out);

}  // namespace orrery
