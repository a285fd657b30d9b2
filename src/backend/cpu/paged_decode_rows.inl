// The decode kernel of paged_decode.h over a cache of f32 or bf16; included by paged_decode_f32_avx512.cpp and paged_decode_avx512bf16.cpp. Every sum
// has the order of the block kernel: scores over the head in pairs (bf16) or one chain (f32), 64 keys a block from position 0, probabilities in four
// chains over key mod 4, values over keys in order. What differs is in Sums:
//   Number                      of queries and of the cache
//   add_word(sum, keys, q)      one more word of the head for sixteen keys
//   add_values<C>(...)          o[c] = o[c] shrink_c + sum over keys of p[c][s] v_s
//   in_order(o, H, out)         numbers of the head as o holds them, in order
#include "backend/cpu/paged_decode.inl"

namespace orrery::ORRERY_SIMD {
namespace {

/// Sixteen words of a row: 32 bf16 or 16 f32. Numbers of K in a word: 2 or 1.
template <typename T>
constexpr int64_t kPerWord = 4 / static_cast<int64_t>(sizeof(T));

// scores[c][s] = q_c . k_s for the 64 keys of a block, which lie `column` behind the starts of their rows; the softmax hides keys that are not there.
template <typename Sums, int C, typename T>
ORRERY_INLINE void block_scores(const BlockRows<T>& block, const BlockRows<T>& behind, int64_t column, int64_t H, const T* q, float (&scores)[C][B]) {
  const int64_t words = H / kPerWord<T>;
  for (int64_t s = 0; s < B; s += 2 * kLanes) {
    F32x16 sum[2][C];
    for (int c = 0; c < C; ++c) sum[0][c] = sum[1][c] = zero();
    if (s < block.rows)
      for (int64_t w = 0; w < words; w += 16) {
        F32x16 tile[2][16];
        for (int64_t t = 0; t < 2; ++t) {
          for (int64_t i = 0; i < 16; ++i) {
            prefetch_behind(behind.keys[s + 16 * t + i] + column + w * kPerWord<T>);
            tile[t][i] = {_mm512_loadu_ps(reinterpret_cast<const float*>(block.keys[s + 16 * t + i] + column + w * kPerWord<T>))};
          }
          transpose_16x16(tile[t]);
        }
#pragma GCC unroll 16
        for (int64_t i = 0; i < 16; ++i)
#pragma GCC unroll 4
          for (int c = 0; c < C; ++c) {
            sum[0][c] = Sums::add_word(sum[0][c], tile[0][i], q + c * H + (w + i) * kPerWord<T>);
            sum[1][c] = Sums::add_word(sum[1][c], tile[1][i], q + c * H + (w + i) * kPerWord<T>);
          }
      }
    for (int c = 0; c < C; ++c) {
      store(scores[c] + s, sum[0][c]);
      store(scores[c] + s + kLanes, sum[1][c]);
    }
  }
}

template <typename Sums>
void decode(const PagedTask& t) {
  using T = typename Sums::Number;
  const int64_t H = t.head_dim, lowest = lowest_position(t);
  const T* q = static_cast<const T*>(t.q);
  const float scale = t.scale * kLog2E, first = static_cast<float>(lowest), last = static_cast<float>(t.context - 1);
  const HeadSums sums(t);
  each_block<T>(t, [&](auto count, int64_t j, const BlockRows<T>& block, const BlockRows<T>& behind, int64_t kv_head, int64_t head) {
    constexpr int C = decltype(count)::value;
    alignas(64) float p[C][B];
    float shrink[C];
    block_scores<Sums, C>(block, behind, kv_head * H, H, q + head * H, p);
    for (int c = 0; c < C; ++c) shrink[c] = softmax_keys(p[c], j * B, scale, first, last, sums.maximum[head + c], sums.sum[head + c]);
    Sums::template add_values<C>(block, behind, kv_head * H, H, p, shrink, j == lowest / B, sums.o + head * H);
  });
  for (int64_t head = 0; head < t.num_kv_heads * t.group; ++head) {
    const F32x16 inverse = splat(1.0f) / splat(sums.sum[head]);
    alignas(64) float ordered[kMaxHead];
    Sums::in_order(sums.o + head * H, H, ordered);
    T* out = static_cast<T*>(t.o) + head * H;
    for (int64_t h = 0; h < H; h += kLanes) store(out + h, load(ordered + h) * inverse);
  }
}

}  // namespace
}  // namespace orrery::ORRERY_SIMD
