#include "backend/cpu/fold.h"

#include <cstring>

namespace orrery {

void FoldStack::push(const float* row) {
  ORRERY_CHECK(depth_ < kFoldEntries, "fold deeper than {}", kFoldEntries);
  float* top = entry(depth_++);
  if (row != nullptr)
    std::memcpy(top, row, width_ * sizeof(float));
  else
    std::memset(top, 0, width_ * sizeof(float));
}

void FoldStack::merge(int count) {
  for (; count > 0; --count) {
    ORRERY_CHECK(depth_ >= 2, "merge of {} entries", depth_);
    float* lower = entry(depth_ - 2);
    const float* upper = entry(depth_ - 1);
    for (int64_t i = 0; i < width_; ++i) lower[i] += upper[i];
    --depth_;
  }
}

const float* FoldStack::result() const {
  ORRERY_CHECK(depth_ == 1, "a fold left {} entries", depth_);
  return entries_;
}

}  // namespace orrery
