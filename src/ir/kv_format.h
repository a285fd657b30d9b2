// How keys and values lie in the cache: in the compute dtype, [num_kv_heads * head_dim] numbers a token, or in 8 bits: for each kv head head_dim
// codes (i8) and behind them their scale (f32), a number being code * scale. A scale is of one token and head (NUMERICS rule 13).
#pragma once

#include <cstdint>

namespace orrery {

constexpr int64_t kv_int8_head_bytes(int64_t head_dim) { return head_dim + 4; }
constexpr int64_t kKvInt8HeadMost = 256;  // head_dim: sums of so many products of codes stay below 2^24

}  // namespace orrery
