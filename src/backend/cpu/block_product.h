// C (+)= A . B for blocks that sit in L1 or L2: the inner product of attention, with every arithmetic id of NUMERICS rule 1.
// It packs nothing and runs on the calling thread.
//
//   A  [m, k] row-major, rows `lda` elements apart
//   B  panels of 16 columns, `panel_stride` elements apart; inside a panel bf16 as [k / 2][16][2] (pairs of k side by side),
//      f32 as [k][16]
//   C  [m, n] f32 row-major, rows `ldc` apart. accumulate: the chain goes on from C's contents; otherwise it starts at +0
//
// m is a multiple of 32, n of 16, k of 32; callers pad with zeros, which leave every sum as it is. Each element's sum runs over
// k in order and depends on nothing but its row of A, its column of B and the arithmetic id:
//   kFma1   c = fma(a[k], b[k], c) for each k
//   kDp2    for each pair: c = fma(a[2p+1], b[2p+1], c) rounded, then c = fma(a[2p], b[2p], c) rounded: vdpbf16ps
//   kAmx32  for each 32 of k: e, o = chains from +0 over the even and odd k; c = c + (e + o): tdpbf16ps
// with subnormal numbers flushed on the way in and out.
#pragma once

#include <cstdint>

#include "backend/kernel.h"

namespace orrery {

struct ProductArgs {
  const void* a = nullptr;
  int64_t lda = 0;
  const void* b = nullptr;
  int64_t panel_stride = 0;
  float* c = nullptr;
  int64_t ldc = 0;
  int64_t m = 0, n = 0, k = 0;
  bool accumulate = false;
};

struct BlockProduct {
  /// Before and after a thread's calls of run(): the tile registers' configuration.
  void (*begin)();
  void (*end)();
  void (*run)(const ProductArgs& args);
};

/// The product for bf16 or f32 operands (f32 is always kFma1).
const BlockProduct& block_product(DType dtype, VectorIsa isa, Arithmetic arithmetic, bool native_arithmetic);

}  // namespace orrery
