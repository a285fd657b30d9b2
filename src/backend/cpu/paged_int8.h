// Attention over a cache in 8 bits: its arithmetic, which is the same for every compute dtype, instruction set and number of query rows, because
// all sums over the head and over a block of keys are exact. The block kernel is in paged_int8.inl, that of one row in paged_decode_int8.inl.
//
// Arithmetic   quantize(x): scale = amax / 127, code = x (127 / amax) to nearest even; keys and values as they are written, queries when they are read.
//              score[s]   = f32(q codes . k codes) * (q scale * k scale)
//              For a block of 64 keys, with p from the softmax:
//              w[s]       = p[s] * v scale,   top = max w,   code[s] = w (32767 / top) to nearest even
//              o          = fma(f32(sum of code[s] * v codes), top / 32767, o * shrink)
#pragma once

#include "backend/cpu/attention_kernels.h"
#include "ir/kv_format.h"

namespace orrery {

constexpr float kInt8Most = 127.0f, kInt16Most = 32767.0f;

/// Scratch bytes of the block kernel, a multiple of 64.
constexpr int64_t paged_int8_scratch_bytes(int64_t head_dim, int64_t element_bytes) {
  const int64_t B = kAttentionBlock, Hp = pad_to(head_dim, 32);
  return (2 * B * Hp + 2 * B * B) * element_bytes + (B * B + 2 * B * Hp) * 4 + kPagedColumnBlocks * B * Hp * (element_bytes + 4);
}

}  // namespace orrery
