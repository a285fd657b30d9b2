#include "runtime/normal_draws.h"

#include <algorithm>

#include "base/cpu_features.h"
#include "base/philox.h"
#include "runtime/normal_draws_isa.h"

namespace orrery {

void initial_normals(uint64_t seed, int32_t tensor_index, int64_t first, int64_t count, float std, float* out) {
  static const DrawPairs draw = cpu_features().best_isa() == VectorIsa::kAvx512 ? draw_pairs_avx512 : draw_pairs_avx2;
  constexpr int64_t kDrawn = 2 * kPairsAtOnce;
  const PhiloxStream stream(seed, RandomPurpose::kInit, static_cast<uint32_t>(tensor_index), 0);
  float drawn[kDrawn];
  for (int64_t done = 0; done < count;) {
    const int64_t index = first + done, skipped = index & 1, taken = std::min(count - done, kDrawn - skipped);
    const bool whole = skipped == 0 && taken == kDrawn;
    draw(stream.key(), static_cast<uint32_t>(tensor_index), static_cast<uint64_t>(index) >> 1, std, whole ? out + done : drawn);
    if (!whole) std::copy_n(drawn + skipped, taken, out + done);
    done += taken;
  }
}

}  // namespace orrery
