// The decode kernel of paged_decode.h over a cache of f32 or bf16; included by paged_decode_fma.inl and paged_decode_avx512bf16.cpp. Every sum
// has the order of the block kernel: scores over the head in pairs (bf16) or one chain (f32), 64 keys a block from position 0, probabilities in four
// chains over key mod 4, values over keys in order. What differs is in Sums:
//   Number                      of queries and of the cache
//   Query, in_queries(q, n, to) numbers of queries as the sums take them: `q`, or what `n` of them become in `to`
//   add_word(sum, keys, q)      one more word of the head for sixteen keys
//   add_values<C>(...)          o[c] = o[c] shrink_c + sum over keys of p[c][s] v_s
//   in_order(o, H, out)         numbers of the head as o holds them, in order
#include "backend/cpu/paged_decode.inl"

namespace orrery::ORRERY_SIMD {
namespace {

/// Numbers of K in a word.
template <typename T>
constexpr int64_t kPerWord = 4 / static_cast<int64_t>(sizeof(T));

// scores[c][s] = q_c . k_s for the keys of a block, those of this head `column` elements behind their starts; the softmax hides keys that are not there.
template <typename Sums, int C, typename T>
ORRERY_INLINE void block_scores(const BlockRows<T>& block, const BlockRows<T>& behind, int64_t column, int64_t H, const typename Sums::Query* q, float (&scores)[C][B]) {
  fold_words<C>(
      block, behind, column, H / kPerWord<T>, [](int) { return zero(); }, [&](F32x16 sum, F32x16 keys, int c, int64_t w) { return Sums::add_word(sum, keys, q + c * H + w * kPerWord<T>); },
      [&](int i, int c, F32x16 sum) { store(scores[c] + i * kLanes, sum); });
}

template <typename Sums>
void decode(const PagedTask& t) {
  using T = typename Sums::Number;
  const int64_t H = t.head_dim, lowest = lowest_position(t);
  const int64_t num_heads = t.num_kv_heads * t.group;
  const auto* q = Sums::in_queries(static_cast<const T*>(t.q), num_heads * H, t.scratch + pad_to(num_heads * (H + 2) * 4, 64));
  const float scale = t.scale * kLog2E, first = static_cast<float>(lowest), last = static_cast<float>(t.context - 1);
  const HeadSums sums(t);
  each_block<T>(t, [&](auto count, int64_t j, const BlockRows<T>& block, const BlockRows<T>& behind, int64_t kv_head, int64_t head) {
    constexpr int C = decltype(count)::value;
    alignas(64) float p[C][B];
    float shrink[C];
    block_scores<Sums, C>(block, behind, kv_head * H * kKeyTileTokens, H, q + head * H, p);
    for (int c = 0; c < C; ++c) shrink[c] = softmax_keys(p[c], j * B, scale, first, last, sums.maximum[head + c], sums.sum[head + c]);
    Sums::template add_values<C>(block, behind, kv_head * H, H, p, shrink, j == lowest / B, sums.o + head * H);
  });
  for (int64_t head = 0; head < num_heads; ++head) {
    const F32x16 inverse = splat(1.0f) / splat(sums.sum[head]);
    alignas(64) float ordered[kMaxHead];
    Sums::in_order(sums.o + head * H, H, ordered);
    T* out = static_cast<T*>(t.o) + head * H;
    for (int64_t h = 0; h < H; h += kLanes) store(out + h, load(ordered + h) * inverse);
  }
}

}  // namespace
}  // namespace orrery::ORRERY_SIMD
