#include "comm/tree_sum.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace orrery {

namespace simd_avx2 {
extern const TreeSumKernels kTreeSumKernels;
}
namespace simd_avx512 {
extern const TreeSumKernels kTreeSumKernels;
}

const TreeSumKernels& tree_sum_kernels(VectorIsa isa) {
  return isa == VectorIsa::kAvx512 ? simd_avx512::kTreeSumKernels : simd_avx2::kTreeSumKernels;
}

namespace {

// 2 KiB of f32: the deepest stack that occurs in practice (8 levels) stays within half of a 32 KiB first-level cache.
constexpr int64_t kTileElements = 512;

// Sums one tile; a stack entry is a source itself until it has been added to something.
void sum_tile_f32(const TreeSumKernels& kernels, const TreeProgram& program, std::span<const std::byte* const> sources, bool widen, int64_t offset,
                  float* output, int64_t n) {
  alignas(64) float tiles[kTreeSumMaxDepth][kTileElements];
  const float* stack[kTreeSumMaxDepth];
  int depth = 0;
  for (size_t i = 0; i < program.code.size(); ++i) {
    const int16_t instruction = program.code[i];
    if (instruction >= 0) {
      const std::byte* source = sources[static_cast<size_t>(instruction)];
      if (widen) {
        kernels.from_bf16(reinterpret_cast<const uint16_t*>(source) + offset, tiles[depth], n);
        stack[depth] = tiles[depth];
      } else {
        stack[depth] = reinterpret_cast<const float*>(source) + offset;
      }
      ++depth;
    } else {
      --depth;
      float* sum = i + 1 == program.code.size() ? output : tiles[depth - 1];
      kernels.add(stack[depth - 1], stack[depth], sum, n);
      stack[depth - 1] = sum;
    }
  }
  if (stack[0] != output) std::memmove(output, stack[0], static_cast<size_t>(n) * sizeof(float));
}

template <typename T>
void sum_plain(const TreeProgram& program, std::span<const std::byte* const> sources, T* output, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    T stack[kTreeSumMaxDepth];
    int depth = 0;
    for (const int16_t instruction : program.code) {
      if (instruction >= 0) {
        stack[depth++] = reinterpret_cast<const T*>(sources[static_cast<size_t>(instruction)])[i];
      } else {
        --depth;
        stack[depth - 1] = stack[depth - 1] + stack[depth];
      }
    }
    output[i] = stack[0];
  }
}

[[noreturn]] void unsupported(DType dtype) {
  throw Error(ErrorCode::kUnsupported, "a sum over ranks of {}: there are f32, bf16, f64 and i64", dtype_name(dtype));
}

}  // namespace

void tree_sum(VectorIsa isa, DType dtype, const TreeProgram& program, std::span<const std::byte* const> sources, std::byte* output, int64_t count) {
  ORRERY_CHECK(!program.code.empty() && program.max_depth <= kTreeSumMaxDepth, "depth {}", program.max_depth);
  const TreeSumKernels& kernels = tree_sum_kernels(isa);
  switch (dtype) {
    case DType::kF32:
      for (int64_t i = 0; i < count; i += kTileElements)
        sum_tile_f32(kernels, program, sources, /*widen=*/false, i, reinterpret_cast<float*>(output) + i, std::min(kTileElements, count - i));
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; i += kTileElements) {
        alignas(64) float sum[kTileElements];
        const int64_t n = std::min(kTileElements, count - i);
        sum_tile_f32(kernels, program, sources, /*widen=*/true, i, sum, n);
        kernels.to_bf16(sum, reinterpret_cast<uint16_t*>(output) + i, n);
      }
      return;
    case DType::kF64: return sum_plain(program, sources, reinterpret_cast<double*>(output), count);
    case DType::kI64: return sum_plain(program, sources, reinterpret_cast<int64_t*>(output), count);
    default: unsupported(dtype);
  }
}

void add_into(VectorIsa isa, DType dtype, std::byte* y, const std::byte* x, int64_t count) {
  static const TreeProgram kPair = rank_tree_plan(2).programs[0];
  const std::byte* sources[2] = {y, x};
  tree_sum(isa, dtype, kPair, sources, y, count);
}

}  // namespace orrery
