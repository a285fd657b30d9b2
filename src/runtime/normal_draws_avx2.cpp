#include "runtime/normal_draws.inl"

namespace orrery {
void draw_pairs_avx2(const std::array<uint32_t, 2>& key, uint32_t op_id, uint64_t first_group, float std, float* out) { draw_pairs(key, op_id, first_group, std, out); }
}  // namespace orrery
