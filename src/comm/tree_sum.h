// The addition of a reduction: f32 or bf16 sources, f32 sums in the order of a TreeProgram, one read of each source and one write of
// the result. Tiles of partial sums stay in the first-level cache. The bits do not depend on the instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/cpu_features.h"
#include "comm/reduction_plan.h"
#include "ir/dtype.h"

namespace orrery {

constexpr int kTreeSumMaxDepth = 32;

/// output[i] = the program over sources[k][i]. `output` may be one of the sources. bf16 sources are widened, summed in f32 and
/// rounded once to nearest even; f64 and i64 (norms, counts) are added in their own type.
/// Errors: kUnsupported for another dtype.
void tree_sum(VectorIsa isa, DType dtype, const TreeProgram& program, std::span<const std::byte* const> sources, std::byte* output, int64_t count);

/// y[i] += x[i]: the step of a ring (reduction = "fast"). dtype as above.
void add_into(VectorIsa isa, DType dtype, std::byte* y, const std::byte* x, int64_t count);

struct TreeSumKernels {
  void (*add)(const float* a, const float* b, float* sum, int64_t n);  // any may be the same
  void (*from_bf16)(const uint16_t* x, float* y, int64_t n);
  void (*to_bf16)(const float* x, uint16_t* y, int64_t n);
};
const TreeSumKernels& tree_sum_kernels(VectorIsa isa);

}  // namespace orrery
