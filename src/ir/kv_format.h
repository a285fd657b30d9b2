// How keys and values lie in the cache. A token's row is of one head after the other, each in the compute dtype, head_dim numbers, or in 8 bits: head_dim
// codes (i8), filled up to whole words, and behind them their scale (f32), a number being code * scale. A scale is of one token and head (NUMERICS
// rule 13).
//   Values  row by row.
//   Keys    in tiles, of 16 neighbouring slots and one head: the first word (4 bytes: one number in f32, two in bf16, four codes, or the scale) of all 16
//           tokens, then the second. A query meets 16 keys in the lanes of a register, word by word, and would have to transpose rows each time it
//           reads them, while a key is written once. Heads' tiles are neighbours; 16 slots take the bytes of 16 rows.
#pragma once

#include <cstdint>

namespace orrery {

constexpr int64_t kv_int8_head_bytes(int64_t head_dim) { return (head_dim + 3) / 4 * 4 + 4; }
constexpr int64_t kKvInt8HeadMost = 256;  // head_dim: sums of so many products of codes stay below 2^24
constexpr int64_t kKeyTileTokens = 16;    // blocks of the cache hold whole tiles

}  // namespace orrery
