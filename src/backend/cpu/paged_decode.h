// Paged attention of one query row: what decoding spends its time on when sequences are many. The same bits as the block kernel of
// attention_kernels.inl, which pads one row to a block of columns; here lanes are keys for the scores and the softmax, and numbers of the
// head for the sum over values.
#pragma once

#include "backend/cpu/attention_kernels.h"

namespace orrery {

/// Query rows of one sequence up to which the decode kernel is taken, row by row.
constexpr int64_t kDecodeRows = 4;

/// For queries of `dtype` and a cache of `cache_dtype`. Null where this processor, arithmetic or head has none: bf16 as vdpbf16ps sums it (kDp2,
/// native), f32, and a cache in 8 bits for both; head_dim a multiple of 32, at most 256. task.num_queries must be 1.
using PagedDecode = void (*)(const PagedTask& task);
PagedDecode paged_decode(const KernelContext& context, DType dtype, DType cache_dtype, int64_t head_dim);

extern const PagedDecode kPagedDecodeBf16, kPagedDecodeF32, kPagedDecodeInt8Bf16, kPagedDecodeInt8F32;

}  // namespace orrery
