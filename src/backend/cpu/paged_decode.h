// Paged attention of one query row: what decoding spends its time on when sequences are many. The same bits as the block kernel of
// attention_kernels.inl, which pads one row to a block of columns; here lanes are keys for the scores and the softmax, which read tiles of keys as they
// lie, and numbers of the head for the sum over values. A block of 64 positions is read once, for all kv heads of the task: its tiles and rows lie
// behind each other, and processors fetch ahead what is read in order, but not a head's part of each row (single sequences of a batch of 32: 8.6 GB/s
// a core).
#pragma once

#include "backend/cpu/attention_kernels.h"

namespace orrery {

/// Query rows of one sequence up to which the decode kernel is taken, row by row.
constexpr int64_t kDecodeRows = 4;

/// For queries of `dtype` and a cache of `cache_dtype`. Null where there is none: for bf16 in kAmx32, and for a head_dim that is no multiple of 32 or above 256. task.num_queries must be 1. task.scratch: paged_decode_scratch_bytes of as many heads as the task has.
using PagedDecode = void (*)(const PagedTask& task);
PagedDecode paged_decode(const KernelContext& context, DType dtype, DType cache_dtype, int64_t head_dim);

/// A multiple of 64: of each query head what has been summed, and the query in f32 or in codes.
constexpr int64_t kPagedDecodeMaxHead = 256;
constexpr int64_t paged_decode_scratch_bytes(int64_t num_heads, int64_t head_dim) {
  const int64_t sums = pad_to(4 * head_dim, 64) + 64, codes = kPagedDecodeMaxHead + 64;
  return num_heads * (sums + (4 * head_dim > codes ? pad_to(4 * head_dim, 64) : codes));
}

namespace simd_avx2 {
extern const PagedDecode kPagedDecodeF32, kPagedDecodeDp2, kPagedDecodeFma1;  // by FMAs; the last two over bf16
extern const PagedDecode kPagedDecodeInt8Bf16, kPagedDecodeInt8F32;
}
namespace simd_avx512 {
extern const PagedDecode kPagedDecodeF32, kPagedDecodeDp2, kPagedDecodeFma1;
extern const PagedDecode kPagedDecodeInt8Bf16, kPagedDecodeInt8F32;
}
extern const PagedDecode kPagedDecodeVdpbf16ps;  // dp2 by its own instruction

}  // namespace orrery
