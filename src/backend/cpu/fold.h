// GradFold for kernels whose partial sums are rows of f32 (bias, norm and embedding gradients): a stack of such rows in
// workspace.
#pragma once

#include <cstdint>

#include "backend/kernel.h"

namespace orrery {

/// Stack entries that a fold may need: the destination at the bottom and one open subtree per level above it, and the entry
/// being pushed.
constexpr int64_t kFoldEntries = GradFold::kMaxDepth + 2;

class FoldStack {
 public:
  /// `entries` has room for kFoldEntries rows of `width` floats, `stride` floats apart.
  FoldStack(float* entries, int64_t stride, int64_t width) : entries_(entries), stride_(stride), width_(width) {}

  void clear() { depth_ = 0; }
  /// Pushes a copy of `row`; null pushes +0.
  void push(const float* row);
  /// The entry pushed last, to be added to in place.
  float* top() { return entry(depth_ - 1); }
  /// Replaces the two top entries by lower + upper, `count` times.
  void merge(int count);
  /// The one entry that is left.
  const float* result() const;

 private:
  float* entry(int64_t index) { return entries_ + index * stride_; }

  float* entries_;
  int64_t stride_;
  int64_t width_;
  int64_t depth_ = 0;
};

}  // namespace orrery
